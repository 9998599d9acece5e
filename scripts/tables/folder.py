"""The table of a folder of runs, of a sweep say: a row a setting, and of the settings those that differ."""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tables import found
from tables.differing import differing, order
from tables.found import Finished, Run
from tables.render import Grid

from tdaf.cli.compose import Config, differences, from_folder, identity
from tdaf.errors import UserError

METRICS = 6  # the evaluator's first ones; COCO's AP without its AR
OF_GATES = ("flows", "anar", "eta", "gated", "depthwise", "tdaf")  # mean nothing to a plain backbone


@dataclass(frozen=True)
class _Row:
    """The runs of one setting. measured: those that are averaged. note: on those that are not."""

    config: Config
    runs: list[Run]
    measured: list[Finished]
    note: str

    @property
    def protocol(self) -> tuple[str, int]:
        return self.measured[0].protocol, self.measured[0].samples

    def values(self, metric: str) -> list[float]:
        return [run.values[metric] for run in self.measured if metric in run.values]


def of_folder(folder: Path, evaluate: Sequence[str] = ()) -> list[Grid]:
    """A table of each task whose runs lie below the folder. Runs that differ in the seed alone are one row.

    evaluate: as in `found.finished`. Raises UserError for a folder without runs.
    """
    if not folder.is_dir():
        raise UserError(f"{folder} is no folder; give the folder of a sweep's runs, as runs/cifar10")
    runs, unfinished = found.runs([folder]), _unfinished(folder)
    if not runs and not unfinished:
        raise UserError(f"{folder} has no runs in it; python train.py makes them, with -m several at once")
    tasks = sorted({config["name"] for config in [*(run.config for run in runs), *unfinished.values()]})
    return [
        _table(
            folder,
            task,
            [run for run in runs if run.config["name"] == task],
            {place: config for place, config in unfinished.items() if config["name"] == task},
            evaluate,
        )
        for task in tasks
    ]


def _table(
    folder: Path, task: str, runs: list[Run], unfinished: dict[Path, Config], evaluate: Sequence[str]
) -> Grid:
    rows = _rows(runs, evaluate)
    settings, notes = differing([row.config for row in rows])
    places = sorted(range(len(rows)), key=lambda place: [order(values[place]) for values in settings.values()])
    measured = {title: [values[place] for place in places] for title, values in _shown(settings).items()}
    ordered = [rows[place] for place in places]
    metrics = _metrics(ordered)
    measured |= _sizes(ordered) | _numbers(ordered, metrics[:METRICS]) | _circumstances(ordered)
    if len(metrics) > METRICS:
        notes.append(f"further numbers are in summary.json: {', '.join(metrics[METRICS:])}")
    notes += [row.note for row in ordered if row.note]
    known = {run.folder for row in rows for run in row.measured}
    asked = " ".join(evaluate)
    notes += [
        f"not evaluated with {asked}: {run.folder}"
        for run in runs
        if run.folder not in known and evaluate and found.measurement(run, evaluate) is None
    ]
    notes += [f"unfinished: {place} ({_progress(place, config)})" for place, config in unfinished.items()]
    title = f"{task}: {len(runs)} finished run{'' if len(runs) == 1 else 's'} in {folder}"
    cells = [list(row) for row in zip(*measured.values(), strict=True)]
    return Grid(title, list(measured), cells, notes, labels=len(settings))


def _rows(runs: list[Run], evaluate: Sequence[str]) -> list[_Row]:
    groups: dict[str, list[Run]] = {}
    for run in runs:
        key = json.dumps(identity(run.config, (found.SEED,)), sort_keys=True, default=str)
        groups.setdefault(key, []).append(run)
    rows = []
    for group in groups.values():
        measured, note = found.comparable(found.by_seed(group, evaluate))
        if measured:
            rows.append(_Row(group[0].config, group, measured, note))
    return rows


def _shown(settings: dict[str, list[Any]]) -> dict[str, list[str]]:
    return {title: [_text(value) for value in values] for title, values in settings.items()}


