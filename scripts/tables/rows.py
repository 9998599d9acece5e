"""The paper's tables as configs/table/ has them, and the command behind each of their rows."""

from __future__ import annotations

import difflib
import functools
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from omegaconf import OmegaConf

from tdaf.cli.compose import Config, compose
from tdaf.cli.overrides import FOLDER
from tdaf.errors import UserError

ORDER = ("1", "2", "3a", "3b", "4", "5", "6", "latency", "multiscale")
DEMO = "recipe=demo"
# what belongs to the size of a published run: the miniature has its own
SIZE = ("backbone", "pretrained", "trainer", "schedule", "optim", "task.train_transform")


EQUAL = (
    "The settings given make several of the paper's rows the same run. It is shown once, under its settings and "
    "without the paper's numbers, which are of other networks."
)
MINIATURE = (
    "In miniature (recipe=demo): drawn data, a narrow ResNet-18 for every backbone, a short schedule, no pretrained "
    "weights. It shows that the way from training to table works. Its numbers say nothing of the paper's networks, so "
    "the paper's are not beside them, and rows that differ in what the miniature does not have are one."
)


@dataclass(frozen=True)
class Row:
    """settings: overrides of train.py. paper: what is printed there, digit for digit, by the keys of Table.texts,
    counts and metrics. dash: why the row cannot be built; None if it can. input, classes: the table's, where they
    differ. command: what makes the row where train.py does not, "" where nothing does. benchmark: {column:
    "subject/key" of docs/benchmarks.json}."""

    name: str
    group: str = ""
    settings: list[str] = field(default_factory=list)
    paper: dict[str, str] = field(default_factory=dict)
    note: str = ""
    dash: str | None = None
    input: list[int] | None = None
    classes: int | None = None
    command: str | None = None
    benchmark: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Table:
    """groups: title of the rows' group. settings: overrides of every row. evaluate: settings of scripts/evaluate.py,
    whose numbers count; []: the run's own last evaluation. input, classes: of which is counted. demo: both of the
    miniature. texts, counts, metrics: {key: column title} of the paper's words, of what counts.py counts, and of the
    evaluator's numbers. scale: from those to the paper's. relative: metrics are gains over the first row of the group.
    reference: whose the printed numbers are. samples: of one training epoch; 0: nothing is trained.
    published: {settings, input, classes} of the network whose parameters the paper prints, where another is trained.
    """

    key: str
    title: str
    rows: list[Row]
    groups: str
    settings: list[str]
    input: list[int]
    classes: int
    demo: dict[str, Any] = field(default_factory=dict)
    evaluate: list[str] = field(default_factory=list)
    texts: dict[str, str] = field(default_factory=dict)
    counts: dict[str, str] = field(default_factory=dict)
    metrics: dict[str, str] = field(default_factory=dict)
    measured: dict[str, str] = field(default_factory=dict)
    scale: float = 1.0
    relative: bool = False
    reference: str = "paper"
    samples: int = 0
    published: dict[str, Any] | None = None
    notes: list[str] = field(default_factory=list)


def names() -> list[str]:
    """The tables in the order of the paper; further files of configs/table/ behind them."""
    found = {path.stem for path in (FOLDER / "table").glob("*.yaml")}
    return [*(name for name in ORDER if name in found), *sorted(found.difference(ORDER))]


def read(key: str) -> Table:
    """Raises UserError, with a did-you-mean, for a name without a table."""
    if key not in names():
        word = key.lower().removeprefix("table").strip()
        close = [word] if word in names() else difflib.get_close_matches(word, [*names(), "all"], n=1, cutoff=0.5)
        hint = f"did you mean {close[0]}? There" if close else "there"
        raise UserError(f"{key}: there is no such table or folder; {hint} are {', '.join(names())} and all")
    said = OmegaConf.to_container(OmegaConf.load(FOLDER / "table" / f"{key}.yaml"))
    return Table(key=key, **{**said, "rows": [Row(**row) for row in said["rows"]]})


def check(tables: Sequence[Table], more: Sequence[str]) -> None:
    """Raises UserError for a setting in `more` that a row does not take, as far as that shows without torch."""
    for table in tables:
        for row in adapted(table, more).rows:
            if not row.dash:
                composed(tuple(overrides(table, row, more)))


