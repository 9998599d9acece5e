"""Which settings tell runs apart, under names as short as they can be."""

from __future__ import annotations

import functools
import re
from collections import Counter
from collections.abc import Sequence
from typing import Any

from omegaconf import OmegaConf

from tdaf.cli.compose import Config, compose, identity
from tdaf.cli.overrides import FOLDER, flat
from tdaf.errors import UserError

LIMIT = 8  # columns
FIRST = ("backbone", "attention", "tdaf", "recipe", "anar", "flows", "eta")
TARGET = "._target_"
ABSENT = "-"


def differing(configs: Sequence[Config]) -> tuple[dict[str, list[Any]], list[str]]:
    """({short name: its value in each of the configurations}, notes). What a chosen backbone, TDAF or recipe sets is
    told by the name of that; a setting that one does not have is "-"."""
    named = [_named(config) for config in configs]
    implied = [_implied(*(str(own.get(key)) for key in ("name", "recipe", "backbone", "tdaf"))) for own in named]
    values = {key: [own.get(key, ABSENT) for own in named] for key in sorted({key for own in named for key in own})}
    keys = [key for key, given in values.items() if len({repr(value) for value in given}) > 1]
    keys = [key for key in keys if key in FIRST or not _told(key, values[key], implied)]
    # resolved, tdaf.flows says again what flows says
    keys = [key for key in keys if "." not in key or values[key] != values.get(key.rpartition(".")[2])]
    keys.sort(key=lambda key: (FIRST.index(key) if key in FIRST else len(FIRST), key))
    notes = [f"more settings differ: {', '.join(keys[LIMIT:])}"] if len(keys) > LIMIT else []
    return {title: values[key] for key, title in _titles(keys[:LIMIT]).items()}, notes


def order(value: Any) -> tuple:
    """For sorting: numbers as numbers, res18 before res101."""
    if isinstance(value, (bool, int, float)):
        return 1, value, ()
    parts = re.split(r"(\d+)", "" if value is None else str(value))
    return (0 if value is None else 2), 0, tuple(int(p) if place % 2 else p for place, p in enumerate(parts))


def _told(key: str, values: Sequence[Any], implied: Sequence[Config]) -> bool:
    """Whether every run has what its files of configs/ say."""
    return all(own and own.get(key, ABSENT) == value for own, value in zip(implied, values, strict=True))


def _titles(keys: Sequence[str]) -> dict[str, str]:
    """The last part of each name where that is no other's."""
    short = {key: key.removesuffix(TARGET) if key.endswith(TARGET) else key.rpartition(".")[2] for key in keys}
    times = Counter(short.values())
    return {key: title if times[title] == 1 else key for key, title in short.items()}


def _named(config: Config) -> dict[str, Any]:
    """The settings by their dotted names; "backbone", "attention" and "tdaf" say which file of configs/ was chosen."""
    values = identity(config, ("seed", "attention._target_", "attention._partial_", "backbone.attention"))
    mechanism = config.get("attention") or {"_target_": "none"}
    values["attention"] = _choice("attention", mechanism) or str(mechanism["_target_"]).rpartition(".")[2]
    for group in ("backbone", "tdaf"):
        target = str(values.get(group + TARGET, "-")).rpartition(".")[2]
        values[group] = _choice(group, config.get(group)) or target
    return values


def _choice(group: str, node: Any) -> str | None:
    """The file of configs/ that these settings are from; None for a network of the user's own."""
    for path in sorted((FOLDER / group).glob("*.yaml")):
        file = OmegaConf.to_container(OmegaConf.load(path))
        # a backbone is the same one with another mechanism in it
        own, given = (
            {key: value for key, value in flat(settings).items() if not key.startswith("attention")}
            for settings in (file.get(group, file), node)
        )
        if not isinstance(given.get("_target_"), str) or "_target_" not in own:
            continue
        fixed = [key for key, value in own.items() if group == "backbone" and "${" not in str(value)]
        if own.keys() == given.keys() and all(own[key] == given[key] for key in ["_target_", *fixed]):
            return path.stem
    return None


@functools.lru_cache(maxsize=None)
def _implied(task: str, recipe: str, backbone: str, tdaf: str) -> dict[str, Any]:
    """What the names of these files say of a run."""
    words = [f"task={task}", f"recipe={recipe}", f"backbone={backbone}", f"tdaf={tdaf}"]
    try:
        return _named(compose(words))
    except UserError:
        return {}  # a file of the user's own, or of another version
