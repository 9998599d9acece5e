"""Finished runs on disk: which of them are a row's, what they measured, and what several seeds say together."""

from __future__ import annotations

import functools
import json
import statistics
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tdaf.cli.compose import Config, differences

PLACES = ("data.root", "demo.root")  # where a disk is mounted
SEED, PROTOCOL = "seed", "task.protocol"
KINDS = {"config": dict, "metrics": dict, "metric": dict, "samples": int, "protocol": str, "params": int}


@dataclass(frozen=True)
class Run:
    """A finished run: its folder, its settings and all that its summary.json says. written: when, in nanoseconds."""

    folder: Path
    config: Config
    summary: dict[str, Any]
    written: int


@dataclass(frozen=True)
class Finished:
    """What a run measured. values: the evaluator's numbers by name. samples: how many it counted. protocol: how."""

    folder: Path
    seed: int
    values: dict[str, float]
    samples: int
    protocol: str


def runs(folders: Sequence[Path]) -> list[Run]:
    """Every finished run below the folders. A summary.json that is damaged or not a run's is left out with a warning."""
    paths = {path.resolve(): path for folder in folders for path in folder.rglob("summary.json")}
    return [run for run in (_read(path, _stamp(path)) for path in sorted(paths.values())) if run]


def finished(configs: Sequence[Config], evaluate: Sequence[str], folders: Sequence[Path]) -> list[Finished]:
    """The finished runs of one row, by seed: those that `equal` one of its composed settings, whatever their seed, below
    the folders or where the settings put them.

    evaluate: settings of scripts/evaluate.py, as [protocol=10crop]: its numbers count, and a run without them does
    not; [] : the run's own last evaluation. Of several runs of one seed the newest counts.
    """
    return by_seed([run for run in runs(places(configs, folders)) if any(equal(run.config, c) for c in configs)], evaluate)


def places(configs: Sequence[Config], folders: Sequence[Path]) -> list[Path]:
    """The folders and the runs' own, which may lie elsewhere."""
    return [*folders, *(Path(config["run_dir"]) for config in configs)]


def equal(a: Config, b: Config) -> bool:
    """Whether two runs are the same but for the seed and the place of their data. Drawn data and a data set of one's
    own, with which the demo recipe trains as well, are not the same."""
    drawn = [bool(config.get("demo")) and config["data"]["root"] is None for config in (a, b)]
    return drawn[0] == drawn[1] and not differences(a, b, (SEED, *PLACES))


def by_seed(found: Sequence[Run], evaluate: Sequence[str]) -> list[Finished]:
    """What each run measured, one of each seed."""
    newest = sorted(found, key=lambda run: run.written)
    measured = {run.config[SEED]: numbers for run in newest if (numbers := measurement(run, evaluate))}
    return [measured[seed] for seed in sorted(measured)]


def measurement(run: Run, evaluate: Sequence[str]) -> Finished | None:
    """None where the run was not evaluated like that. Without a protocol in `evaluate` its newest evaluation counts."""
    said, values = run.summary, run.summary["metrics"]
    if evaluate:
        asked = dict(of_task(setting).split("=", 1) for setting in evaluate)
        paths = sorted(run.folder.glob(f"evaluation-{asked.get(PROTOCOL, '*')}.json"), key=_stamp)
        read = [said for said in (_evaluation(path, _stamp(path), tuple(asked)) for path in paths) if said]
        if not read:
            return None
        said = read[-1]
        values = said["values"]
    return Finished(run.folder, run.config[SEED], values, said["samples"], said["protocol"])


def of_task(setting: str) -> str:
    """As scripts/evaluate.py reads it: protocol=10crop is task.protocol=10crop."""
    return setting if "." in setting.partition("=")[0] else f"task.{setting}"


def is_place(key: str) -> bool:
    """Whether a setting says where the data lie and which hardware reads them: of an evaluation as of a training."""
    return key == "gpus" or key in PLACES or key.startswith("loader.")


def comparable(found: Sequence[Finished]) -> tuple[list[Finished], str]:
    """(the runs whose mean means something, a note that names the others, "" where there are none): those of the most
    frequent protocol and number of samples."""
    kinds = Counter((run.protocol, run.samples) for run in found)
    if len(kinds) < 2:
        return list(found), ""
    (protocol, samples), _ = max(kinds.items(), key=lambda kind: (kind[1], kind[0][1]))
    same = [run for run in found if (run.protocol, run.samples) == (protocol, samples)]
    others = [f"{run.folder} ({run.protocol}, {run.samples} samples)" for run in found if run not in same]
    return same, f"not in the mean, which is of {protocol} on {samples} samples: {', '.join(others)}"


def mean_and_spread(values: Sequence[float], digits: int = 1) -> str:
    """"78.4" of one value; "78.4 ± 0.2 (n=3)", mean and sample standard deviation, of several; "-" of none."""
    if not values:
        return "-"
    mean = statistics.fmean(values)
    if len(values) == 1:
        return f"{mean:.{digits}f}"
    squares = sum((value - mean) ** 2 for value in values)
    return f"{mean:.{digits}f} ± {(squares / (len(values) - 1)) ** 0.5:.{digits}f} (n={len(values)})"


def _stamp(path: Path) -> int:
    """When a file was written, in nanoseconds; 0 for one that is gone."""
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return 0


@functools.lru_cache(maxsize=None)  # a table asks for every row, and a file is to be read, and warned of, once
def _read(path: Path, stamp: int) -> Run | None:
    said = _json(path, KINDS)
    if said is None:
        return None
    config = said["config"]
    whole = all(isinstance(config.get(part), dict) for part in ("trainer", "data", "task")) and SEED in config
    if not (whole and _numbers(said["metrics"]) and said["metric"].get("name") in said["metrics"]):
        return _left_out(path, "is not of a run")
    return Run(path.parent, config, said, stamp)


@functools.lru_cache(maxsize=None)
def _evaluation(path: Path, stamp: int, asked: tuple[str, ...]) -> dict[str, Any] | None:
    """asked: the settings that its protocol may have changed."""
    said = _json(path, {"values": dict, "samples": int, "protocol": str})
    if said is None:
        return None
    settings = said.get("settings", [])
    if not _numbers(said["values"]) or not isinstance(settings, list):
        return _left_out(path, "is not of an evaluation")
    keys = {setting: setting.partition("=")[0].lstrip("+~") for setting in map(str, settings)}
    other = [setting for setting, key in keys.items() if key not in (PROTOCOL, *asked) and not is_place(key)]
    return _left_out(path, f"was made with {' '.join(other)}") if other else said


def _json(path: Path, kinds: dict[str, type]) -> dict[str, Any] | None:
    try:
        said = json.loads(path.read_text())
    except OSError as error:
        return _left_out(path, f"cannot be read: {error.strerror}")
    except ValueError:
        return _left_out(path, "is damaged")
    if not isinstance(said, dict) or not all(isinstance(said.get(key), kind) for key, kind in kinds.items()):
        return _left_out(path, "was not written by train.py or scripts/evaluate.py")
    return said


def _numbers(values: dict[str, Any]) -> bool:
    return all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in values.values())


def _left_out(path: Path, why: str) -> None:
    print(f"warning: {path} {why}; it is left out", file=sys.stderr, flush=True)
