"""Does top-down attention help, measured here? Trains every row of configs/study.yaml and writes what came out:

    python scripts/study.py [quick=true] [groups=comparison,ablations] [seeds=0,1,2] [processes=N] [threads=1]
                            [runs=runs/study] [out=docs/study.md] [key=value ...]

Several single-threaded runs at a time (processes: the machine's cores). What is finished is not trained again, what was
stopped goes on, so the same command, started again, ends where it would have; the page is written from all runs that
are finished. quick=true: a few rows, few steps, in minutes, into runs/study-quick/study.md. Other settings
(trainer.epochs=3, gpus=1) go to every run; give them another runs=FOLDER. Of a page that exists only the measured part
is written anew. Needs pip install -e '.[study]'. Exit codes as train.py's.
"""

from __future__ import annotations

import importlib.util
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

import yaml

import tdaf.cli.ending  # noqa: F401  first: from here on Ctrl-C is a line
from tdaf.cli.script import Natural, Positive, main
from tdaf.errors import UserError

ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Row:
    """A network under comparison. settings: what train.py is told. against: names of the rows it is tested against."""

    name: str
    settings: tuple[str, ...]
    against: tuple[str, ...]
    seeds: tuple[int, ...]
    note: str = ""

    @property
    def slug(self) -> str:
        """The name as a folder's."""
        return "".join(c if c.isalnum() or c in "=.-" else "_" for c in self.name.replace(", ", "-"))


@dataclass(frozen=True)
class Group:
    """Rows that share a table. timed: whether their training steps are timed; not where a schedule alone differs."""

    name: str
    title: str
    rows: tuple[Row, ...]
    timed: bool = True

    @property
    def references(self) -> list[str]:
        """The rows, of this group or another, that one of these is tested against."""
        names = [name for row in self.rows for name in row.against]
        return list(dict.fromkeys([*(row.name for row in self.rows if row.name in names), *names]))


@dataclass(frozen=True)
class Trial:
    """One run: a row with a seed. command: train.py's arguments."""

    row: Row
    seed: int
    command: tuple[str, ...]


def study(
    *,
    quick: bool = False,
    groups: list[str] | None = None,
    seeds: list[Natural] | None = None,
    processes: Positive | None = None,
    threads: Positive = 1,
    runs: Path | None = None,
    out: Path | None = None,
    rest: Sequence[str] = (),
) -> int:
    absent = [name for name in ("scipy", "matplotlib") if importlib.util.find_spec(name) is None]
    if absent:
        raise UserError(f"the study needs {' and '.join(absent)}: pip install -e '.[study]'")
    runs = runs or Path("runs/study-quick" if quick else "runs/study")
    out = out or (runs / "study.md" if quick else Path("docs/study.md"))
    plan = read(quick)
    for name in groups or []:
        if name not in [group.name for group in plan]:
            raise UserError(f"groups={name}: the study has {', '.join(group.name for group in plan)}")
    processes = processes or os.cpu_count() or 1
    planned = trials([group for group in plan if not groups or group.name in groups], runs, rest, seeds)
    unfinished = missing(planned)

    from results import evidence

    print(f"{len(planned)} runs, {len(unfinished)} of them to train, {processes} at a time; {runs}", flush=True)
    try:
        failed = run(unfinished, processes, threads)
    except Stopped as stopped:
        print("stopped: the same command goes on", file=sys.stderr)
        return stopped.code
    command = " ".join(["python scripts/study.py", *sys.argv[1:]])
    evidence.write_page(out, plan, rest, runs, command, **({"rounds": 1} if quick else {}))
    print(out)
    for trial, reason in failed.items():
        print(f"error: {trial.row.name}, seed {trial.seed}: {reason}", file=sys.stderr)
    return 1 if failed else 0


def read(quick: bool = False) -> list[Group]:
    """The groups of configs/study.yaml. quick: its miniature."""
    plan = yaml.safe_load((ROOT / "configs" / "study.yaml").read_text(encoding="utf-8"))
    small = plan["quick"] if quick else {}
    groups = []
    for group in plan["groups"]:
        rows = []
        for row in group["rows"]:
            if quick and row["name"] not in small["rows"]:
                continue
            given = [*plan["settings"], *group.get("settings", []), *small.get("settings", []), *row["settings"]]
            settings = {setting.partition("=")[0]: setting for setting in given}  # the later one counts
            against = tuple(name for name in row.get("against", group["against"]) if name != row["name"])
            seeds = tuple(next(part["seeds"] for part in (small, row, group, plan) if "seeds" in part))
            rows.append(Row(row["name"], tuple(settings.values()), against, seeds, row.get("note", "")))
        if rows:
            groups.append(Group(group["name"], group["title"], tuple(rows), group.get("timed", True)))
    return groups


def trials(groups: Sequence[Group], runs: Path, more: Sequence[str], seeds: Sequence[int] | None = None) -> list[Trial]:
    """Every run of the groups, seed by seed, so that what is done after a while is evenly spread over the rows.

    more: settings for all of them. seeds: instead of every row's own.
    """
    pairs = [(seed, row) for group in groups for row in group.rows for seed in seeds or row.seeds]
    return [
        Trial(row, seed, (*row.settings, *more, f"seed={seed}", f"run_dir={runs / f'{row.slug}-seed{seed}'}"))
        for seed, row in sorted(pairs, key=lambda pair: pair[0])
    ]


def missing(trials: Sequence[Trial]) -> list[Trial]:
    """Those that are not finished. Raises UserError for settings that cannot work, or a folder of other settings."""
    from results.runs import composed, is_missing

    unfinished: list[Trial] = []
    for trial in trials:
        built = any(trial.row.name == other.row.name for other in unfinished)  # seeds change nothing of the network
        if is_missing(composed(*trial.command), check=not built):
            unfinished.append(trial)
    return unfinished


class Stopped(Exception):
    """SIGTERM or Ctrl-C. The runs have saved what they had; the same command goes on."""

    code = 75


def run(trials: Sequence[Trial], processes: int, threads: int) -> dict[Trial, str]:
    """Runs train.py, `processes` at a time with `threads` each; each can be stopped and goes on. Returns why the failed
    ones failed. Raises Stopped when told to stop."""
    running: set[subprocess.Popen] = set()
    stop = threading.Event()
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}

    def one(trial: Trial) -> str:
        if stop.is_set():
            return ""
        command = [sys.executable, str(ROOT / "train.py"), *trial.command]
        pipes = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE}
        with subprocess.Popen(command, env=environment, text=True, **pipes) as process:
            running.add(process)
            if stop.is_set():
                process.terminate()
            errors = process.communicate()[1].strip().splitlines()
            running.discard(process)
        return "" if process.returncode in (0, Stopped.code) else [f"exit code {process.returncode}", *errors][-1]

    def halt(number: int, frame: FrameType | None) -> None:
        stop.set()
        for process in list(running):
            process.terminate()

    before = {number: signal.signal(number, halt) for number in (signal.SIGTERM, signal.SIGINT)}
    failed: dict[Trial, str] = {}
    try:
        with ThreadPoolExecutor(processes) as pool:
            futures = {pool.submit(one, trial): trial for trial in trials}
            for number, future in enumerate(as_completed(futures), start=1):
                trial, reason = futures[future], future.result()
                failed |= {trial: reason} if reason else {}
                if not stop.is_set():
                    outcome = f"failed: {reason}" if reason else "done"
                    print(f"{number} of {len(trials)}: {trial.row.name}, seed {trial.seed}: {outcome}", flush=True)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if stop.is_set():
        raise Stopped
    return failed


if __name__ == "__main__":
    sys.exit(main(study, __doc__))
