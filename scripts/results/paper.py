"""The paper's tables, as configs/table/ has them: beside each number that is printed, ours."""

from __future__ import annotations

import functools
import json
import math
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from omegaconf import OmegaConf

from results.runs import Request, Result, Run, composed, key, protocols
from results.runs import results as results_of
from results.tabular import Printed, TextTable, mean_and_deviation
from tdaf.cli.compose import FOLDER, Config
from tdaf.cli.script import hint
from tdaf.errors import UserError

ORDER = ("1", "2", "3a", "3b", "4", "5", "6", "latency", "multiscale")
BENCHMARKS = FOLDER.parent / "docs" / "benchmarks.json"
THROUGHPUT = 30.0  # 10^12 multiply-adds a second that a GPU sustains in training: assumed, not measured
INCREASE = "_increase"
DIGITS = {"gates": "1,000", "params": "1.000M", "gflops": "1.000"}
DEMO = "recipe=demo"
# what belongs to the size of a published run: the miniature has its own
SIZE = ("backbone", "pretrained", "trainer", "schedule", "optim", "task.train_transform")
OF_MACHINE = ("data.root=", "gpus=", "loader.")
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
    """settings: overrides of train.py. paper: what is printed there, digit for digit, by the keys of PaperTable.texts,
    counts and metrics. dash: why the row cannot be built; None if it can. input, classes: the table's, where they
    differ. command: what makes the row where train.py does not, "" where nothing does. benchmark: {"forward":
    "SUBJECT/KEY ..."} of docs/benchmarks.json; the first that was measured for the row's network counts."""

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

    def __str__(self) -> str:
        return f"{self.group}, {self.name}" if self.group else self.name


@dataclass(frozen=True)
class PaperTable:
    """groups: title of the rows' group. settings: overrides of every row. evaluate: settings of scripts/evaluate.py,
    whose numbers count; []: the run's own last evaluation. input, classes: of which is counted. demo: both of the
    miniature. texts, counts, metrics, measured: {key: column title} of the paper's words, of `counts` ("..._increase":
    over the first row of the group, in percent), of the evaluator's numbers, and of Row.benchmark with a device. scale:
    from the evaluator's numbers to the paper's. relative: metrics are gains over the first row of the group. reference:
    whose the printed numbers are. samples: of one training epoch; 0: nothing is trained. published: {settings, input,
    classes} of the network whose parameters the paper prints, where another is trained. more: the command line's
    overrides of every row, see `adapted`."""

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
    more: list[str] = field(default_factory=list)

    def overrides(self, row: Row) -> list[str]:
        """Of train.py: the table's, the row's and `more`. Of one setting given twice the later one holds; with
        recipe=demo what belongs to the size of the published run is left out, its backbone among it."""
        return [*_without([*_without(self.settings, row.settings), *row.settings], self.more), *self.more]

    def command(self, row: Row, seeds: Sequence[int] = ()) -> str:
        """What makes the row on the command line, with data.root=PATH where it needs data; "" where nothing does."""
        if row.dash or row.command is not None:
            return row.command or ""
        settings = self.overrides(row)
        seed = [f"seed={','.join(map(str, seeds))}"] if seeds else []
        has_data = DEMO in settings or any(text.startswith("data.root=") for text in settings)
        data = ["data.root=PATH"] if self.samples and not has_data else []
        return shlex.join(["python", "train.py", *(["-m"] if len(seeds) > 1 else []), *settings, *seed, *data])


def names() -> list[str]:
    """The tables in the order of the paper; further files of configs/table/ behind them."""
    files = {path.stem for path in (FOLDER / "table").glob("*.yaml")}
    return [*(name for name in ORDER if name in files), *sorted(files.difference(ORDER))]


def read(name: str) -> PaperTable:
    """Raises UserError for a name without a table."""
    if name not in names():
        raise UserError(f"{name}: there is no such table or folder; {hint(name.lower(), [*names(), 'all'])}")
    content = OmegaConf.to_container(OmegaConf.load(FOLDER / "table" / f"{name}.yaml"))
    return PaperTable(key=name, **{**content, "rows": [Row(**row) for row in content["rows"]]})


