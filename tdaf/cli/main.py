"""`python train.py`: one run, a sweep, or one of Hydra's own questions (`--cfg`, `--info`, shell completion)."""

from __future__ import annotations

import argparse
import difflib
import os
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tdaf.cli import FOLDER
from tdaf.cli.ending import STOPPED, end_well, exit_code
from tdaf.errors import UserError, first_line
from tdaf.streams import lossy_streams, open_closed_streams

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from tdaf.cli.compose import Config

VALUED = (("--cfg", "-c"), ("--package", "-p"), ("--info", "-i"), ("--config-dir", "-cd"))  # flags of Hydra's
PLAIN = (("-m", "--multirun"), ("--resolve",), ("--version",), ("--hydra-help",), ("--shell-completion", "-sc"))


@dataclass(frozen=True)
class Job:
    """A run of a sweep.

    Attributes:
        config: its settings.
        text: what is printed when it starts.
        then: what follows it where it ends well; gives its own exit code. SLURM's launcher sends a job to another
            machine, so this is a function of an installed module.
    """

    config: Config
    text: str
    then: Callable[[], int] | None = None


def main() -> int:
    """The command line's exit code: 0 done, 1 a fault while running, 2 a mistake in what was asked, 75 told to stop,
    130 Ctrl-C. What cannot be printed is dropped."""
    open_closed_streams()
    with lossy_streams():
        return end_well(_main)


def _main() -> int:
    if {"-h", "--help"} & set(sys.argv[1:]):
        print(help_text())
        return 0
    # imports wait until they are needed: a misspelt key takes Hydra but not torch, which takes seconds
    asked, words = flags(sys.argv[1:])
    flags_first = sorted(sys.argv[1:], key=lambda argument: argument in words)  # as Hydra wants them
    question = asked.cfg or asked.info or asked.version or asked.hydra_help
    if asked.shell_completion:
        return hydra_main(_nothing, flags_first)
    if asked.multirun and not question:
        return sweep(words)
    if not question and (asked.package or asked.resolve):
        raise UserError("--package, --resolve: these are for what --cfg job shows; add that, or leave them out")
    from tdaf.cli.compose import compose

    if not question:
        config = compose(words)
        from tdaf.cli.run import start

        return start(config)
    if words and not asked.multirun:  # what a run would refuse is refused here too, in the same words
        config = compose(words)
        if asked.cfg == "job":
            from tdaf.cli import rehearsal

            rehearsal.choices(config)
    return hydra_main(_nothing, flags_first)


def sweep(arguments: Sequence[str]) -> int:
    """Runs a sweep as Hydra's sweeper and launcher have it; returns the worst exit code.

    With Hydra's own sweeper, which runs every combination, all jobs are checked before the first one starts. What
    another sweeper (Optuna's, Ax's) will try nobody knows beforehand; it gets the best value of the task's metric.

    Raises:
        UserError: a job that cannot work, before any has started. One that fails later leaves the others be.
    """
    from tdaf.cli.compose import compose, load
    from tdaf.cli.overrides import parse

    overrides = parse(arguments, sweep=True)
    hydras = [o.input_line for o in overrides if o.key_or_group.startswith(("hydra.", "hydra/"))]
    load(tuple(hydras))  # raises UserError where a launcher or sweeper is not installed or misspelt
    if any(text.startswith(("hydra/sweeper=", "hydra.sweeper")) for text in hydras):
        del _codes[:]
        compose(
            [*hydras, *(o.input_line for o in overrides if not o.is_sweep_override() and o.input_line not in hydras)]
        )
        hydra_main(_swept, ["-m", *(o.input_line for o in overrides)])
        return max(_codes, default=0)
    jobs = [Job(compose(words), " ".join(words)) for words in combinations(arguments)]
    return max(launch(jobs, hydras), default=0)


def combinations(arguments: Sequence[str]) -> list[list[str]]:
    """The overrides of every job, in the order of Hydra's sweeper: the last argument changes first."""
    import itertools

    from hydra.core.override_parser.types import Glob

    from tdaf.cli.compose import group_options
    from tdaf.cli.overrides import parse

    overrides = parse(arguments, sweep=True)
    options = []
    for override in overrides:
        if not override.is_sweep_override():
            options.append([override.input_line])
        elif isinstance(override.value(), Glob):
            names = override.value().filter(group_options(override.key_or_group, overrides))
            options.append([f"{override.key_or_group}={name}" for name in names])
        elif override.is_discrete_sweep():
            key = override.get_key_element()
            options.append([f"{key}={value}" for value in override.sweep_string_iterator()])
        else:
            text = override.input_line
            raise UserError(
                f"{text}: give the values one by one, or choose a sweeper that draws them (hydra/sweeper=...)"
            )
    return [list(job) for job in itertools.product(*options)]


