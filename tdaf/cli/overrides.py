"""One `key=value` of the command line: read in Hydra's grammar, set in a configuration, refused in one line."""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Glob
from hydra.core.override_parser.types import Override as HydrasOverride
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from tdaf.errors import UserError

FOLDER = Path(__file__).parents[2] / "configs"
GROUPS = frozenset(path.parent.relative_to(FOLDER).as_posix() for path in FOLDER.glob("*/**/*.yaml")) - {"table"}
TEXTS = re.compile(r"run_dir|resume|pretrained|.*\.root")  # a text also where it looks like a number; null by default
# arguments of classes that have defaults
REMOVABLE = ("task.", "data.", "backbone.", "tdaf.", "schedule.", "optim.factory.")
READ = ("data.root", "data.max_bad")  # by more than the class

OPTIONS = ("--help", "--cfg", "--multirun", "--resolve", "--info", "--version", "--hydra-help", "--shell-completion")


@dataclass(frozen=True)
class Override:
    """prefix: "" changes a setting, "+" adds one, "++" does either, "~" removes one (that is `value`, if given)."""

    text: str
    prefix: str
    key: str
    value: Any

    @property
    def chooses_file(self) -> bool:
        """Whether it picks files of configs/ or is Hydra's own setting, so that Hydra has to see it."""
        return self.key.split("@")[0] in GROUPS or self.key.startswith(("hydra.", "hydra/"))


def parse(text: str) -> Override:
    """Raises UserError where `text` is no override of one value."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise UserError(f"{text!r} is not UTF-8 text; rename the file or folder, or make a link to it") from None
    match = re.fullmatch(r"(\+\+?|~)?([^=+~]+)(=)?(.*)", text, re.DOTALL)
    if text.startswith("-") or not match or not (match[3] or match[1] == "~"):
        close = difflib.get_close_matches(text, OPTIONS, n=1)
        hint = f"did you mean {close[0]}?" if close else "write key=value; --help lists what there is"
        raise UserError(f"{text!r} is not a setting: {hint}")
    key = match[2].strip()
    override = Override(text, match[1] or "", key, _value(text, key, match[4]) if match[3] else None)
    if override.chooses_file and "@" not in override.key and not override.key.startswith("hydra"):
        _check_choice(override)
    return override


def put(config: DictConfig, override: Override) -> None:
    """Changes, adds or removes one setting. UserError: there is no such setting, or the value is of another kind."""
    text, key, value = override.text, override.key, override.value
    now = OmegaConf.to_container(config, resolve=False)
    known = [*flat(now), *now]
    exists = key in known or any(k.startswith(key + ".") for k in known)
    if override.prefix == "~":
        return _remove(config, override, exists)
    if not exists and not override.prefix:
        raise UserError(f"{text}: there is no setting {key}{close(key, known) or '; --cfg job lists all'}")
    if exists and override.prefix == "+":
        raise UserError(f"{text}: {key} is there already; leave the + out")
    if not exists and "." not in key:
        raise UserError(f"{text}: nothing reads a new setting {key}{close(key, known) or '; --cfg job lists all'}")
    try:
        if exists:
            for part in key.split("."):
                now = now[part]
            value = _of_kind(text, now, value)
        OmegaConf.update(config, key, value, merge=isinstance(value, dict), force_add=not exists)
    except (OmegaConfBaseException, KeyError, TypeError, ValueError) as error:
        raise UserError(f"{text}: this cannot be set ({first_line(error)})") from error


def flat(config: Any, prefix: str = "") -> dict[str, Any]:
    """Every leaf of nested dictionaries by its dotted name."""
    if not isinstance(config, dict):
        return {prefix: config}
    found = {}
    for name, child in config.items():
        found.update(flat(child, f"{prefix}.{name}" if prefix else str(name)))
    return found


def close(word: str, known: list[str]) -> str:
    """A did-you-mean for a word, by its whole and by its last part."""
    tail = word.rsplit(".", 1)[-1]
    same = [k for k in known if k.rsplit(".", 1)[-1] == tail]
    found = difflib.get_close_matches(word, same, n=1) or difflib.get_close_matches(word, known, n=1, cutoff=0.6)
    if not found or "." not in word and "." in found[0]:
        tails = {k.rsplit(".", 1)[-1]: k for k in reversed(known)}
        found = [tails[t] for t in difflib.get_close_matches(tail, tails, n=1, cutoff=0.8)] or found
    return f"; did you mean {found[0]}?" if found else ""


def first_line(error: BaseException) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


def values(text: str) -> list[str]:
    """The overrides that one argument of a sweep stands for: anar=3,5, choice(3,5), range(1,4), backbone=glob(res*)."""
    key, _, written = text.partition("=")
    parsed = _parsed(text, written)
    if isinstance(parsed, str) or not parsed.is_sweep_override():
        return [text]
    if isinstance(parsed.value(), Glob):
        options = sorted(path.stem for path in (FOLDER / key).glob("*.yaml")) if key in GROUPS else []
        return [f"{key}={name}" for name in parsed.value().filter(options)]
    if not parsed.is_discrete_sweep():
        raise UserError(f"{text}: give the values one by one; a sweep runs every combination")
    return [f"{key}={value}" for value in parsed.sweep_string_iterator()]


def _parsed(text: str, written: str) -> HydrasOverride | str:
    """A value as Hydra's grammar reads it; any other text as it stands, so that a path needs no quotes."""
    try:
        return OverridesParser.create().parse_rule(f"key={written}", "override")
    except HydraException as error:
        if written.lstrip().startswith(("[", "{", "'", '"')):
            raise UserError(f"{text}: the value cannot be read; look at its brackets and quotes") from error
        return written


