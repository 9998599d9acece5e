"""TDAF: Top-Down Attention Framework for vision tasks (Pang et al., AAAI 2021).

    from tdaf import TDAF, Trainer

What is exported here is loaded when it is first used: `import tdaf` takes no time and brings neither torch nor Hydra.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from tdaf.engine.evaluate import Evaluation, evaluate
    from tdaf.engine.predict import Predictor
    from tdaf.engine.settings import LoaderSettings, Settings
    from tdaf.engine.trained import load_checkpoint
    from tdaf.engine.trainer import Trainer
    from tdaf.errors import RunError, UnreadableSample, UserError
    from tdaf.model.anar import ANAR
    from tdaf.model.backbones.library import stages
    from tdaf.model.flows import TDAF, MultiScale
    from tdaf.model.fold import fold
    from tdaf.model.maps import attention_maps
    from tdaf.model.staged import Staged

_HOMES = {
    "tdaf.model.flows": ("TDAF", "MultiScale"),
    "tdaf.model.anar": ("ANAR",),
    "tdaf.model.backbones.library": ("stages",),
    "tdaf.model.staged": ("Staged",),
    "tdaf.model.fold": ("fold",),
    "tdaf.model.maps": ("attention_maps",),
    "tdaf.engine.trainer": ("Trainer",),
    "tdaf.engine.settings": ("Settings", "LoaderSettings"),
    "tdaf.engine.evaluate": ("Evaluation", "evaluate"),
    "tdaf.engine.predict": ("Predictor",),
    "tdaf.engine.trained": ("load_checkpoint",),
    "tdaf.errors": ("UserError", "RunError", "UnreadableSample"),
}
_HOME = {name: module for module, names in _HOMES.items() for name in names}
__all__ = ["__version__", *_HOME]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'tdaf' has no attribute {name!r}")
    import importlib

    value = globals()[name] = getattr(importlib.import_module(_HOME[name]), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