def _text(value: Any) -> str:
    """As one writes it on the command line."""
    if isinstance(value, str):
        return value
    if isinstance(value, float):
        return f"{value:g}"
    return json.dumps(value, separators=(",", ":"), default=str)


def _metrics(rows: list[_Row]) -> list[str]:
    """The task's own first, then in the evaluator's order."""
    own = [row.runs[0].summary["metric"]["name"] for row in rows]
    return list(dict.fromkeys([*own, *(name for row in rows for run in row.measured for name in run.values)]))


def _sizes(rows: list[_Row]) -> dict[str, list[str]]:
    summaries = [row.runs[0].summary for row in rows]
    gflops = [summary.get("gflops") for summary in summaries]
    return {
        "Params": [f"{summary['params'] / 1e6:.3f}M" for summary in summaries],
        "GFLOPs": [f"{value:.3f}" if isinstance(value, (int, float)) else "-" for value in gflops],
    }


def _numbers(rows: list[_Row], metrics: list[str]) -> dict[str, list[str]]:
    """A column a metric, and behind the task's own its difference to the plain backbone, where that is there."""
    columns = {}
    for place, metric in enumerate(metrics):
        values = [row.values(metric) for row in rows]
        every = [abs(value) for own in values for value in own]
        whole = all(isinstance(value, int) for value in every)
        digits = 0 if whole else 2 if max(every, default=0) >= 10 else 3
        columns[metric] = [found.mean_and_spread(own, digits) for own in values]
        if place == 0:
            gains = [_gain(row, rows, metric) for row in rows]
            if any(gain is not None for gain in gains):
                columns["to plain"] = ["-" if gain is None else f"{gain:+.{digits}f}" for gain in gains]
    return columns


def _gain(row: _Row, rows: list[_Row], metric: str) -> float | None:
    """None for the plain backbone itself, and where no single one was trained and evaluated alike."""
    if row.config["flows"] == 1 or not row.values(metric):
        return None
    alike = [
        other
        for other in rows
        if other.config["flows"] == 1
        and other.values(metric)
        and other.protocol == row.protocol
        and not differences(other.config, row.config, (found.SEED, *OF_GATES))
    ]
    nearest = [r for r in alike if not differences(r.config, row.config, (found.SEED, "flows", "tdaf.flows"))] or alike
    if len(nearest) != 1:
        return None
    return statistics.fmean(row.values(metric)) - statistics.fmean(nearest[0].values(metric))


def _circumstances(rows: list[_Row]) -> dict[str, list[str]]:
    seconds = [[run.summary["seconds"] for run in row.runs if "seconds" in run.summary] for row in rows]
    return {
        "Protocol": [row.protocol[0] for row in rows],
        "Samples": [str(row.protocol[1]) for row in rows],
        "Seconds": [f"{statistics.fmean(own):.0f}" if own else "-" for own in seconds],
    }


def _unfinished(folder: Path) -> dict[Path, Config]:
    """Runs that have begun and have no summary, or a damaged one, as train.py sees it."""
    known = {run.folder for run in found.runs([folder])}
    begun = {}
    for path in sorted(folder.rglob("config.yaml")):
        if path.parent in known:
            continue
        try:
            config = from_folder(path.parent)
        except UserError:
            continue
        if "name" in config:
            begun[path.parent] = config
    return begun


def _progress(folder: Path, config: Config) -> str:
    """How far a run got, by the last line that it logged."""
    try:
        lines = (folder / "metrics.jsonl").read_text().splitlines()
    except OSError:
        lines = []
    for line in reversed(lines):
        try:
            event = json.loads(line)
            said = f"step {event['step']}, epoch {event['epoch']:g}"
        except (ValueError, KeyError, TypeError):
            continue  # the line that a kill cut off
        epochs, steps = (config["trainer"].get(name) for name in ("epochs", "max_steps"))
        return said + (f" of {epochs}" if epochs else "") + (f", at most {steps} steps" if steps else "")
    return "no step logged yet"
