"""The command line: overrides in, one resolved plain dictionary out, or a one-line UserError. No torch in here.

Only this module, configs/build.py and train.py know Hydra.
"""

from __future__ import annotations

import difflib
import hashlib
import re
from pathlib import Path
from typing import Any

from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from tdaf.errors import UserError

FOLDER = Path(__file__).parent
# where a run takes place and how it is watched: what may change between a run and its continuation
VOLATILE = ("run_dir", "resume", "gpus", "loader", "trainer.log_every", "trainer.pictures", "trainer.hang_timeout")
NAMED = ("task", "backbone", "tdaf", "recipe", "anar", "flows", "eta", "seed")  # what a run folder's name always says

Config = dict[str, Any]


def compose(overrides: list[str]) -> Config:
    """The resolved configuration of one run, with its task's name under "name" and its folder under "run_dir"."""
    groups, values, others = _sorted_out(overrides)
    config = _composed(groups + others)
    choices = dict(config.hydra.runtime.choices)
    OmegaConf.set_struct(config, False)
    config.pop("hydra")
    for key, text in values:
        _set(config, key, text)
    return finish(config, choices, overrides)


def combinations(overrides: list[str]) -> list[list[str]]:
    """The overrides of every job of a sweep, in Hydra's order."""
    try:
        parsed = OverridesParser.create().parse_overrides(overrides)
        return [job for batch in BasicSweeper.split_arguments(parsed, None) for job in batch]
    except (HydraException, OmegaConfBaseException) as error:
        raise UserError(_first_line(error)) from error


def finish(config: DictConfig, choices: dict[str, str], overrides: list[str]) -> Config:
    """Resolves and checks what Hydra composed. choices: which file of configs/ was taken for each group."""
    try:
        resolved = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    except OmegaConfBaseException as error:
        raise UserError(_first_line(error)) from error
    if resolved["resume"]:
        return _resumed(Path(resolved["resume"]), overrides)
    resolved = {"name": choices.get("task", "task"), "recipe": choices.get("recipe", "none"), **resolved}
    _check(resolved)
    if resolved["run_dir"] is None:
        resolved["run_dir"] = str(_run_dir(resolved, choices, overrides))
    return resolved


def from_folder(folder: Path) -> Config:
    """The configuration that a run folder holds."""
    path = folder / "config.yaml"
    try:
        return OmegaConf.to_container(OmegaConf.load(path))
    except FileNotFoundError:
        raise UserError(f"{folder} is not a run folder: it has no config.yaml") from None
    except Exception as error:
        raise UserError(f"{path} cannot be read: {_first_line(error)}") from error


def overridden(config: Config, overrides: list[str]) -> Config:
    """A resolved configuration with `key=value` overrides of existing settings."""
    typed = OmegaConf.create(config)
    for override in overrides:
        key, _, text = override.partition("=")
        _set(typed, key, text)
    changed = OmegaConf.to_container(typed)
    _check(changed)
    return changed


def to_yaml(config: Config) -> str:
    return OmegaConf.to_yaml(config)


def differences(old: Config, new: Config) -> list[str]:
    """The settings that make two runs different ones, as "key: old / new"."""
    a, b = _flat(old), _flat(new)
    keys = [k for k in sorted(a.keys() | b.keys()) if not any(k == v or k.startswith(v + ".") for v in VOLATILE)]
    return [f"{k}: {a.get(k, 'absent')} / {b.get(k, 'absent')}" for k in keys if a.get(k) != b.get(k)]


def _sorted_out(overrides: list[str]) -> tuple[list[str], list[tuple[str, str]], list[str]]:
    """Overrides that choose a file of configs/, plain `key=value` ones, and Hydra's others (+key, ~key, ...)."""
    groups, values, others = [], [], []
    for override in overrides:
        key, equals, value = override.partition("=")
        if not equals and not key.startswith("~"):
            raise UserError(f"{override!r} is not a setting: write key=value (a sweep needs -m; --help lists the choices)")
        if key.startswith(("+", "~")):
            others.append(override)
        elif key.startswith("hydra"):
            groups.append(override)
        elif (FOLDER / key).is_dir() and "." not in key:
            options = sorted(p.stem for p in (FOLDER / key).glob("*.yaml"))
            if value not in options and not (FOLDER / key / f"{value}.yaml").exists():
                raise UserError(f"{key}={value}: there is no such {key}{_close(value, options)}; choose from {', '.join(options)}")
            groups.append(override)
        else:
            values.append((key, value))
    return groups, values, others


def _composed(overrides: list[str]) -> DictConfig:
    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(str(FOLDER), version_base="1.3"):
            return hydra_compose("train", overrides, return_hydra_config=True)
    except (HydraException, OmegaConfBaseException) as error:
        raise UserError(_first_line(error)) from error


