"""What is to be reached, and what was: a table in Markdown, and everything in JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from results.tabular import markdown_table, write_section

if TYPE_CHECKING:  # the table is read before torch is
    from benchmarks.timing import Settings, Times

BRIDGED = ("resnet18", "convnext_atto", "efficientnet_b0", "swin_tiny_patch4_window7_224")  # of timm's
HEAD = ("what", "against", "bar", "ratio (quartiles)", "null (quartiles)", "pairs", "bar met", "figures, notes")


@dataclass(frozen=True)
class Row:
    """One line of a table: the ratio `of` / `to`, two candidates of one measurement, and the bar of this project.

    key: its name in the JSON file, which scripts/table.py reads. measured: the measurement, where its name is another.
    low, high: the bar, what the ratio is to lie between. rate: of images a second, say, so that the ratio of seconds is
    turned round. device: where the row is measured, "any", "cpu" or "gpu". reference: the bar is for ResNet-50, ANAR-3,
    three flows, 224 pixels and 8 images or more, on a GPU 128.
    """

    key: str
    what: str
    of: str
    to: str
    measured: str = ""
    low: float | None = None
    high: float | None = None
    device: str = "any"
    rate: bool = False
    reference: bool = False

    @property
    def bar(self) -> str:
        if self.low is not None and self.high is not None:
            return f"{self.low:g} to {self.high:g}"
        return f"<= {self.high:g}" if self.high is not None else f">= {self.low:g}" if self.low is not None else "-"

    def holds(self, settings: Settings) -> bool:
        """Whether there is a bar, and for what was measured."""
        network = (settings.backbone, settings.anar, settings.flows, settings.size) == ("res50", 3, 3, 224)
        large = settings.batch >= (128 if settings.gpu else 8)
        return self.bar != "-" and (not self.reference or network and large)


def filled(row: Row, measured: Mapping[str, Times | dict[str, float]], settings: Settings) -> dict[str, Any]:
    """The row as plain data; "value" is None where this machine has none.

    measured: seconds in turns, or what was counted, by the name of the measurement.
    """
    found: Any = measured.get(row.measured or row.key)
    entry = {"key": row.key, "what": row.what, "peer": row.to, "device": row.device, "bar": row.bar, "met": None}
    entry |= {"value": None, "ratio": None, "null": None, "absolute": {}, "note": ""}
    if not found or row.device not in ("any", "gpu" if settings.gpu else "cpu"):
        return entry
    if isinstance(found, dict):
        entry["value"] = value = found[row.of] / found[row.to]
        entry["absolute"] = {name: f"{found[name]:.4g}" for name in (row.of, row.to)}
    elif row.to not in found.seconds:
        return {**entry, "note": "not installed here, or none of this backbone"}
    else:
        ratio = found.ratio(row.to, row.of) if row.rate else found.ratio(row.of, row.to)
        entry |= {"value": ratio.median, "ratio": asdict(ratio), "null": asdict(found.null()), "note": found.note}
        entry["absolute"], value = {name: found.figure(name) for name in (row.of, row.to)}, ratio.median
    if not row.holds(settings):
        return {**entry, "bar": "-"}
    return {**entry, "met": (row.high is None or value <= row.high) and (row.low is None or value >= row.low)}


def markdown(table: list[dict[str, Any]], about: dict[str, Any]) -> str:
    """Absolute seconds are printed of a GPU alone; of a CPU that others use too, the ratio is what can be told."""
    versions = ", ".join(f"{name} {version}" for name, version in about["versions"].items() if version)
    loads = " and ".join(f"{load:.1f}" for load in about["load"])
    head = (
        f"{about['date']}, commit {about['commit'] or '-'}. {about['machine']}, {about['cores']} cores, "
        f"{about['threads']} threads, {about['gpu'] or 'no GPU'}; load at start and end {loads}. {versions}. "
        f"{about['precision']}, batch {about['batch']}, {about['seconds'] / 60:.0f} minutes:\n\n    {about['command']}"
    )
    rows = []
    for row in table:
        what = row["what"] + (f" ({row['device'].upper()})" if row["device"] != "any" else "")
        value = "-" if row["value"] is None else format(row["value"], ".3f" if row["value"] > 0.001 else ".1e")
        ratio, pairs = (_spread(row["ratio"]), str(row["ratio"]["pairs"])) if row["ratio"] else (value, "-")
        figures = row["absolute"].items() if about["gpu"] or not row["ratio"] else ()
        notes = "; ".join([*(f"{name} {figure}" for name, figure in figures), *filter(None, [row["note"]])]) or "-"
        met = {None: "-", True: "yes", False: "**no**"}[row["met"]]
        rows.append([what, row["peer"], row["bar"], ratio, _spread(row["null"]), pairs, met, notes])
    return f"{head}\n\n{markdown_table(HEAD, rows)}"


def _spread(spread: dict[str, float] | None) -> str:
    return f"{spread['median']:.3f} ({spread['low']:.3f}, {spread['high']:.3f})" if spread else "-"


def write(out: Path, subject: str, table: list[dict[str, Any]], about: dict[str, Any], text: str) -> None:
    """`out`.json, and the section of this subject and kind of device in `out`.md; what else that file says stays."""
    kind = f"{subject} {'gpu' if about['gpu'] else 'cpu'}"
    begin, end = f"<!-- measured: {kind} -->", f"<!-- end: {kind} -->"
    write_section(out.with_suffix(".md"), begin, end, f"### {kind}\n\n{text}", "# Benchmarks\n")
    data = out.with_suffix(".json")
    known = json.loads(data.read_text()) if data.exists() else {}
    data.write_text(json.dumps({**known, kind: {**about, "rows": table}}, indent=2) + "\n")
