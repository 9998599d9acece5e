"""Runs as the tables see them: composed from settings, found on disk, what they measured, the missing ones trained.

The only module of the tables that knows how the command line composes, starts and evaluates a run.
"""

from __future__ import annotations

import functools
import json
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tdaf.cli.compose import Config, compose, identity
from tdaf.cli.main import Job, launch
from tdaf.settings import upgraded

SEED, PROTOCOL = "seed", "task.protocol"
ROOTS = ("data.root", "demo.root")  # where a disk is mounted makes no other run


@dataclass(frozen=True)
class Run:
    """A finished run: its folder, its settings, all that summary.json says, and when that was written (nanoseconds)."""

    folder: Path
    config: Config
    summary: dict[str, Any]
    time: int


@dataclass(frozen=True)
class Result:
    """What a run measured: the evaluator's numbers by name, the protocol and how many samples it counted."""

    folder: Path
    seed: int
    values: dict[str, float]
    samples: int
    protocol: str


@dataclass
class Request:
    """A run that tables need. names: of its rows, for messages. settings: overrides of train.py. evaluations: overrides
    of scripts/evaluate.py, a list each."""

    names: list[str]
    settings: list[str]
    evaluations: list[list[str]] = field(default_factory=list)

    @property
    def config(self) -> Config:
        return composed(*self.settings)


@functools.cache  # a row is looked at more than once
def composed(*settings: str) -> Config:
    """The settings of a run with these overrides; not to be changed. Raises UserError."""
    return compose(list(settings))


def key(config: Config, but: tuple[str, ...] = (SEED, *ROOTS)) -> str:
    """The same for runs that differ in nothing but `but`, their hardware and their folder. Drawn data and a data set of
    one's own, with which the demo recipe trains as well, are not the same."""
    drawn = bool(config.get("demo")) and config["data"]["root"] is None
    root = None if ROOTS[0] in but else config["data"]["root"]
    return json.dumps([drawn, root, identity(config, but)], sort_keys=True, default=str)


def find(folders: Iterable[Path]) -> list[Run]:
    """Every finished run below the folders. A summary.json that is not a run's is left out with a warning."""
    paths = {path.resolve(): path for folder in folders for path in folder.rglob("summary.json")}
    return [run for run in map(_run, sorted(paths.values())) if run]


def by_key(runs: Iterable[Run], but: tuple[str, ...] = (SEED, *ROOTS)) -> dict[str, list[Run]]:
    groups: dict[str, list[Run]] = {}
    for run in runs:
        groups.setdefault(key(run.config, but), []).append(run)
    return groups


def results(runs: Iterable[Run], evaluate: Sequence[str] = ()) -> list[Result]:
    """What runs measured, one of each seed: the newest that has a `result`."""
    measured = (result(run, evaluate) for run in sorted(runs, key=lambda run: run.time))
    by_seed = {one.seed: one for one in measured if one}
    return [by_seed[seed] for seed in sorted(by_seed)]


def result(run: Run, evaluate: Sequence[str] = ()) -> Result | None:
    """The numbers of a run's last evaluation, or of its newest one with the settings `evaluate` of scripts/evaluate.py,
    as [protocol=10crop]; None where it was not evaluated like that."""
    if not evaluate:
        summary = run.summary
        return Result(run.folder, run.config[SEED], summary["metrics"], summary["samples"], summary["protocol"])
    settings = dict(_of_task(setting).split("=", 1) for setting in evaluate)
    paths = sorted(run.folder.glob(f"evaluation-{settings.get(PROTOCOL, '*')}.json"), key=_time, reverse=True)
    return next(filter(None, (_evaluation(path, run, {PROTOCOL, *settings}) for path in paths)), None)


def protocols(measured: Iterable[Result]) -> str:
    """How results were measured, as "10crop, 50,000 samples"; several ways where they differ."""
    return " and ".join(sorted({f"{one.protocol}, {one.samples:,} samples" for one in measured}))