@functools.lru_cache(maxsize=None)  # a row is looked at more than once
def composed(settings: tuple[str, ...]) -> Config:
    """The configuration of these overrides; not to be changed."""
    return compose(list(settings))


def name(row: Row) -> str:
    return f"{row.group}, {row.name}" if row.group else row.name


def overrides(table: Table, row: Row, more: Sequence[str] = ()) -> list[str]:
    """The row's overrides of train.py: the table's, its own and `more`. Of one setting given twice the later one holds;
    with recipe=demo what belongs to the size of the published run is left out, its backbone among it."""
    more = _for(table, more)
    return _without([*_without(table.settings, row.settings), *row.settings], more) + more


def adapted(table: Table, more: Sequence[str]) -> Table:
    """The table as `more` changes it: with recipe=demo in miniature, and rows that `more` makes equal, such as those
    that differ in the backbone alone, as one, under their settings and without the paper's numbers, which are of other
    networks. Where numbers are relative, the rows of one baseline stay apart from those of another. A table of which
    nothing is trained keeps its rows."""
    more = _for(table, more)
    if not table.samples:
        return replace(table, rows=[_changed(row, more) for row in table.rows])
    demo = DEMO in more
    firsts = {row.group: row for row in reversed(table.rows)}
    groups: dict[str, dict[tuple, list[Row]]] = {}
    for row in table.rows:
        first = _without(firsts[row.group].settings, more) if table.relative else []
        own = sorted(_without(row.settings, more))
        groups.setdefault(" ".join(first), {}).setdefault((*own, row.dash and row.name), []).append(row)
    if not demo and all(len(rows) == 1 for group in groups.values() for rows in group.values()):
        return replace(table, rows=[_changed(row, more) for row in table.rows])
    names = [f"over {name}" if len(groups) > 1 else "" for name in groups]
    rows = [_together(same, name, more) for name, group in zip(names, groups.values()) for same in group.values()]
    if not demo:
        return replace(table, rows=rows, notes=[EQUAL, *table.notes])
    title = f"In miniature: {table.title}"
    return replace(table, title=title, rows=rows, notes=[MINIATURE], published=None, **table.demo)


def command(table: Table, row: Row, more: Sequence[str] = (), seeds: Sequence[int] = ()) -> str:
    """What makes the row on the command line, with data.root=PATH where it needs data; "" where nothing does."""
    if row.dash or row.command is not None:
        return row.command or ""
    given = overrides(table, row, more)
    sweep = ["-m"] if len(seeds) > 1 else []
    seed = [f"seed={','.join(map(str, seeds))}"] if seeds else []
    known = any(setting.startswith("data.root=") for setting in given)
    data = [] if known or DEMO in given or not table.samples else ["data.root=PATH"]
    return shlex.join(["python", "train.py", *sweep, *given, *seed, *data])


def _for(table: Table, more: Sequence[str]) -> list[str]:
    """What of `more` means something to a table: the miniature of what is not trained is itself."""
    return [text for text in more if table.samples or text != DEMO]


def _together(rows: list[Row], group: str, more: Sequence[str]) -> Row:
    first = _changed(rows[0], more)
    if first.dash:
        return replace(first, group=group, paper={})
    note = f"stands for {'; '.join(map(name, rows))}"
    return replace(first, name=" ".join(first.settings) or "as set", group=group, paper={}, note=note)


def _changed(row: Row, more: Sequence[str]) -> Row:
    """Without what `more` sets, and then without the paper's numbers."""
    kept = _without(row.settings, more)
    return row if kept == row.settings else replace(row, settings=kept, paper={})


def _without(settings: Sequence[str], later: Sequence[str]) -> list[str]:
    """The settings but for those that `later` sets again."""
    keys = {setting.lstrip("+~").partition("=")[0] for setting in later}
    dropped = [*keys, *(SIZE if DEMO in later else [])]
    return [s for s in settings if not any(f"{s.partition('=')[0]}.".startswith(f"{key}.") for key in dropped)]
