"""Figures that took a while, kept in a JSON file beside the runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tdaf.engine.log import RunFolder


def read(path: Path) -> dict[str, Any]:
    """What was kept; nothing where there is no such file, or a damaged one, so that it is measured again."""
    try:
        known = json.loads(path.read_text())
    except (FileNotFoundError, ValueError):
        return {}
    return known if isinstance(known, dict) else {}


def keep(path: Path, figures: dict[str, Any]) -> None:
    """Writes the file whole or not at all."""
    RunFolder(path.parent).write(path.name, json.dumps(figures, indent=2) + "\n")
