"""A sweep: every combination of a command's values, all of them checked before the first one starts."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable

from hydra._internal.callbacks import Callbacks
from hydra._internal.hydra import Hydra
from hydra._internal.utils import create_config_search_path
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.plugins import Plugins
from hydra.errors import HydraException
from hydra.types import HydraContext, RunMode
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from configs.compose import compose
from configs.overrides import FOLDER, first_line, values
from tdaf.errors import UserError

STOPPED = (75, 130)  # told to stop, Ctrl-C: the rest of the sweep is not started


def sweep(arguments: list[str]) -> int:
    """Runs every combination through Hydra's launcher: one by one in here, or SLURM's. Returns the worst exit code.

    Raises UserError, before the first job starts, where one of them cannot work. One that fails leaves the others be.
    """
    hydras = [a for a in arguments if a.startswith(("hydra.", "hydra/"))]
    commands = combinations([a for a in arguments if a not in hydras])
    jobs = [compose(command) for command in commands]
    for folder, times in Counter(job["run_dir"] for job in jobs).items():
        if times > 1:
            raise UserError(
                f"run_dir={folder} is the folder of {times} jobs of this sweep; leave run_dir out, "
                "or put what differs into it, as 'run_dir=FOLDER/${anar}-${flows}'"
            )
    launch = _launcher(hydras)
    from configs import rehearsal  # torch, which a misspelt key need not wait for
    from configs.run import finished, start

    for job in jobs:
        if not finished(job):
            rehearsal.settings(job)

    def one(config: DictConfig) -> int:
        number = HydraConfig.get().job.num
        print(f"job {number + 1} of {len(jobs)}: {' '.join(commands[number])}", flush=True)
        code = start(jobs[number])
        if code in STOPPED:
            raise SystemExit(code)
        return code

    return max(launch(one, len(jobs)), default=0)


def combinations(arguments: list[str]) -> list[list[str]]:
    """The overrides of every job, in the order of Hydra's sweeper: the last argument changes first."""
    options = {argument.partition("=")[0]: values(argument) for argument in arguments}
    return [list(job) for job in itertools.product(*options.values())]


def _launcher(arguments: list[str]) -> Callable[[Callable[[DictConfig], int], int], list[int]]:
    """A function (job, how many) -> their exit codes. The launcher knows the jobs by their numbers only."""
    for argument in arguments:
        if argument.startswith(("hydra/sweeper", "hydra.sweeper")):
            raise UserError(f"{argument}: a sweep runs every combination of what is given; other sweepers are not used")
    GlobalHydra.instance().clear()
    hydra = Hydra.create_main_hydra2("train", create_config_search_path(str(FOLDER)))
    try:
        config = hydra.compose_config("train", arguments, RunMode.MULTIRUN)
    except (HydraException, OmegaConfBaseException) as error:
        hint = "; pip install 'tdaf[slurm]' brings SLURM's" if "hydra/launcher" in str(error) else ""
        raise UserError(first_line(error) + hint) from error
    context = HydraContext(config_loader=hydra.config_loader, callbacks=Callbacks(config))

    def launch(job: Callable[[DictConfig], int], count: int) -> list[int]:
        plugin = Plugins.instance().instantiate_launcher(hydra_context=context, task_function=job, config=config)
        return [result.return_value for result in plugin.launch([[] for _ in range(count)], initial_job_idx=0)]

    return launch
