"""The attention mechanisms of configs/attention/, as the command line gives them to a backbone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from tdaf.build import make

FOLDER = Path(__file__).parent.parent / "configs" / "attention"
NAMES = sorted(path.stem for path in FOLDER.glob("*.yaml"))


def mechanism(name: str, **settings: Any) -> Any:
    """None for "none"."""
    node = yaml.safe_load((FOLDER / f"{name}.yaml").read_text())
    return make({**node, **settings}, "attention") if "_target_" in node else None