def _value(text: str, key: str, written: str) -> Any:
    parsed = _parsed(text, written)
    if isinstance(parsed, str):
        return parsed
    if parsed.is_sweep_override():
        hint = "a list is [1,2], a text with a comma '\"a,b\"'"
        raise UserError(f"{text}: several values are a sweep, which needs -m; {hint}")
    value = parsed.value()
    return written if TEXTS.fullmatch(key) and isinstance(value, (bool, int, float)) else value


def _check_choice(override: Override) -> None:
    key, value = override.key, override.value
    if override.prefix == "~":
        raise UserError(f"{override.text}: {key} cannot be left out; choose another file of it")
    if override.prefix and "/" not in key:
        raise UserError(f"{override.text}: {key} has a choice already; write {key}={value}")
    options = sorted(path.stem for path in (FOLDER / key).glob("*.yaml"))
    if value is not None and str(value) not in options:
        hint = f"{close(str(value), options) or '.'} Choose from {', '.join(options)}"
        raise UserError(f"{key}={value}: there is no such {key}{hint}")


def _remove(config: DictConfig, override: Override, exists: bool) -> None:
    text, key = override.text, override.key
    if not exists:
        raise UserError(f"{text}: there is no setting {key}")
    if not key.startswith(REMOVABLE) or key.endswith("._target_") or key in READ:
        raise UserError(f"{text}: {key} cannot be left out; give it another value")
    parent, _, name = key.rpartition(".")
    node = OmegaConf.select(config, parent)
    if "=" in text and node[name] != override.value:
        raise UserError(f"{text}: {key} is {node[name]}")
    del node[name]


def _of_kind(text: str, now: Any, value: Any) -> Any:
    """The value, if it is of the kind of what stands there. null and ${...} are judged where the setting is used."""
    if now is None or value is None or any(isinstance(v, str) and "${" in v for v in (now, value)):
        return value
    names = {bool: "true or false", (int, float): "a number", list: "a list, as [1,2]", dict: "a group of settings"}
    for kind, name in names.items():
        if not isinstance(now, kind):
            continue
        if not isinstance(value, kind) or kind is not bool and isinstance(value, bool):
            shown = "" if isinstance(now, dict) else f" (it is {str(now).lower().replace(' ', '')})"
            raise UserError(f"{text}: give {'a whole number' if type(now) is int else name}{shown}")
        return float(value) if isinstance(now, float) else value
    return value
