"""Does top-down attention help, measured here? Trains every row of configs/study.yaml and writes what came out:

    python scripts/study.py [quick=true] [groups=comparison,ablations] [seeds=0,1,2] [processes=N] [threads=1]
                            [runs=runs/study] [out=docs/study.md] [key=value ...]
    python scripts/study.py plan=paper|mechanisms|ablations|design|night|search|FILE [task=...] [data.root=...]
                            [recipe=...] [estimate=true] [difference=1] [hydra/launcher=...] [as above]

plan: rows of networks (configs/study/, or a YAML file of yours like these) on a task and data of yours, into
runs/study-PLAN/. estimate=true times the steps, says what the plan will cost, and ends. After each seed it says what
can be said of the differences so far, and how many seeds a difference of so many points (1) would take.

Several single-threaded runs at a time (processes: the machine's cores), or one a GPU. What is finished is not trained
again, what was stopped goes on, so the same command, started again, ends where it would have; the page is written from
all finished runs. quick=true: a few rows, few steps, in minutes, into runs/study-quick/study.md. Other settings
(trainer.epochs=3, gpus=1) go to every run; give them another runs=FOLDER. Of a page that exists only the measured part
is written anew. Needs pip install -e '.[study]'. Exit codes as train.py's.
"""

from __future__ import annotations

import importlib.util
import os
import queue
import signal
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import yaml

import tdaf.cli.ending  # noqa: F401  first: from here on Ctrl-C is a line
from tdaf.cli.script import Natural, Positive, main
from tdaf.errors import UserError

ROOT = Path(__file__).resolve().parents[1]
GROUPS = {"mechanisms": "comparison", "ablations": "ablations"}  # plans that are groups of configs/study.yaml


@dataclass(frozen=True)
class Row:
    """A network under comparison. settings: what train.py is told. against: names of the rows it is tested against.
    cost_of: the row whose multiply-adds in training it is to have; cost_by: how, trained "longer" or with a "wider"
    backbone; equal: the settings that make it so."""

    name: str
    settings: tuple[str, ...]
    against: tuple[str, ...]
    seeds: tuple[int, ...]
    note: str = ""
    cost_of: str = ""
    cost_by: str = "longer"
    equal: tuple[str, ...] = ()

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
    plan: str | None = None,
    estimate: bool = False,
    difference: float = 1.0,
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
    if difference <= 0:
        raise UserError(f"difference={difference:g}: give points, above 0")
    runs = runs or Path(f"runs/study-{Path(plan).stem}" if plan else "runs/study-quick" if quick else "runs/study")
    out = out or (runs / "study.md" if quick or plan else Path("docs/study.md"))
    whole = read(quick, plan)
    for name in groups or []:
        if name not in [group.name for group in whole]:
            raise UserError(f"groups={name}: the study has {', '.join(group.name for group in whole)}")
    hydra = [text for text in rest if text.startswith(("hydra.", "hydra/"))]
    rest = [text for text in rest if text not in hydra]
    check_rest(whole, rest)
    devices = gpus() if plan else []
    processes = processes or len(devices) or os.cpu_count() or 1

    from results import comparison, evidence
    from results.runs import composed

    for row in (row for group in whole for row in group.rows):
        with named(row):
            composed(*merged(row, rest))
    whole, left_out = comparison.at_equal_cost(whole, lambda row: merged(row, rest))
    equal = [f"{row.name}: {' '.join(row.equal)}" for group in whole for row in group.rows if row.equal]
    print("".join(f"{line}\n" for line in [*equal, *(f"left out: {line}" for line in left_out)]), end="")
    planned = trials([group for group in whole if not groups or group.name in groups], runs, rest, seeds)
    unfinished = missing(planned)
    print(f"{len(planned)} runs, {len(unfinished)} of them to train, {processes} at a time; {runs}", flush=True)
    if estimate:
        print("\n".join(comparison.estimate(unfinished, processes)))
        return 0

    def after_seed() -> None:
        lines = comparison.said(whole, runs, difference) or ["one seed says nothing of differences"]
        print("\n".join(f"  {line}" for line in lines), flush=True)

    try:
        failed = run(unfinished, processes, threads, devices, hydra, after_seed if plan else None)
    except Stopped as stopped:
        print("stopped: the same command goes on", file=sys.stderr)
        return stopped.code
    command = " ".join(["python scripts/study.py", *sys.argv[1:]])
    how = {"rounds": 1} if quick else {"difference": difference} if plan else {}
    evidence.write_page(out, whole, rest, runs, command, **how)
    print(out)
    for trial, reason in failed.items():
        print(f"error: {trial.row.name}, seed {trial.seed}: {reason}", file=sys.stderr)
    return 1 if failed else 0


def gpus() -> list[str]:
    """The GPUs that one may use, as CUDA_VISIBLE_DEVICES names them."""
    import torch

    numbers = map(str, range(torch.cuda.device_count()))
    return [*filter(None, os.environ.get("CUDA_VISIBLE_DEVICES", ",".join(numbers)).split(","))][
        : torch.cuda.device_count()
    ]