def run_missing(requests: Sequence[Request], folders: Sequence[Path], hydra: Sequence[str] = ()) -> int:
    """Trains what is missing, goes on with what is unfinished, evaluates what lacks its evaluation.

    requests: those that come to the same settings are one run. folders: finished runs below them count. hydra: Hydra's
    own settings, which choose the launcher. Returns the worst exit code; a run that fails leaves the others be. Raises
    UserError, before anything starts, where one of them cannot work; SystemExit when told to stop.
    """
    merged: dict[str, Request] = {}
    for request in requests:
        one = merged.setdefault(key(request.config, ()), Request([], request.settings))
        one.names += request.names
        one.evaluations += [evaluate for evaluate in request.evaluations if evaluate not in one.evaluations]
    finished = by_key(find([*folders, *(Path(request.config["run_dir"]) for request in merged.values())]), ROOTS)
    jobs: list[tuple[Request, Job]] = []
    for request in merged.values():
        job = _job(request, finished.get(key(request.config, ROOTS), []))
        jobs += [(request, job)] if job else []
    if not jobs:
        return 0
    codes = launch([job for _, job in jobs], list(hydra))
    for (request, _), code in zip(jobs, codes, strict=True):
        if code:
            print(f"failed with exit code {code}: {', '.join(request.names)}", file=sys.stderr, flush=True)
    return max(codes)


def is_missing(config: Config, check: bool = True) -> bool:
    """Whether a run is not finished. check: whether one that is not is built once without data. Raises UserError for
    settings that cannot work, and for a folder that holds a run of other settings."""
    from tdaf.cli import rehearsal  # torch
    from tdaf.cli.run import finished

    missing = not finished(config)
    if missing and check:
        rehearsal.settings(config)
    return missing


def _job(request: Request, finished: Sequence[Run]) -> Job | None:
    """None where everything is there."""
    names, config, then = ", ".join(request.names), request.config, None
    lacking = [evaluate for evaluate in request.evaluations if not results(finished, evaluate)]
    newest = max(finished, key=lambda run: run.time, default=None)
    if newest and not lacking:
        print(f"{names}: finished in {newest.folder}", flush=True)
        return None
    if newest:  # to say that it is finished takes no GPU
        config = {**newest.config, "run_dir": str(newest.folder), "gpus": 0}
    if lacking:
        from tdaf.cli.evaluation import evaluate_in_turn  # torch
        from tdaf.settings import named_modules

        machine = [*filter(_of_machine, request.settings)]
        overrides = [[*map(_of_task, evaluate), *machine] for evaluate in lacking]
        then = functools.partial(evaluate_in_turn, config["run_dir"], overrides, named_modules(config))
    return Job(config, f"{names}: {' '.join(request.settings)}", then)


def _of_task(setting: str) -> str:
    """As scripts/evaluate.py reads it: protocol=10crop is task.protocol=10crop."""
    return setting if "." in setting.partition("=")[0] else f"task.{setting}"


def _of_machine(setting: str) -> bool:
    """Whether it says where the data lie and which hardware reads them: of an evaluation as of a training."""
    name = setting.partition("=")[0].lstrip("+~")
    return name == "gpus" or name in ROOTS or name.startswith("loader.")


def _time(path: Path) -> int:
    return path.stat().st_mtime_ns


def _run(path: Path) -> Run | None:
    try:
        summary = json.loads(path.read_text())
        config, metrics = upgraded(summary["config"]), summary["metrics"]
        right = all(isinstance(config[part], dict) for part in ("trainer", "data", "task")) and _are_numbers(metrics)
        right = right and summary["metric"]["name"] in metrics and {"samples", "protocol", "params"} <= summary.keys()
        if right and config[SEED] >= 0:
            return Run(path.parent, config, summary, _time(path))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        pass
    return _left_out(path, "is damaged, or not of a finished run")


def _evaluation(path: Path, run: Run, allowed: set[str]) -> Result | None:
    """allowed: the settings that it may have been made with."""
    try:
        content = json.loads(path.read_text())
        settings = [str(setting) for setting in content.get("settings", [])]
        if not _are_numbers(content["values"]):
            raise ValueError
        measured = Result(run.folder, run.config[SEED], content["values"], content["samples"], content["protocol"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return _left_out(path, "is damaged, or not of an evaluation")
    other = [s for s in settings if s.partition("=")[0].lstrip("+~") not in allowed and not _of_machine(s)]
    return _left_out(path, f"was made with {' '.join(other)}") if other else measured


def _are_numbers(values: dict[str, Any]) -> bool:
    return all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in values.values())


def _left_out(path: Path, why: str) -> None:
    print(f"warning: {path} {why}; it is left out", file=sys.stderr, flush=True)
