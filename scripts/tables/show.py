"""A table as a grid of texts: ours, the paper's, the difference."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tables import rows as of_table
from tables.counts import THROUGHPUT, Counts, counts, hours, seen
from tables.found import Finished, comparable, finished, mean_and_spread
from tables.latency import measured
from tables.printed import Printed, printed
from tables.render import Grid
from tables.rows import DEMO, Row, Table

from tdaf.cli.compose import Config
from tdaf.errors import UserError

PARAMETERS = ("params", "gates", "params_published")
INCREASE = "_increase"
PLACES = ("data.root=", "gpus=", "loader.")  # settings of the machine, not of the network or its training


@dataclass(frozen=True)
class Filled:
    """A row with what is known of it. why: the reason for its dashes. runs: those finished, by seed."""

    row: Row
    why: str
    config: Config | None
    counts: Counts | None
    published: int | None
    runs: list[Finished]
    apart: str


def grid(table: Table, more: Sequence[str], seeds: Sequence[int], folders: Sequence[Path]) -> Grid:
    """more: overrides of every row. seeds: of the runs that count; [] for all. folders: of runs. Raises UserError where
    none of the rows can be built."""
    adapted = of_table.adapted(table, more)
    filled = [_filled(adapted, row, more, seeds, folders) for row in adapted.rows]
    if all(found.why for found in filled):
        raise UserError(next(found.why for found in filled if not found.row.dash))
    firsts = {found.row.group: found for found in reversed(filled)}
    columns: dict[str, list[str]] = {}
    if any(found.row.group for found in filled):
        columns[table.groups] = [found.row.group for found in filled]
    columns["Row"] = [found.row.name for found in filled]
    labels = len(columns)
    for key, title in adapted.texts.items():
        columns[title] = [found.row.paper.get(key, "-") for found in filled]
    for key, title in adapted.counts.items():
        if key == "params_published" and not adapted.published:
            continue
        values = [_count(found, firsts[found.row.group], key) for found in filled]
        columns |= _beside(adapted, title, key, values, filled)
    for key, title in adapted.measured.items():
        columns[title] = [measured(found.row, key) for found in filled]
    if table.samples and DEMO not in more:
        columns["GPU-hours (estimate)"] = [_hours(table, found) for found in filled]
    for key, title in adapted.metrics.items():
        columns |= _metric(adapted, title, key, filled, firsts)
    commands = [(of_table.name(found.row), of_table.command(adapted, found.row, more, seeds)) for found in filled]
    cells = [list(row) for row in zip(*columns.values(), strict=True)]
    return Grid(adapted.title, list(columns), cells, _notes(adapted, more, filled), commands, labels)


def _filled(table: Table, row: Row, more: Sequence[str], seeds: Sequence[int], folders: Sequence[Path]) -> Filled:
    if row.dash:
        return Filled(row, row.dash, None, None, None, [], "")
    given = of_table.overrides(table, row, more)
    config = of_table.composed(tuple(given))
    runs, apart = [], ""
    if table.samples:
        every = [of_table.composed((*given, f"seed={seed}")) for seed in seeds] or [config]
        runs = finished(every, table.evaluate, folders)
        runs, apart = comparable([run for run in runs if not seeds or run.seed in seeds])
    why, counted, published = "", None, None
    try:
        counted = _counted(table, row, config)
        if table.published:
            other = of_table.composed(tuple(of_table.overrides(table, row, [*table.published["settings"], *more])))
            published = counts(other, table.published["input"], table.published["classes"]).params
    except UserError as error:
        why = str(error)
    return Filled(row, why, config, counted, published, runs, apart)


def problem(table: Table, row: Row, more: Sequence[str]) -> str:
    """Why a row of an adapted table has a dash for everything; "" where it has not."""
    return _filled(table, row, more, [], []).why


def _counted(table: Table, row: Row, config: Config) -> Counts:
    return counts(config, row.input or table.input, row.classes or table.classes)


def _count(found: Filled, first: Filled, key: str) -> float | None:
    """A number; for "..._increase" that over the first row of the group, in percent, or that row's own number."""
    if key == "params_published":
        return found.published
    name = key.removesuffix(INCREASE)
    if found.counts is None or first.counts is None:
        return None
    value, base = (getattr(counts, name) for counts in (found.counts, first.counts))
    return value if found is first or name == key else 100 * (value / base - 1)


