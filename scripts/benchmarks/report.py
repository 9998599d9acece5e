"""The table in Markdown, and everything in JSON."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from benchmarks.bars import BARS, Bar
from benchmarks.settings import Settings
from benchmarks.timing import Result

Row = dict[str, Any]
HEAD = "| what | against | bar | ratio (quartiles) | null (quartiles) | pairs | bar met | figures, notes |"


def rows(subject: str, found: dict[str, Result], settings: Settings) -> list[Row]:
    """Every row of a subject's table as plain data; "value" is None where this machine has none."""
    return [_row(bar, found.get(bar.key), settings) for bar in BARS[subject]]


def _row(bar: Bar, result: Result | None, settings: Settings) -> Row:
    kind = "gpu" if settings.gpu else "cpu"
    if result is None or bar.device not in ("any", kind):
        result = Result(None)
    holds = (bar.fixed or settings.of_the_bars) and (bar.low, bar.high) != (None, None)
    judged = holds and result.value is not None
    return {
        "key": bar.key,
        "what": bar.what,
        "peer": bar.peer,
        "device": bar.device,
        "bar": str(bar) if holds or result.value is None else "-",
        "met": bar.met(result.value) if judged else None,
        "value": result.value,
        "ratio": vars(result.spread) if result.spread else None,
        "null": vars(result.null) if result.null else None,
        "absolute": result.absolute,
        "note": result.note,
    }


def markdown(table: list[Row], about: dict[str, Any], figures: bool) -> str:
    """figures: whether absolute figures are printed too."""
    head = [_about(about), "", HEAD, "|" + "---|" * HEAD.count(" | ") + "---|"]
    return "\n".join([*head, *(_line(row, figures) for row in table)])


def _about(about: dict[str, Any]) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in about["versions"].items() if version)
    loads = " and ".join(f"{load:.1f}" for load in about["load"])
    return (
        f"{about['date']}, commit {about['commit'] or '-'}. {about['machine']}, {about['cores']} cores, "
        f"{about['threads']} threads, {about['gpu'] or 'no GPU'}; load at start and end {loads}. {versions}. "
        f"{about['precision']}, batch {about['batch']}, {about['seconds'] / 60:.0f} minutes:\n\n    {about['command']}"
    )


def _line(row: Row, figures: bool) -> str:
    what = row["what"] + (f" ({row['device'].upper()})" if row["device"] != "any" else "")
    met = {None: "-", True: "yes", False: "**no**"}[row["met"]]
    pairs = row["ratio"]["pairs"] if row["ratio"] else "-"
    more = [f"{name} {figure}" for name, figure in row["absolute"].items()] if figures or not row["ratio"] else []
    notes = "; ".join(filter(None, [*more, row["note"]])) or "-"
    cells = [what, row["peer"], row["bar"], _value(row), _spread(row["null"]), pairs, met, notes]
    return "| " + " | ".join(map(str, cells)) + " |"


def _value(row: Row) -> str:
    if row["ratio"]:
        return _spread(row["ratio"])
    if row["value"] is None:
        return "-"
    return f"{row['value']:.3f}" if row["value"] > 0.001 else f"{row['value']:.1e}"


def _spread(spread: dict[str, float] | None) -> str:
    return f"{spread['median']:.3f} ({spread['low']:.3f}, {spread['high']:.3f})" if spread else "-"


def write(out: Path, subject: str, table: list[Row], about: dict[str, Any], text: str) -> None:
    """`out`.json, and the section of this subject and kind of device in `out`.md; what else that file says stays."""
    kind = f"{subject} {'gpu' if about['gpu'] else 'cpu'}"
    out.parent.mkdir(parents=True, exist_ok=True)
    data = out.with_suffix(".json")
    known = json.loads(data.read_text()) if data.exists() else {}
    data.write_text(json.dumps({**known, kind: {**about, "rows": table}}, indent=2) + "\n")
    page = out.with_suffix(".md")
    before = page.read_text() if page.exists() else "# Benchmarks\n"
    begin, end = f"<!-- measured: {kind} -->", f"<!-- end: {kind} -->"
    section = f"{begin}\n### {kind}\n\n{text}\n{end}"
    old = re.compile(f"{begin}.*?{end}", re.DOTALL)
    after = old.sub(lambda match: section, before) if old.search(before) else f"{before.rstrip()}\n\n{section}\n"
    page.write_text(after)