def adapted(table: PaperTable, more: Sequence[str]) -> PaperTable:
    """The table with `more`, overrides of all its rows. With recipe=demo it is in miniature. A row that `more` changes
    is without the paper's numbers; rows that it makes equal, such as those that differ in the backbone alone, are one,
    under their settings; where numbers are relative, only those of one baseline. What nothing is trained of keeps its
    rows, and is its own miniature."""
    if not table.samples:
        return replace(table, more=[text for text in more if text != DEMO])
    own = [_without(row.settings, more) for row in table.rows]
    firsts = {row.group: settings for row, settings in reversed([*zip(table.rows, own, strict=True)])}
    equal: dict[tuple, list[Row]] = {}
    for row, settings in zip(table.rows, own, strict=True):
        row = row if settings == row.settings else replace(row, settings=settings, paper={})
        group = f"over {' '.join(firsts[row.group])}" if table.relative else ""
        equal.setdefault((group, *sorted(settings), row.dash and row.name), []).append(row)
    table = replace(table, more=list(more))
    if DEMO not in more and len(equal) == len(table.rows):
        return replace(table, rows=[row for (row,) in equal.values()])
    rows, several = [], len({group for group, *_ in equal}) > 1
    for (group, *_), same in equal.items():
        name, note = " ".join(same[0].settings) or "as set", f"stands for {'; '.join(map(str, same))}"
        rows.append(
            replace(same[0], group=group * several, paper={}, **({} if same[0].dash else {"name": name, "note": note}))
        )
    if DEMO not in more:
        return replace(table, rows=rows, notes=[EQUAL, *table.notes])
    title = f"In miniature: {table.title}"
    return replace(table, title=title, rows=rows, notes=[MINIATURE], published=None, **table.demo)


def _without(settings: Sequence[str], later: Sequence[str]) -> list[str]:
    """The settings but for those that `later` sets again."""
    keys = [setting.lstrip("+~").partition("=")[0] for setting in later] + list(SIZE if DEMO in later else ())
    return [text for text in settings if not any(f"{text.partition('=')[0]}.".startswith(f"{key}.") for key in keys)]


def configs(table: PaperTable, seeds: Sequence[int] = ()) -> list[Config]:
    """The settings of every row and seed. Raises UserError for a mistake, as far as one shows without torch."""
    rows = [table.overrides(row) for row in table.rows if not row.dash]
    return [composed(*settings, *seed) for settings in rows for seed in _seeds(seeds)]


def _seeds(seeds: Sequence[int]) -> list[list[str]]:
    return [[f"seed={seed}"] for seed in seeds] or [[]]


def requests(table: PaperTable, seeds: Sequence[int]) -> list[Request]:
    """The runs that a table is made of. Raises UserError where no row can be built; one that cannot is left out with a
    line that says why."""
    needed = []
    for row in table.rows:
        if problem := _filled(table, row, [], {}).problem:
            print(f"left out: table {table.key}, {row}: {problem}", file=sys.stderr, flush=True)
            continue
        for seed in _seeds(seeds):
            name = " ".join([f"table {table.key}: {row}", *seed])
            needed.append(Request([name], [*table.overrides(row), *seed], [table.evaluate] * bool(table.evaluate)))
    if not needed:
        raise UserError(f"table {table.key}: none of its rows can be built")
    return needed


@dataclass(frozen=True)
class _Filled:
    """A row with what is known of it. problem: the reason for its dashes. counts: see `counts`."""

    row: Row
    problem: str = ""
    config: Config | None = None
    counts: dict[str, float] = field(default_factory=dict)
    results: Sequence[Result] = ()


def _filled(table: PaperTable, row: Row, seeds: Sequence[int], runs: dict[str, list[Run]]) -> _Filled:
    if row.dash:
        return _Filled(row, row.dash)
    settings = table.overrides(row)
    config = composed(*settings)
    measured = results_of(runs.get(key(config), []), table.evaluate) if table.samples else []
    measured = [one for one in measured if not seeds or one.seed in seeds]
    try:
        counted = counts(tuple(settings), tuple(row.input or table.input), row.classes or table.classes)
        if other := table.published:
            network = replace(table, more=[*other["settings"], *table.more]).overrides(row)
            published = counts(tuple(network), tuple(other["input"]), other["classes"])["params"]
            counted = {**counted, "params_published": published}
    except UserError as error:
        return _Filled(row, str(error), config, {}, measured)
    return _Filled(row, "", config, counted, measured)