def check_rest(groups: Sequence[Group], rest: Sequence[str]) -> None:
    """Raises UserError for a setting in which the rows of a group differ: it would make them one."""
    for group in groups:
        rows = [dict(text.lstrip("+").split("=", 1) for text in row.settings) for row in group.rows]
        for text in rest:
            key = text.lstrip("+~").partition("=")[0]
            if len({row.get(key) for row in rows}) > 1:
                raise UserError(f"{text}: the rows of {group.name} differ in {key}; leave it out, or write a plan=FILE")


def read(quick: bool = False, plan: str | None = None) -> list[Group]:
    """The groups of configs/study.yaml, or of a plan. quick: the former's miniature. Raises UserError for a plan that
    is none."""
    if plan:
        return _groups(_plan(plan))
    content = yaml.safe_load((ROOT / "configs" / "study.yaml").read_text(encoding="utf-8"))
    return _groups(content, content["quick"] if quick else {})


def _plan(name: str) -> dict[str, Any]:
    """A plan's content as that of configs/study.yaml, where two of them stand as groups."""
    folder = ROOT / "configs" / "study"
    if name in GROUPS:
        content = yaml.safe_load((ROOT / "configs" / "study.yaml").read_text(encoding="utf-8"))
        (group,) = (group for group in content["groups"] if group["name"] == GROUPS[name])
        absent = {*group["against"]} - {row["name"] for row in group["rows"]}
        other = [row for one in content["groups"] for row in one["rows"] if row["name"] in absent]
        group = {**group, "rows": [*other, *group["rows"]], "timed": False}
        return {"settings": ["anar=3", "flows=3"], "seeds": [0, 1, 2], "groups": [group]}
    path = folder / f"{name}.yaml"
    path = path if path.is_file() else Path(name).expanduser()
    known = ", ".join(sorted([*GROUPS, *(file.stem for file in folder.glob("*.yaml"))]))
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
        _check_plan(content)
    except OSError as error:
        raise UserError(f"plan={name}: {error.strerror}; give a file, or one of {known}") from error
    except (ValueError, yaml.YAMLError) as error:
        mark = getattr(error, "problem_mark", None)  # of a file that is no YAML
        why = f"line {mark.line + 1}: {error.problem}" if mark else str(error).partition("\n")[0]
        raise UserError(f"plan={name}: {path} is no plan like those in configs/study/: {why}") from error
    several = "groups" in content
    groups = [
        {**group, "name": f"{path.stem}-{number}" if several else path.stem, "timed": False}
        for number, group in enumerate(content["groups"] if several else [content], start=1)
    ]
    return {"settings": content["settings"], "seeds": content["seeds"], "groups": groups}


def _check_plan(content: Any) -> None:
    """Raises ValueError, which says what is wrong, for what is no plan."""
    table, common = {"title": str, "against": list, "rows": list}, {"settings": list, "seeds": list}
    groups = content["groups"] if isinstance(content, dict) and isinstance(content.get("groups"), list) else [content]
    _check_keys("it", content, {**(table if groups == [content] else {"groups": list}), **common})
    for number, group in enumerate(groups, start=1):
        _check_keys(f"group {number}", group, table, common)
    rows = [row for group in groups for row in group["rows"]]
    optional = {"seeds": list, "against": list, "note": str, "cost_of": str, "cost_by": str}
    for number, row in enumerate(rows, start=1):
        _check_keys(f"row {number}", row, {"name": str, "settings": list}, optional)
    names = [row["name"] for row in rows]
    if twice := [name for name, count in Counter(Row(name, (), (), ()).slug for name in names).items() if count > 1]:
        raise ValueError(f"two rows are called {twice[0]}")
    for part in (content, *groups, *rows):
        if wrong := [text for text in part.get("settings", []) if not isinstance(text, str) or "=" not in text]:
            raise ValueError(f"{wrong[0]} is no setting like flows=3")
        if wrong := [seed for seed in part.get("seeds", []) if type(seed) is not int or seed < 0]:
            raise ValueError(f"{wrong[0]} is no seed: give whole numbers")
        if wrong := [name for name in (*part.get("against", []), part.get("cost_of", names[0])) if name not in names]:
            raise ValueError(f"there is no row {wrong[0]}")
        if part.get("cost_by", "longer") not in ("longer", "wider"):
            raise ValueError(f"cost_by is longer or wider, not {part['cost_by']}")
        if part.get("cost_of") == part.get("name", ""):
            raise ValueError(f"{part['name']} is to cost what it costs itself")


def _check_keys(where: str, node: Any, needed: dict[str, type], optional: dict[str, type] | None = None) -> None:
    known = {**needed, **(optional or {})}
    if not isinstance(node, dict):
        raise ValueError(f"{where} has no {', '.join(needed)}")
    if absent := [key for key in needed if key not in node]:
        raise ValueError(f"{where} has no {absent[0]!r}")
    for key, value in node.items():
        if key not in known:
            raise ValueError(f"{where} has {key!r}; known are {', '.join(known)}")
        if not isinstance(value, known[key]) or value in ("", []) and key in ("name", "rows", "seeds"):
            raise ValueError(f"{key} of {where} is no {'list' if known[key] is list else 'text'}, or empty")