def _set(config: DictConfig, key: str, text: str) -> None:
    """Sets one existing setting to a value of the kind that its default has."""
    known = list(_flat(OmegaConf.to_container(config, resolve=False))) + [str(k) for k in config]
    if key not in known and not any(k.startswith(key + ".") for k in known):
        raise UserError(f"{key}={text}: there is no setting {key}{_close(key, known)}; --cfg job lists all")
    try:
        parsed = OmegaConf.from_dotlist([f"value={text}"]).value if text else None
        _same_kind(key, text, OmegaConf.select(config, key, throw_on_missing=False), parsed)
        OmegaConf.update(config, key, parsed, merge=isinstance(parsed, DictConfig))
    except (OmegaConfBaseException, ValueError) as error:
        raise UserError(f"{key}={text}: {_first_line(error)}") from error
    except Exception as error:  # yaml's errors have no base that is ours to import
        raise UserError(f"{key}={text}: this cannot be read as a value ({_first_line(error)})") from error


def _same_kind(key: str, text: str, default: Any, value: Any) -> None:
    if default is None or value is None:
        return
    numbers = (int, float)
    kinds: tuple[tuple[Any, str], ...] = (
        (bool, "true or false"),
        (int, "a whole number"),
        (numbers, "a number"),
        (ListConfig, "a list, as [1,2]"),
        (DictConfig, "a group of settings"),
    )
    for kind, name in kinds:
        if isinstance(default, kind):
            right = isinstance(value, kind) and (kind is bool or not isinstance(value, bool))
            if not right:
                raise UserError(f"{key}={text}: give {name} (it is {default} by default)")
            return


def _check(config: Config) -> None:
    """What can be refused without building anything."""
    rules = (
        ("anar", config["anar"] in (2, 3, 5, 7), "give 2, 3, 5 or 7"),
        ("flows", isinstance(config["flows"], int) and config["flows"] >= 1, "give a whole number, 1 or more"),
        ("eta", isinstance(config["eta"], (int, float)) and 0 <= config["eta"] <= 1, "give a number in [0, 1]"),
        ("gpus", config["gpus"] == "auto" or _whole(config["gpus"]), "give auto, or a whole number, 0 for the CPU"),
        ("loader.workers", config["loader"]["workers"] == "auto" or _whole(config["loader"]["workers"]),
         "give auto, or a whole number, 0 for none"),
        ("dims", config["dims"] in (2, 3), "give 2 or 3"),
        ("stem", config["stem"] in ("imagenet", "cifar"), "give imagenet or cifar"),
        ("seed", _whole(config["seed"]), "give a whole number, 0 or more"),
    )
    for key, right, hint in rules:
        if not right:
            raise UserError(f"{key}={OmegaConf.select(OmegaConf.create(config), key)}: {hint}")


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _run_dir(config: Config, choices: dict[str, str], overrides: list[str]) -> Path:
    """runs/<task>/<backbone>-anar..-flows..-eta..-<recipe>-seed..[-<the other settings>]."""
    parts = [choices["backbone"], f"anar{config['anar']}", f"flows{config['flows']}", f"eta{config['eta']}"]
    if choices["tdaf"] != "tdaf":
        parts.insert(1, choices["tdaf"])
    parts += [choices["recipe"], f"seed{config['seed']}"]
    rest = sorted(o for o in overrides if not o.split("=")[0].lstrip("+~").startswith((*VOLATILE, "hydra")))
    rest = [o for o in rest if o.split("=")[0] not in NAMED]
    if rest:
        text = re.sub(r"[^\w.=,+-]", "_", ",".join(rest))
        if len(text) > 80 or re.search(r"[^\w.=,+-]", ",".join(rest)):
            text = f"{text[:60]}-{hashlib.sha256(','.join(rest).encode()).hexdigest()[:8]}"
        parts.append(text)
    return Path("runs") / choices["task"] / "-".join(parts)


def _resumed(folder: Path, overrides: list[str]) -> Config:
    config = from_folder(folder)
    for override in overrides:
        key = override.split("=")[0]
        if not key.startswith(VOLATILE):
            raise UserError(f"{override}: a run goes on with its own settings; with resume only {', '.join(VOLATILE)} may change")
    rest = [o for o in overrides if o.split("=")[0] not in ("resume", "run_dir")]
    return {**overridden(config, rest), "run_dir": str(folder), "resume": None}


def _flat(config: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(config, dict):
        return {prefix: config}
    return {k: v for name, child in config.items() for k, v in _flat(child, f"{prefix}.{name}" if prefix else str(name)).items()}


def _close(word: str, known: list[str]) -> str:
    """A did-you-mean for a word, by its whole and by its last part."""
    found = difflib.get_close_matches(word, known, n=1, cutoff=0.6)
    if not found:
        tails = {k.rsplit(".", 1)[-1]: k for k in known}
        found = [tails[t] for t in difflib.get_close_matches(word.rsplit(".", 1)[-1], tails, n=1, cutoff=0.7)]
    return f"; did you mean {found[0]}?" if found else ""


def _first_line(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
