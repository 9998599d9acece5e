"""A run's settings as files hold them: read within bounds, held against what is trusted, brought up to date."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import yaml

from tdaf.build import refuse_untrusted, targets
from tdaf.errors import UserError

Settings = dict[str, Any]

BUILT, READ = ("task", "data", "backbone", "tdaf"), ("trainer", "loader")  # what a run's settings have at least
DEMO, LOCK = "data/demo", ".lock"  # where demo data are drawn by default, and what lies beside them (tdaf/demo)
LARGEST = 2**18  # bytes of a config.yaml, and values in settings; a run's own have about 3000 bytes and 100 values


def _attention_as_node(settings: Settings) -> None:
    """Version 0.1.0 had the mechanism's name where its class and arguments are now (configs/attention/)."""
    for node in (settings, settings["backbone"]):
        name = node.get("attention")
        if isinstance(name, str):
            node["attention"] = copy.deepcopy(_MECHANISMS[name])
            if name == "abn":
                settings["task"]["_target_"] = "tasks.classification.abn.AttentionBranchClassification"


def _new_settings(settings: Settings) -> None:
    """Settings that came later, so that a run's own can be given another value."""
    settings["data"].setdefault("changed", False)
    if settings["data"].get("_target_") == "tasks.classification.folder.ImageFolder":
        settings["data"] = {"every": 1, "cache": None, "cache_side": 480, "decode": "cpu", **settings["data"]}
    if settings["task"].get("_target_") == "tasks.pose.task.Pose":
        settings["task"].setdefault("flip_pairs", None)
    exif = _EXIF.get(str(settings["data"].get("_target_")))
    if exif is not None:
        settings["data"] = {"exif": exif, "background": None, **settings["data"]}
    if settings["tdaf"].get("_target_") == "tdaf.model.flows.TDAF":
        settings["tdaf"] = {
            "upsample": "deconv",
            "mask": "one",
            "learn_eta": False,
            "detach": False,
            "preactivation": False,
            "deeper": 0,
            **settings["tdaf"],
        }


_EXIF = {  # sources of images, and whether EXIF tags count
    "tasks.classification.folder.ImageFolder": False,
    "tasks.coco.source.CocoFiles": True,
    "tasks.pose.source.CocoKeypoints": True,
}
# what brings settings that an older version wrote up to date, in place, the oldest first
UPGRADES: list[Callable[[Settings], None]] = [_attention_as_node, _new_settings]
_BLOCKS, _SELF = "tdaf.model.attention.nonlocal_blocks", "tdaf.model.attention.self_attention"
_MECHANISMS: dict[str, Any] = {
    "none": None,
    "se": {"_target_": "tdaf.model.attention.se_cbam.squeeze_excitation", "_partial_": True},
    "cbam": {"_target_": "tdaf.model.attention.se_cbam.CBAM", "_partial_": True},
    "nonlocal": {"_target_": f"{_BLOCKS}.FiveNonLocal"},
    "a2": {"_target_": f"{_BLOCKS}.FiveDoubleAttention"},
    "cgnl": {"_target_": f"{_BLOCKS}.OneCGNL"},
    "aa": {"_target_": f"{_SELF}.AttentionAugmented", "keys": 0.2, "values": 0.1},
    "sasa": {"_target_": f"{_SELF}.StandAloneAttention"},
    "abn": {"_target_": "tdaf.model.attention.abn.AttentionBranch"},
    "resatt": {"_target_": "tdaf.model.attention.resatt.ResidualAttention"},
    "tdam": {"_target_": "tdaf.model.attention.tdam.TopDownAttention"},
}


def read_yaml(path: Path) -> Any:
    """Plain data from a YAML file that may come from anywhere. FileNotFoundError and NotADirectoryError are left to the
    caller, who knows what was looked for; UserError for a file that is damaged, or larger than any settings."""
    try:
        with open(path, encoding="utf-8") as file:
            text = file.read(LARGEST + 1)
        if len(text) > LARGEST:
            raise UserError(f"{path} is not the settings of a run: it is larger than {LARGEST} bytes")
        return yaml.load(text, _PlainLoader)
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise UserError(f"{path} cannot be read: {str(error).partition(chr(10))[0]}") from error


