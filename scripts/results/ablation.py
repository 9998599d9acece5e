"""The table of a folder of runs, of a sweep say: a row a setting, and of the settings those in which they differ."""

from __future__ import annotations

import functools
import json
import re
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from omegaconf import OmegaConf

from results.runs import SEED, Result, Run, by_key, composed, find, key, protocols, result, results
from results.tabular import TextTable, mean_and_deviation
from tdaf.cli.compose import FOLDER, Config, flat, from_folder, identity
from tdaf.errors import UserError

METRICS = 6  # columns of the evaluator's first numbers; COCO's AP without its AR
SETTINGS = 8  # columns
FIRST = ("backbone", "attention", "tdaf", "recipe", "anar", "flows", "eta")
OF_GATES = ("flows", "anar", "eta", "gated", "depthwise", "tdaf")  # mean nothing to a plain backbone
TARGET = "._target_"
ABSENT = "-"


class _Row(NamedTuple):
    """The runs of one setting, and what they measured."""

    runs: list[Run]
    results: list[Result]

    @property
    def config(self) -> Config:
        return self.runs[0].config

    def values(self, metric: str) -> list[float]:
        return [one.values[metric] for one in self.results if metric in one.values]


def folder_tables(folder: Path, evaluate: Sequence[str] = ()) -> list[TextTable]:
    """A table of each task whose runs lie below the folder. Runs that differ in the seed alone are one row.

    evaluate: as in `runs.result`. Raises UserError for a folder without runs.
    """
    if not folder.is_dir():
        raise UserError(f"{folder} is no folder; give the folder of a sweep's runs, as runs/cifar10")
    runs, unfinished = find([folder]), {}
    known = {run.folder for run in runs}
    for path in sorted(folder.rglob("config.yaml")):
        with suppress(UserError):  # another program's, or damaged
            if path.parent not in known:
                unfinished[path.parent] = from_folder(path.parent)["name"]
    if not runs and not unfinished:
        raise UserError(f"{folder} has no runs in it; python train.py makes them, with -m several at once")
    tables = []
    for task in sorted({*(run.config["name"] for run in runs), *unfinished.values()}):
        own = [run for run in runs if run.config["name"] == task]
        title = f"{task}: {len(own)} finished run{'' if len(own) == 1 else 's'} in {folder}"
        tables.append(_table(title, own, [path for path, name in unfinished.items() if name == task], evaluate))
    return tables


def _table(title: str, runs: Sequence[Run], unfinished: Sequence[Path], evaluate: Sequence[str]) -> TextTable:
    rows = [_Row(same, results(same, evaluate)) for same in by_key(runs, (SEED,)).values()]
    rows = [row for row in rows if row.results]
    settings, notes = differing([row.config for row in rows])
    order = sorted(range(len(rows)), key=lambda place: [sorting(values[place]) for values in settings.values()])
    rows = [rows[place] for place in order]
    columns = {name: [_text(values[place]) for place in order] for name, values in settings.items()}
    columns["Params"] = [f"{row.runs[0].summary['params'] / 1e6:.3f}M" for row in rows]
    gflops = [row.runs[0].summary.get("gflops") for row in rows]
    columns["GFLOPs"] = ["-" if value is None else f"{value:.3f}" for value in gflops]
    # the task's own first, then in the evaluator's order
    own = [row.runs[0].summary["metric"]["name"] for row in rows]
    metrics = list(dict.fromkeys([*own, *(name for row in rows for one in row.results for name in one.values)]))
    for metric in metrics[:METRICS]:
        values = [value for row in rows for value in row.values(metric)]
        digits = 0 if all(isinstance(value, int) for value in values) else 2 if max(map(abs, values)) >= 10 else 3
        columns[metric] = [mean_and_deviation(row.values(metric), digits) for row in rows]
        gains = [_gain(row, rows, metric) for row in rows]
        if metric == metrics[0] and any(gain is not None for gain in gains):
            columns["to plain"] = ["-" if gain is None else f"{gain:+.{digits}f}" for gain in gains]
    columns["Protocol"] = [" and ".join(sorted({one.protocol for one in row.results})) for row in rows]
    columns["Samples"] = [" and ".join(sorted({str(one.samples) for one in row.results})) for row in rows]
    seconds = [[run.summary["seconds"] for run in row.runs if "seconds" in run.summary] for row in rows]
    columns["Seconds"] = [f"{np.mean(own):.0f}" if own else "-" for own in seconds]
    if len(metrics) > METRICS:
        notes.append(f"further numbers are in summary.json: {', '.join(metrics[METRICS:])}")
    notes += [f"not evaluated with {evaluate[0]}: {run.folder}" for run in runs if not result(run, evaluate)]
    notes += [f"unfinished: {path}" for path in unfinished]
    cells = [list(row) for row in zip(*columns.values(), strict=True)]
    return TextTable(title, list(columns), cells, notes, labels=len(settings))