def _beside(
    table: Table, title: str, key: str, values: Sequence[float | None], filled: Sequence[Filled]
) -> dict[str, list[str]]:
    """The columns ours, theirs and difference, in their digits; ours alone where nothing is printed."""
    texts = [found.row.paper.get(key) for found in filled]
    theirs = [_of_digits(printed(text), key) for text in texts]
    usual = next(filter(None, theirs), None)
    ours, gaps = [], []
    for place, (value, their) in enumerate(zip(values, theirs, strict=True)):
        absolute = key.endswith(INCREASE) and all(f.row.group != filled[place].row.group for f in filled[:place])
        digits = None if absolute else their or usual
        ours.append("-" if value is None else digits.ours(value) if digits else _plain(key, value, absolute))
        gaps.append(their.difference(value) if their and value is not None else "-")
    if not any(texts):
        return {title: ours}
    return {title: ours, f"{title} {table.reference}": [text or "-" for text in texts], f"{title} difference": gaps}


def _of_digits(theirs: Printed | None, key: str) -> Printed | None:
    """An increase has a sign and at least one digit behind the point."""
    if theirs is None or not key.endswith(INCREASE):
        return theirs
    return Printed(theirs.value, max(1, theirs.digits), theirs.unit, signed=True)


def _plain(key: str, value: float, absolute: bool) -> str:
    """Where no paper says in which digits."""
    if key.endswith(INCREASE) and not absolute:
        return f"{value:+.1f}%"
    if key.removesuffix(INCREASE) == "gates":
        return f"{value:,}"
    if key.removesuffix(INCREASE) in PARAMETERS:
        return f"{value / 1e6:.3f}M"
    return f"{value:.3f}" if 0 < value < 10 else f"{value:.2f}" if value else "0"


def _hours(table: Table, found: Filled) -> str:
    if found.counts is None or found.config is None:
        return "-"
    needed = hours(found.counts.gflops, seen(found.config, table.samples))
    if needed < 0.1:
        return "<0.1"
    return f"{needed:.1f}" if needed < 10 else f"{needed:.0f}"


def _metric(
    table: Table, title: str, key: str, filled: Sequence[Filled], firsts: dict[str, Filled]
) -> dict[str, list[str]]:
    """Ours and the paper's; the difference where anything was trained."""
    texts = [found.row.paper.get(key) for found in filled]
    ours, gaps = [], []
    for found, text in zip(filled, texts, strict=True):
        values, theirs = _values(table, key, found), printed(text)
        mean = statistics.fmean(values) if values else None
        digits = theirs.digits if theirs else 1
        shown = mean_and_spread(values, digits)
        if table.relative and found is not firsts[found.row.group]:
            base = _values(table, key, firsts[found.row.group])
            mean = mean - statistics.fmean(base) if values and base else None
            shown = "-" if mean is None else f"{mean:+.{digits}f}"
        ours.append(shown)
        gaps.append(theirs.difference(mean) if theirs and mean is not None else "-")
    columns = {title: ours}
    if any(texts):
        columns[f"{title} {table.reference}"] = [text or "-" for text in texts]
    if any(gap != "-" for gap in gaps):
        columns[f"{title} difference"] = gaps
    return columns


def _values(table: Table, key: str, found: Filled) -> list[float]:
    return [table.scale * run.values[key] for run in found.runs if run.values.get(key, -1) >= 0]


def _notes(table: Table, more: Sequence[str], filled: Sequence[Filled]) -> list[str]:
    notes = []
    if table.counts:
        own = [f"{of_table.name(f.row)}: {_shape(f.row.input)}" for f in filled if f.row.input]
        others = f" ({'; '.join(own)})" if own else ""
        notes.append(f"GFLOPs: 10^9 multiply-adds of one input of {_shape(table.input)}{others}, counted.")
    if table.metrics:
        how = f"python scripts/evaluate.py checkpoint=RUN_FOLDER {' '.join(table.evaluate)}" if table.evaluate else ""
        how = f"evaluated with {how}" if how else "of their last evaluation"
        notes.append(f"{', '.join(table.metrics.values())}: of finished runs, {how}; - where there is none.")
    if table.samples and DEMO not in more:
        notes.append(
            "GPU-hours are an estimate, not a measurement: 3 x GFLOPs x samples seen in training, at an assumed "
            f"{THROUGHPUT:g} x 10^12 multiply-adds a second (one H100, bf16); without reading and evaluation."
        )
    own = [text for text in more if text != DEMO and not text.startswith(PLACES)]
    if own:
        notes.append(f"All rows have {' '.join(own)}, which the paper's numbers were not made with.")
    return [*notes, *table.notes, *(note for found in filled for note in _of_row(found))]


def _of_row(found: Filled) -> list[str]:
    said = [found.row.note, f"no counts: {found.why}" if found.why else "", found.apart]
    if found.runs:
        run = found.runs[0]
        said.append(f"{run.protocol}, {run.samples:,} samples: {', '.join(str(run.folder) for run in found.runs)}")
    return [f"{of_table.name(found.row)}: {text}" for text in said if text]


def _shape(size: Sequence[int]) -> str:
    return " x ".join(map(str, size))
