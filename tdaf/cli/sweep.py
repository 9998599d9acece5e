"""A sweep: every combination of a command's values, all of them checked before the first one starts."""

from __future__ import annotations

import itertools
import os
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

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

from tdaf.cli.compose import Config, compose
from tdaf.cli.overrides import FOLDER, first_line, values
from tdaf.errors import RunError, UserError

STOPPED = (75, 130)  # told to stop, Ctrl-C: the rest of the sweep is not started


@dataclass(frozen=True)
class Job:
    """config: of a run. text: what is printed when it starts. then: what follows it where it ends well; gives its own
    exit code. SLURM's launcher sends a job to another machine, so `then` is a function of an installed module."""

    config: Config
    text: str
    then: Callable[[], int] | None = None


def sweep(arguments: list[str]) -> int:
    """Runs every combination through Hydra's launcher: one by one in here, or SLURM's. Returns the worst exit code.

    Raises UserError, before the first job starts, where one of them cannot work. One that fails leaves the others be.
    """
    hydras, settings = parted(arguments)
    jobs = [Job(compose(command), " ".join(command)) for command in combinations(settings)]
    return max(launched(jobs, hydras), default=0)


def launched(jobs: list[Job], hydras: list[str]) -> list[int]:
    """Runs the jobs as `sweep` does. hydras: Hydra's own settings, which launcher that is. Returns their exit codes.

    Raises UserError as `sweep` does, and SystemExit for a job that was told to stop.
    """
    for folder, times in Counter(job.config["run_dir"] for job in jobs).items():
        if times > 1:
            raise UserError(
                f"run_dir={folder} is the folder of {times} jobs of this sweep; leave run_dir out, "
                "or put what differs into it, as 'run_dir=FOLDER/${anar}-${flows}'"
            )
    launch = _launcher(hydras)
    from tdaf.cli import rehearsal  # torch, which a misspelt key need not wait for
    from tdaf.cli.run import finished, start

    for job in jobs:
        if not finished(job.config):
            rehearsal.settings(job.config)

    here = os.getpid()

    def one(config: DictConfig) -> int:
        number = HydraConfig.get().job.num
        job = jobs[number]
        print(f"job {number + 1} of {len(jobs)}: {job.text}", flush=True)
        code = start(job.config) or _after(job)
        if code in STOPPED and os.getpid() == here:  # a job of SLURM's stops nothing but itself
            raise SystemExit(code)
        return code

    return launch(one, len(jobs))


def _after(job: Job) -> int:
    """The exit code of what follows a run; a mistake that shows only there is that job's alone."""
    try:
        return job.then() if job.then else 0
    except (UserError, RunError) as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        return 2 if isinstance(error, UserError) else 1


def parted(arguments: list[str]) -> tuple[list[str], list[str]]:
    """(Hydra's own settings, the others)."""
    hydras = [argument for argument in arguments if argument.startswith(("hydra.", "hydra/"))]
    return hydras, [argument for argument in arguments if argument not in hydras]


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
