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
    from tdaf.engine.trained import load_checkpoint
    from tdaf.engine.trainer import LoaderSettings, Settings, Trainer
    from tdaf.errors import RunError, UnreadableSample, UserError
    from tdaf.model.anar import ANAR
    from tdaf.model.flows import TDAF, MultiScale
    from tdaf.model.fold import fold
    from tdaf.model.maps import attention_maps
    from tdaf.model.staged import Staged

_HOMES = {
    "TDAF": "tdaf.model.flows",
    "MultiScale": "tdaf.model.flows",
    "ANAR": "tdaf.model.anar",
    "Staged": "tdaf.model.staged",
    "fold": "tdaf.model.fold",
    "attention_maps": "tdaf.model.maps",
    "Trainer": "tdaf.engine.trainer",
    "Settings": "tdaf.engine.trainer",
    "LoaderSettings": "tdaf.engine.trainer",
    "Evaluation": "tdaf.engine.evaluate",
    "evaluate": "tdaf.engine.evaluate",
    "Predictor": "tdaf.engine.predict",
    "load_checkpoint": "tdaf.engine.trained",
    "UserError": "tdaf.errors",
    "RunError": "tdaf.errors",
    "UnreadableSample": "tdaf.errors",
}
__all__ = ["__version__", *_HOMES]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'tdaf' has no attribute {name!r}")
    import importlib

    value = globals()[name] = getattr(importlib.import_module(_HOMES[name]), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