def launch(jobs: Sequence[Job], hydras: Sequence[str] = ()) -> list[int]:
    """Runs jobs through Hydra's launcher: one by one in here, or SLURM's. All are checked before the first one starts.

    Args:
        jobs: what to run; each with a folder of its own.
        hydras: Hydra's own settings, as hydra/launcher=submitit_slurm.

    Returns:
        Their exit codes. Of a job on another machine 0 where its run folder says that it is finished, else 1.

    Raises:
        UserError: a job that cannot work; none has started then.
        SystemExit: a job was told to stop.
    """
    for folder, times in Counter(job.config["run_dir"] for job in jobs).items():
        if times > 1:
            raise UserError(
                f"run_dir={folder} is the folder of {times} jobs of this sweep; leave run_dir out, "
                "or put what differs into it, as 'run_dir=FOLDER/${anar}-${flows}'"
            )
    from hydra.core.hydra_config import HydraConfig

    from tdaf.cli.compose import load
    from tdaf.cli.rehearsal import settings as check
    from tdaf.cli.run import finished

    load(tuple(hydras))  # raises UserError where a launcher is not installed or misspelt
    for job in jobs:
        if not finished(job.config):
            check(job.config)
    codes: dict[int, int] = {}
    here = os.getpid()

    def run(_: DictConfig) -> None:
        number = HydraConfig.get().job.num
        print(f"job {number + 1} of {len(jobs)}: {jobs[number].text}", flush=True)
        codes[number] = _start(jobs[number])
        if codes[number] in STOPPED and os.getpid() == here:  # a job of SLURM's stops nothing but itself
            raise SystemExit(codes[number])

    # a list of jobs is not always a product of values: Hydra counts, and each job is looked up by its number
    if jobs:
        hydra_main(run, ["-m", *hydras, f"+job={','.join(map(str, range(len(jobs))))}"])
    return [codes[n] if n in codes else int(not finished(job.config)) for n, job in enumerate(jobs)]


def hydra_main(function: Callable[[DictConfig], Any], arguments: Sequence[str]) -> int:
    """`hydra.main` over configs/ with these arguments."""
    import hydra

    before, sys.argv = sys.argv, [sys.argv[0], *arguments]
    try:
        hydra.main(version_base="1.3", config_path=str(FOLDER), config_name="train")(function)()
    except ValueError as error:
        raise UserError(first_line(error)) from error
    finally:
        sys.argv = before
    return 0


def help_text() -> str:
    """How to call train.py, the choices, and the settings with their defaults and meanings; read from the files
    themselves, so it is there at once."""
    lines = (FOLDER / "train.yaml").read_text().splitlines()
    usage = [line[2:] for line in lines[: lines.index("")] if line.startswith("#  ")]
    settings = lines[lines.index("") + 1 : lines.index("hydra:")]
    first = next(i for i, line in enumerate(settings) if line.startswith("#"))
    groups: dict[str, list[str]] = {}
    for path in sorted(FOLDER.glob("*/*.yaml")):
        groups.setdefault(path.parent.name, []).append(path.stem)
    return "\n".join(
        [
            "tdaf: Top-Down Attention Framework (AAAI 2021)",
            "",
            *usage,
            "",
            "Choices:",
            *(f"  {group}={'|'.join(names)}" for group, names in groups.items() if group not in ("table", "study")),
            "",
            "Settings, key=value with dots (trainer.batch=64); what is called null is off or found out:",
            *(f"  {line}".rstrip() for line in settings[first:]),
            "",
            "Every setting of a job with its value: python train.py --cfg job --resolve [key=value ...]",
            "Hydra's own flags work as it documents them: --cfg, --package, --resolve, --info, -m, --config-dir,",
            "--shell-completion; hydra.searchpath=[file://FOLDER] adds files of your own to the choices.",
        ]
    )


_codes: list[int] = []  # of the jobs of a sweep in this process


def flags(arguments: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """(Hydra's flags, the settings), --config-dir as a setting. Raises UserError for a flag that is none."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    for names in (*VALUED, *PLAIN):
        parser.add_argument(*names, **({"action": "store_true"} if names in PLAIN else {}))
    try:
        asked, words = parser.parse_known_args(list(arguments))
    except argparse.ArgumentError as error:
        raise UserError(str(error)) from error
    for word in words:
        if word.startswith("-"):
            close = difflib.get_close_matches(word.split("=")[0], ["--help", *sum((*VALUED, *PLAIN), ())], n=1)
            hint = f"did you mean {close[0]}?" if close else "write key=value; --help lists what there is"
            raise UserError(f"{word!r} is not a setting: {hint}")
    if asked.config_dir:
        words.append(f"hydra.searchpath=[file://{Path(asked.config_dir).expanduser().resolve()}]")
    return asked, words


def _start(job: Job) -> int:
    """The exit code of a run and of what follows it; a mistake that shows only there is that job's alone."""
    from tdaf.cli.run import start

    return exit_code(lambda: start(job.config) or (job.then() if job.then else 0))


def _swept(_: DictConfig) -> float | None:
    """One job of a sweeper that chooses values itself; gives it the best value of the task's metric."""
    import json

    from hydra.core.hydra_config import HydraConfig

    from tdaf.cli.compose import compose

    words = list(HydraConfig.get().overrides.task)
    print(f"job {HydraConfig.get().job.num + 1}: {' '.join(words)}", flush=True)
    config: Config = {}

    def run() -> int:
        config.update(compose(words))
        return _start(Job(config, ""))

    _codes.append(exit_code(run))
    if _codes[-1] in STOPPED:
        raise SystemExit(_codes[-1])
    if _codes[-1]:
        return None
    return json.loads((Path(config["run_dir"]) / "summary.json").read_text())["metric"]["best"]


def _nothing(_: DictConfig) -> None:
    """The task function of Hydra's questions, which run nothing."""
