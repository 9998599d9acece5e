"""Ratios that scripts/benchmark.py has measured and written into docs/benchmarks.json."""

from __future__ import annotations

import functools
import json
from typing import Any

from tdaf.cli.overrides import FOLDER
from tables.rows import Row

FILE = FOLDER.parent / "docs" / "benchmarks.json"


def measured(row: Row, column: str) -> str:
    """What a row takes over the plain backbone, as "+27%"; "-" where nobody has measured that.

    column: "forward cpu", say. row.benchmark: {"forward": "SUBJECT/KEY"} of the file, or several with spaces between
    them, of which the first counts that was measured with the row's backbone, gates and flows.
    """
    what, device = column.split()
    for place in row.benchmark.get(what, "").split():
        subject, _, key = place.partition("/")
        section = _file().get(f"{subject} {device}", {})
        if not _is_of(section, row):
            continue
        for found in section.get("rows", []):
            if found["key"] == key and found["device"] in ("any", device) and found["value"] is not None:
                return f"{100 * (found['value'] - 1):+.0f}%"
    return "-"


def _is_of(section: dict[str, Any], row: Row) -> bool:
    asked = dict(s.split("=", 1) for s in row.settings if s.startswith(("backbone=", "anar=", "flows=")))
    return all(str(section.get(key)) == value for key, value in asked.items())


@functools.lru_cache(maxsize=1)
def _file() -> dict[str, Any]:
    try:
        return json.loads(FILE.read_text())
    except (OSError, ValueError):
        return {}
