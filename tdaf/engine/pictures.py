"""The former name of tdaf/engine/visualize.py, for tdaf/engine/trainer.py."""

from tdaf.engine.visualize import log_samples as show

__all__ = ["show"]
