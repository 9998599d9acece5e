"""Trains and evaluates what a table lacks."""

from __future__ import annotations

import functools
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tables import found

from configs import sweep
from configs.compose import Config, compose, identity, overridden
from configs.overrides import parse


@dataclass(frozen=True)
class _Wanted:
    """A run of one row or of several. names: of the rows. evaluate: overrides of its evaluation, [] for none."""

    names: list[str]
    config: Config
    text: str
    evaluate: list[str]


def run(rows: Sequence[tuple[str, list[str]]], evaluate: Sequence[str], folders: Sequence[Path]) -> int:
    """Trains what is missing below `folders`, goes on with what is unfinished, evaluates what lacks its evaluation.

    rows: (name, overrides of train.py) of each run; those of equal settings are one run. Hydra's own settings among
    the overrides choose the launcher. evaluate: settings of scripts/evaluate.py, [] for none. Returns the worst exit
    code. Raises UserError, before anything starts, where one of them cannot work; SystemExit when told to stop.
    """
    hydras = list(dict.fromkeys(setting for _, overrides in rows for setting in sweep.parted(overrides)[0]))
    missing = []
    for wanted in _wanted(rows, evaluate):
        job = _job(wanted, evaluate, folders)
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


def _wanted(rows: Sequence[tuple[str, list[str]]], evaluate: Sequence[str]) -> list[_Wanted]:
    """Each run once, in the order of the rows."""
    runs: dict[str, _Wanted] = {}
    for name, given in rows:
        overrides = sweep.parted(given)[1]
        config = compose(overrides)
        key = json.dumps(identity(config), sort_keys=True, default=str)
        if key in runs:
            runs[key].names.append(name)
            continue
        places = [text for text in overrides if _is_place(parse(text).key)] if evaluate else []
        runs[key] = _Wanted([name], config, " ".join(overrides), [*map(_of_task, evaluate), *places])
    return list(runs.values())


def _job(wanted: _Wanted, evaluate: Sequence[str], folders: Sequence[Path]) -> sweep.Job | None:
    """None where everything is there."""
    config, names = wanted.config, ", ".join(wanted.names)
    done = [run for run in found.runs(found.places([config], folders)) if found.equal(run.config, config)]
    done = [run for run in done if run.config[found.SEED] == config[found.SEED]]
    for run in done:
        if found.measurement(run, evaluate):
            print(f"{names}: finished in {run.folder}", flush=True)
            return None
    folder = config["run_dir"]
    if done:
        newest = max(done, key=lambda run: run.written)
        folder = str(newest.folder)
        config = {**newest.config, "run_dir": folder, "gpus": 0}  # to say that it is finished takes no GPU
    then = None
    if wanted.evaluate:
        from configs.evaluation import evaluate_checkpoint  # torch

        then = functools.partial(evaluate_checkpoint, folder, wanted.evaluate)
    return sweep.Job(config, f"{names}: {wanted.text}", then)


def _check_evaluations(runs: Sequence[_Wanted]) -> None:
    """Raises UserError for an evaluation that cannot work after a training that could. Many rows share one."""
    from configs import build

    seen = set()
    for wanted in runs:
        config = overridden(wanted.config, wanted.evaluate)
        key = json.dumps([config["task"], config["data"], config["demo"]], sort_keys=True, default=str)
        if wanted.evaluate and key not in seen:
            build.task(config).dataset("val")
            seen.add(key)


def _is_place(key: str) -> bool:
    """Whether a setting says where the data lie and which hardware reads them: of an evaluation as of a training."""
    return key == "gpus" or key in found.PLACES or key.startswith("loader.")


def _of_task(setting: str) -> str:
    """As scripts/evaluate.py reads it: protocol=10crop is task.protocol=10crop."""
    return setting if "." in setting.partition("=")[0] else f"task.{setting}"
