"""Trains and evaluates what a table lacks."""

from __future__ import annotations

import functools
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from tables import found

from tdaf.cli import sweep
from tdaf.cli.compose import Config, compose, identity, overridden
from tdaf.cli.overrides import parse


class Row(NamedTuple):
    """name: of it, for messages. settings: overrides of train.py, Hydra's own among them choose the launcher.
    evaluate: settings of scripts/evaluate.py, [] for none."""

    name: str
    settings: list[str]
    evaluate: list[str]


@dataclass(frozen=True)
class _Wanted:
    """A run of one row or of several. names: of the rows. evaluations: what they ask for. places: overrides of each
    evaluation, as of the training."""

    names: list[str]
    config: Config
    text: str
    evaluations: list[list[str]]
    places: list[str]

    def overrides(self, evaluate: Sequence[str]) -> list[str]:
        return [*map(found.of_task, evaluate), *self.places]


def run(rows: Sequence[Row], folders: Sequence[Path]) -> int:
    """Trains what is missing below `folders`, goes on with what is unfinished, evaluates what lacks its evaluation.

    Rows of equal settings are one run. Returns the worst exit code. Raises UserError, before anything starts, where one
    of them cannot work; SystemExit when told to stop.
    """
    hydras = list(dict.fromkeys(setting for row in rows for setting in sweep.parted(row.settings)[0]))
    missing = []
    for wanted in _wanted(rows):
        job = _job(wanted, folders)
        if job:
            missing.append((wanted, job))
    if not missing:
        return 0
    _check_evaluations([wanted for wanted, _ in missing])
    codes = sweep.launched([job for _, job in missing], hydras)
    for (wanted, _), code in zip(missing, codes, strict=True):
        if code:
            print(f"failed with exit code {code}: {', '.join(wanted.names)}", file=sys.stderr, flush=True)
    return max(codes)


def _wanted(rows: Sequence[Row]) -> list[_Wanted]:
    """Each run once, in the order of the rows."""
    runs: dict[str, _Wanted] = {}
    for row in rows:
        overrides = sweep.parted(row.settings)[1]
        config = compose(overrides)
        key = json.dumps(identity(config), sort_keys=True, default=str)
        if key not in runs:
            places = [text for text in overrides if found.is_place(parse(text).key)]
            runs[key] = _Wanted([], config, " ".join(overrides), [], places)
        runs[key].names.append(row.name)
        if row.evaluate and row.evaluate not in runs[key].evaluations:
            runs[key].evaluations.append(row.evaluate)
    return list(runs.values())


def _job(wanted: _Wanted, folders: Sequence[Path]) -> sweep.Job | None:
    """None where everything is there."""
    config, names = wanted.config, ", ".join(wanted.names)
    done = [run for run in found.runs(found.places([config], folders)) if found.equal(run.config, config)]
    done = sorted((run for run in done if run.config[found.SEED] == config[found.SEED]), key=lambda run: run.written)
    lacking = [e for e in wanted.evaluations if not any(found.measurement(run, e) for run in done)]
    if done and not lacking:
        print(f"{names}: finished in {done[-1].folder}", flush=True)
        return None
    folder = config["run_dir"]
    if done:
        folder = str(done[-1].folder)
        config = {**done[-1].config, "run_dir": folder, "gpus": 0}  # to say that it is finished takes no GPU
    then = None
    if lacking:
        from tdaf.cli.evaluation import evaluate_in_turn  # torch
        from tdaf.settings import named_modules

        evaluations = [wanted.overrides(evaluate) for evaluate in lacking]
        then = functools.partial(evaluate_in_turn, folder, evaluations, named_modules(wanted.config))
    return sweep.Job(config, f"{names}: {wanted.text}", then)


def _check_evaluations(runs: Sequence[_Wanted]) -> None:
    """Raises UserError for an evaluation that cannot work after a training that could. Many rows share one."""
    from tdaf.cli import build

    seen = set()
    for wanted, evaluate in ((wanted, evaluate) for wanted in runs for evaluate in wanted.evaluations):
        config = overridden(wanted.config, wanted.overrides(evaluate))
        key = json.dumps([config["task"], config["data"], config["demo"]], sort_keys=True, default=str)
        if key not in seen:
            build.task(config).dataset("val")
            seen.add(key)