def checked_settings(settings: Any, where: str, trust: str | Sequence[str] = ()) -> Settings:
    """Settings that were read from a file, up to date. Imports nothing of what is not trusted.

    Args:
        settings: what the file holds.
        where: the file, for messages.
        trust: see `load_checkpoint`.

    Raises:
        UserError: no run's settings, or a `_target_` that is not to be trusted.
    """
    try:
        if _count(settings, {}) > LARGEST:
            raise UserError(f"{where} is not the settings of a run: it has more than {LARGEST} values")
        nodes = settings if isinstance(settings, dict) else {}
        missing = [name for name in (*BUILT, *READ) if not isinstance(nodes.get(name), dict)]
        missing = missing or [f"{name}._target_" for name in BUILT if "_target_" not in nodes[name]]
        if missing:
            raise UserError(f"{where} is not the settings of a run: it has no {', '.join(missing)}")
        settings = upgraded(settings)
        refuse_untrusted(settings, where, [trust] if isinstance(trust, str) else trust)
        if draws_elsewhere(settings):
            settings["demo"]["root"] = DEMO
    except RecursionError:
        raise UserError(f"{where} is not the settings of a run: it is nested too deeply") from None
    except (LookupError, TypeError, AttributeError) as error:  # an upgrade that met what no version has written
        raise UserError(f"{where} is not the settings of a run: {error!r}") from error
    return settings


def draws_elsewhere(settings: Settings) -> bool:
    """Whether a run would draw its demo data outside the folder where it is started, in one that holds none yet: that
    is nothing for a file to choose."""
    demo, root = settings.get("demo"), settings["data"].get("root")
    if root is not None or not isinstance(demo, dict) or "root" not in demo:
        return False
    home, here = Path(str(demo["root"])).expanduser().resolve(), Path.cwd()
    return not home.is_relative_to(here) and not (home / LOCK).is_file()


def upgraded(settings: Settings) -> Settings:
    """A copy of settings that any version wrote, as this version understands them."""
    settings = copy.deepcopy(settings)
    for upgrade in UPGRADES:
        upgrade(settings)
    return settings


def named_modules(settings: Any) -> list[str]:
    """The modules that settings name: what to trust in the file of a run whose settings are known from elsewhere."""
    return sorted({target.rpartition(".")[0] for target in targets(settings)})


def flat(config: Any, prefix: str = "") -> dict[str, Any]:
    """Every leaf of nested dictionaries by its dotted name."""
    if not isinstance(config, dict):
        return {prefix: config}
    leaves = {}
    for name, child in config.items():
        leaves.update(flat(child, f"{prefix}.{name}" if prefix else str(name)))
    return leaves


def map_leaves(function: Callable[[Any], Any], node: Any) -> Any:
    """Nested dicts, lists and tuples with `function` of each value that is none of these in its place."""
    if isinstance(node, dict):
        return {key: map_leaves(function, child) for key, child in node.items()}
    if isinstance(node, (list, tuple)):
        children = [map_leaves(function, child) for child in node]
        return type(node)(*children) if hasattr(node, "_fields") else type(node)(children)  # a named tuple, another
    return function(node)


class _PlainLoader(yaml.SafeLoader):
    """Without aliases, which no run's settings have and which make a short file as large as one likes."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("it has an alias (*name), which no run's settings have")
        return super().compose_node(parent, index)


# 1e-3, which is a number to people and to Hydra, and a text to YAML 1.1
_PlainLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?\d+[eE][-+]?\d+$"), list("-+0123456789")
)


def _count(node: Any, known: dict[int, int]) -> int:
    """Values in `node` when every reference in it is written out, without writing them out."""
    children = node.values() if isinstance(node, dict) else node if isinstance(node, (list, tuple)) else ()
    if id(node) not in known:
        known[id(node)] = 1 + sum(_count(child, known) for child in children)
    return known[id(node)]