@functools.cache  # rows of several tables are the same network
def counts(settings: tuple[str, ...], size: tuple[int, ...], classes: int) -> dict[str, float]:
    """What a network counts, without data and weights: numbers of parameters, "params", "gates" those of the ANARs, and
    10^9 multiply-adds of one input in evaluation, "gflops", "gflops_flows", "gflops_gates", "gflops_rest".

    settings: overrides of train.py. size: of one input, (3, H, W) or (3, T, H, W). Raises UserError for a network that
    cannot be built or does not take the input.
    """
    from types import SimpleNamespace

    import torch
    from torch import nn

    from tdaf import measure
    from tdaf.cli import build
    from tdaf.model.anar import ANAR

    config = composed(*settings)
    with torch.device("meta"):
        task = build.make(config["task"], "task", data=SimpleNamespace(classes=[*map(str, range(classes))]))
        network = build.network(config, task).to("meta")
    for module in network.modules():
        if isinstance(module, (nn.BatchNorm2d, nn.BatchNorm3d)):
            module.forward = nn.Identity().forward  # counts nothing, and takes most of the time
    try:
        flops = measure.gflops(network, torch.empty(1, *size, dtype=torch.uint8, device="meta"))
    except (RuntimeError, ValueError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise UserError(f"the network cannot take an input of {'x'.join(map(str, size))}: {reason}") from error
    gates = {p: p.numel() for module in network.modules() if isinstance(module, ANAR) for p in module.parameters()}
    names = ("gflops", "gflops_flows", "gflops_gates", "gflops_rest")
    sizes = {"params": measure.parameters(network).total, "gates": sum(gates.values())}
    return {**sizes, **dict(zip(names, flops, strict=True))}


def text_table(table: PaperTable, seeds: Sequence[int], runs: dict[str, list[Run]]) -> TextTable:
    """Ours, the paper's, the difference. seeds: of the runs that count; [] for all. runs: by their `key`. Raises
    UserError where none of the rows can be built."""
    rows = [_filled(table, row, seeds, runs) for row in table.rows]
    if all(row.problem for row in rows):
        raise UserError(next(row.problem for row in rows if not row.row.dash))
    columns = {table.groups: [row.row.group for row in rows]} if any(row.row.group for row in rows) else {}
    columns["Row"] = [row.row.name for row in rows]
    labels = len(columns)
    columns |= {title: [row.row.paper.get(name, "-") for row in rows] for name, title in table.texts.items()}
    for name, title in table.counts.items():
        if any(name.removesuffix(INCREASE) in row.counts for row in rows):
            columns |= _compared(table, name, title, rows)
    columns |= {title: [_benchmarked(row.row, name) for row in rows] for name, title in table.measured.items()}
    if table.samples and DEMO not in table.more:
        columns["GPU-hours (estimate)"] = [_hours(table, row) for row in rows]
    for name, title in table.metrics.items():
        columns |= _compared(table, name, title, rows)
    cells = [list(row) for row in zip(*columns.values(), strict=True)]
    commands = [(str(row.row), table.command(row.row, seeds)) for row in rows]
    return TextTable(table.title, list(columns), cells, _notes(table, rows), commands, labels)


def _compared(table: PaperTable, name: str, title: str, rows: Sequence[_Filled]) -> dict[str, list[str]]:
    """The columns ours, theirs and difference, in their digits; ours alone where nothing is printed. In a column of
    increases or gains, the first row of a group has its own number."""
    firsts = {row.row.group: row for row in reversed(rows)}
    increase = name.endswith(INCREASE)
    over_first = increase or table.relative and name in table.metrics
    texts = [row.row.paper.get(name) for row in rows]
    printed = [Printed.parse(text, increase) for text in texts]
    usual = next(filter(None, printed), None)
    ours, gaps = [], []
    for row, theirs in zip(rows, printed, strict=True):
        first = firsts[row.row.group]
        values, base = _values(table, name, row), _values(table, name, first)
        absolute = over_first and row is first
        if over_first and not absolute:
            mean, base = [np.mean(own) if own else None for own in (values, base)]
            values = [] if mean is None or base is None else [100 * (mean / base - 1) if increase else mean - base]
        digits = _digits(name, False) if absolute else theirs or usual or _digits(name, over_first)
        if len(values) > 1:
            ours.append(mean_and_deviation(values, -digits.value.as_tuple().exponent))
        else:
            ours.append(digits.ours(values[0]) if values else "-")
        gaps.append(theirs.difference(np.mean(values)) if theirs and values else "-")
    columns = {title: ours}
    if any(texts):
        columns[f"{title} {table.reference}"] = [text or "-" for text in texts]
    if any(gap != "-" for gap in gaps):
        columns[f"{title} difference"] = gaps
    return columns


def _values(table: PaperTable, name: str, row: _Filled) -> list[float]:
    """A row's numbers: one of a count, one a seed of a metric, none where it has none."""
    if name in table.metrics:
        return [table.scale * one.values[name] for one in row.results if one.values.get(name, -1) >= 0]
    return [row.counts[name.removesuffix(INCREASE)]] if row.counts else []


def _digits(name: str, signed: bool) -> Printed:
    """How a number is shown where no paper says it. signed: of an increase or a gain."""
    kind = name.removesuffix(INCREASE)
    if signed:
        return Printed.parse("+1.0%" if name != kind else "+1.0")
    return Printed.parse(next((text for start, text in DIGITS.items() if kind.startswith(start)), "1.0"))


def _hours(table: PaperTable, row: _Filled) -> str:
    if row.config is None or not row.counts:
        return "-"
    needed = gpu_hours(row.counts["gflops"], samples_seen(row.config, table.samples))
    return "<0.1" if needed < 0.1 else f"{needed:.1f}" if needed < 10 else f"{needed:.0f}"


def samples_seen(config: Config, samples: int) -> float:
    """Training samples over the whole schedule; samples: of one epoch."""
    steps, epochs = (config["trainer"][name] for name in ("max_steps", "epochs"))
    limits = (steps and steps * config["trainer"]["batch"], epochs and epochs * samples)
    return min(limit for limit in (*limits, math.inf) if limit is not None)


def gpu_hours(gflops: float, samples: float, throughput: float = THROUGHPUT) -> float:
    """Forward, and twice as much backward."""
    return 3 * gflops * samples / (throughput * 1e3) / 3600


def _benchmarked(row: Row, column: str) -> str:
    """What a row takes over the plain backbone, as "+27%", by what scripts/benchmark.py has measured; "-" where nobody
    has measured the row's network. column: "forward cpu", say."""
    what, device = column.split()
    network = dict(text.split("=", 1) for text in row.settings if text.startswith(("backbone=", "anar=", "flows=")))
    for place in row.benchmark.get(what, "").split():
        subject, _, name = place.partition("/")
        section = _benchmarks().get(f"{subject} {device}", {})
        if all(str(section.get(setting)) == value for setting, value in network.items()):
            for entry in section.get("rows", []):
                if entry["key"] == name and entry["device"] in ("any", device) and entry["value"] is not None:
                    return f"{100 * (entry['value'] - 1):+.0f}%"
    return "-"


@functools.cache
def _benchmarks() -> dict[str, Any]:
    return json.loads(BENCHMARKS.read_text()) if BENCHMARKS.is_file() else {}


def _notes(table: PaperTable, rows: Sequence[_Filled]) -> list[str]:
    def shape(size: Sequence[int]) -> str:
        return " x ".join(map(str, size))

    notes = []
    if table.counts:
        own = "; ".join(f"{row.row}: {shape(row.row.input)}" for row in rows if row.row.input)
        own = f" ({own})" if own else ""
        notes.append(f"GFLOPs: 10^9 multiply-adds of one input of {shape(table.input)}{own}, counted.")
    if table.metrics:
        how = f"python scripts/evaluate.py checkpoint=RUN_FOLDER {' '.join(table.evaluate)}"
        how = f"evaluated with {how}" if table.evaluate else "of their last evaluation"
        notes.append(f"{', '.join(table.metrics.values())}: of finished runs, {how}; - where there is none.")
    if table.samples and DEMO not in table.more:
        notes.append(
            "GPU-hours are an estimate, not a measurement: 3 x GFLOPs x samples seen in training, at an assumed "
            f"{THROUGHPUT:g} x 10^12 multiply-adds a second (one H100, bf16); without reading and evaluation."
        )
    own = " ".join(text for text in table.more if text != DEMO and not text.startswith(OF_MACHINE))
    notes += [f"All rows have {own}, which the paper's numbers were not made with."] if own else []
    notes += table.notes
    for row in rows:
        notes += [f"{row.row}: {row.row.note}"] if row.row.note else []
        notes += [f"{row.row}: no counts: {row.problem}"] if row.problem else []
        folders = ", ".join(str(one.folder) for one in row.results)
        notes += [f"{row.row}: {protocols(row.results)}: {folders}"] if folders else []
    return notes