def _gain(row: _Row, rows: Sequence[_Row], metric: str) -> float | None:
    """Over the plain backbone that was trained and evaluated alike; None for that itself, and where there is none."""

    def alike(row: _Row) -> tuple[str, str]:
        return key(row.config, (SEED, *OF_GATES)), protocols(row.results)

    plain = [other for other in rows if other.config["flows"] == 1 and alike(other) == alike(row)]
    plain = [value for other in plain for value in other.values(metric)]
    if row.config["flows"] == 1 or not plain or not row.values(metric):
        return None
    return float(np.mean(row.values(metric)) - np.mean(plain))


def differing(configs: Sequence[Config]) -> tuple[dict[str, list[Any]], list[str]]:
    """({short name: its value in each of the configurations}, notes). What a chosen backbone, TDAF or recipe sets is
    told by the name of that; a setting that one does not have is "-"."""
    named = [_named(config) for config in configs]
    implied = [_implied(*(str(own.get(name)) for name in ("name", "recipe", "backbone", "tdaf"))) for own in named]
    values = {name: [own.get(name, ABSENT) for own in named] for name in sorted(set().union(*named))}
    names = [name for name, own in values.items() if len({*map(repr, own)}) > 1]
    # without those of which every run has what its files of configs/ say, and tdaf.flows, which says what flows says
    names = [n for n in names if n in FIRST or [own.get(n, ABSENT) for own in implied] != values[n] or not all(implied)]
    names = [n for n in names if "." not in n or values[n] != values.get(n.rpartition(".")[2])]
    names.sort(key=lambda name: (FIRST.index(name) if name in FIRST else len(FIRST), name))
    notes = [f"more settings differ: {', '.join(names[SETTINGS:])}"] if len(names) > SETTINGS else []
    short = {name: name.removesuffix(TARGET).rpartition(".")[2] for name in names[:SETTINGS]}
    times = Counter(short.values())
    return {title if times[title] == 1 else name: values[name] for name, title in short.items()}, notes


def sorting(value: Any) -> tuple:
    """Numbers as numbers, res18 before res101."""
    if isinstance(value, (bool, int, float)):
        return 1, value, ()
    parts = re.split(r"(\d+)", "" if value is None else str(value))
    return (0 if value is None else 2), 0, tuple(int(p) if place % 2 else p for place, p in enumerate(parts))


def _text(value: Any) -> str:
    """As one writes it on the command line."""
    if isinstance(value, float):
        return f"{value:g}"
    return value if isinstance(value, str) else json.dumps(value, separators=(",", ":"), default=str)


def _named(config: Config) -> dict[str, Any]:
    """The settings by their dotted names; "backbone", "attention" and "tdaf" say which file of configs/ was chosen."""
    values = identity(config, (SEED, "attention._target_", "attention._partial_", "backbone.attention"))
    values["data.root"] = config["data"].get("root")  # numbers of two data sets do not belong into one row
    mechanism = config.get("attention") or {"_target_": "none"}
    values["attention"] = _chosen("attention", flat(mechanism)) or str(mechanism["_target_"]).rpartition(".")[2]
    for group in ("backbone", "tdaf"):
        target = str(values.get(group + TARGET, ABSENT)).rpartition(".")[2]
        values[group] = _chosen(group, flat(config.get(group))) or target
    return values


def _chosen(group: str, settings: dict[str, Any]) -> str | None:
    """The file of configs/ that these settings are from; None for a network of the user's own."""

    def own(settings: dict[str, Any]) -> dict[str, Any]:  # a backbone is the same one with a mechanism in it
        return {name: value for name, value in settings.items() if not name.startswith("attention")}

    given = own(settings)
    for path in sorted((FOLDER / group).glob("*.yaml")):
        content = OmegaConf.to_container(OmegaConf.load(path))
        there = own(flat(content.get(group, content)))
        fixed = [name for name, value in there.items() if group == "backbone" and "${" not in str(value)]
        fixed.append("_target_")
        if there.keys() == given.keys() >= {"_target_"} and all(there[name] == given[name] for name in fixed):
            return path.stem
    return None


@functools.cache
def _implied(task: str, recipe: str, backbone: str, tdaf: str) -> dict[str, Any]:
    """What the names of these files say of a run; nothing of files of the user's own, or of another version."""
    try:
        return _named(composed(f"task={task}", f"recipe={recipe}", f"backbone={backbone}", f"tdaf={tdaf}"))
    except UserError:
        return {}
