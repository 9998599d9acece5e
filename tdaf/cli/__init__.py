"""The command line: the only place that knows Hydra. `FOLDER` holds its YAML, installed or in the checkout."""

from pathlib import Path

_HERE = Path(__file__).resolve()
FOLDER = next(folder for folder in (_HERE.parents[1] / "configs", _HERE.parents[2] / "configs") if folder.is_dir())