def _groups(plan: dict[str, Any], small: dict[str, Any] | None = None) -> list[Group]:
    """small: what a miniature has instead."""
    quick, small = bool(small), small or {}
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
            words = (row.get("note", ""), row.get("cost_of", ""), row.get("cost_by", "longer"))
            rows.append(Row(row["name"], tuple(settings.values()), against, seeds, *words))
        if rows:
            groups.append(Group(group["name"], group["title"], tuple(rows), group.get("timed", True)))
    return groups


def trials(groups: Sequence[Group], runs: Path, more: Sequence[str], seeds: Sequence[int] | None = None) -> list[Trial]:
    """Every run of the groups, seed by seed, so that what is done after a while is evenly spread over the rows.

    more: settings for all of them. seeds: instead of every row's own.
    """
    pairs = [(seed, row) for group in groups for row in group.rows for seed in seeds or row.seeds]
    return [
        Trial(row, seed, (*merged(row, more), f"seed={seed}", f"run_dir={runs / f'{row.slug}-seed{seed}'}"))
        for seed, row in sorted(pairs, key=lambda pair: pair[0])
    ]


def merged(row: Row, more: Sequence[str]) -> tuple[str, ...]:
    """A row's settings with more; of one that is given twice the later one counts."""
    return tuple({text.partition("=")[0]: text for text in (*row.settings, *more, *row.equal)}.values())


def missing(trials: Sequence[Trial]) -> list[Trial]:
    """Those that are not finished. Raises UserError for settings that cannot work, or a folder of other settings."""
    from results.runs import composed, is_missing

    unfinished: list[Trial] = []
    for trial in trials:
        built = any(trial.row.name == other.row.name for other in unfinished)  # seeds change nothing of the network
        with named(trial.row):
            if is_missing(composed(*trial.command), check=not built):
                unfinished.append(trial)
    return unfinished


@contextmanager
def named(row: Row) -> Iterator[None]:
    """What is wrong with a row's settings is said with its name."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{row.name}: {error}") from error


class Stopped(Exception):
    """SIGTERM or Ctrl-C. The runs have saved what they had; the same command goes on."""

    code = 75


def run(
    trials: Sequence[Trial],
    processes: int,
    threads: int,
    devices: Sequence[str] = (),
    hydra: Sequence[str] = (),
    after_seed: Callable[[], None] | None = None,
) -> dict[Trial, str]:
    """Runs train.py, `processes` at a time with `threads` each, in turns on `devices`; each can be stopped and goes on.
    With Hydra's own settings its launcher runs them. after_seed: called when the last run of a seed has ended. Returns
    why the failed ones failed. Raises Stopped when told to stop."""
    if hydra:
        return launched(trials, hydra)
    running: set[subprocess.Popen] = set()
    stop = threading.Event()
    places = queue.SimpleQueue()
    for number in range(processes):
        visible = {"CUDA_VISIBLE_DEVICES": devices[number % len(devices)]} if devices else {}
        places.put({**os.environ, "OMP_NUM_THREADS": str(threads), **visible})

    def one(trial: Trial) -> str:
        if stop.is_set():
            return ""
        command = [sys.executable, str(ROOT / "train.py"), *trial.command]
        pipes = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE}
        environment = places.get()
        with subprocess.Popen(command, env=environment, text=True, **pipes) as process:
            running.add(process)
            if stop.is_set():
                process.terminate()
            errors = process.communicate()[1].strip().splitlines()
            running.discard(process)
        places.put(environment)
        return "" if process.returncode in (0, Stopped.code) else [f"exit code {process.returncode}", *errors][-1]

    def halt(number: int, frame: FrameType | None) -> None:
        stop.set()
        for process in list(running):
            process.terminate()

    before = {number: signal.signal(number, halt) for number in (signal.SIGTERM, signal.SIGINT)}
    failed: dict[Trial, str] = {}
    waiting = Counter(trial.seed for trial in trials)
    try:
        with ThreadPoolExecutor(processes) as pool:
            futures = {pool.submit(one, trial): trial for trial in trials}
            for number, future in enumerate(as_completed(futures), start=1):
                trial, reason = futures[future], future.result()
                failed |= {trial: reason} if reason else {}
                if not stop.is_set():
                    outcome = f"failed: {reason}" if reason else "done"
                    print(f"{number} of {len(trials)}: {trial.row.name}, seed {trial.seed}: {outcome}", flush=True)
                    waiting[trial.seed] -= 1
                    if after_seed and not waiting[trial.seed]:
                        after_seed()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if stop.is_set():
        raise Stopped
    return failed


def launched(trials: Sequence[Trial], hydra: Sequence[str]) -> dict[Trial, str]:
    """The same through Hydra's launcher, SLURM's say."""
    from results.runs import composed
    from tdaf.cli.main import Job, launch

    jobs = [Job(composed(*trial.command), " ".join(trial.command)) for trial in trials]
    codes = launch(jobs, list(hydra))
    return {trial: f"exit code {code}" for trial, code in zip(trials, codes, strict=True) if code}


if __name__ == "__main__":
    sys.exit(main(study, __doc__))
