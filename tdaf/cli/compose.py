"""The command line: overrides in, one resolved plain dictionary out, or a one-line UserError. No torch in here."""

from __future__ import annotations

import functools
import hashlib
import re
from pathlib import Path
from typing import Any

from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from tdaf.cli.overrides import FOLDER, Override, first_line, flat, parse, put
from tdaf.errors import UserError

# where a run takes place and how it is watched: what may change between a run and its continuation
VOLATILE = ("run_dir", "resume", "gpus", "loader", "trainer.log_every", "trainer.pictures", "trainer.hang_timeout")
NAMED = ("task", "backbone", "tdaf", "recipe", "anar", "flows", "eta", "seed")  # what a run folder's name always says
# those of tdaf/model/attention, where a test compares; here no torch is imported
ATTENTION = ("none", "se", "cbam", "nonlocal", "a2", "cgnl", "aa", "sasa", "abn", "resatt", "tdam")

Config = dict[str, Any]


def compose(arguments: list[str]) -> Config:
    """The resolved configuration of one run, with its task's name under "name" and its folder under "run_dir"."""
    overrides = [parse(argument) for argument in arguments]
    files = [override for override in overrides if override.chooses_file]
    before, choices = _composed(tuple(override.text for override in files))
    config = OmegaConf.create(before)
    for override in overrides:
        if not override.chooses_file:
            put(config, override)
    resolved = _resolved(config)
    if resolved["resume"]:
        return _resumed(Path(resolved["resume"]), overrides)
    resolved = {"name": choices["task"], "recipe": choices["recipe"], **resolved}
    _check(resolved)
    if resolved["run_dir"] is None:
        changed = _changed(before, OmegaConf.to_container(config), resolved)
        chosen = [o.text for o in files if o.key not in NAMED and not o.key.startswith("hydra")]
        resolved["run_dir"] = str(_run_dir(resolved, choices, sorted({*changed, *chosen})))
    return resolved


def from_folder(folder: Path) -> Config:
    """The configuration that a run folder holds."""
    path = folder / "config.yaml"
    try:
        config = OmegaConf.to_container(OmegaConf.load(path))
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(f"{folder} is not a run folder: it has no config.yaml") from None
    except Exception as error:  # yaml's errors have no base that is ours to import
        raise UserError(f"{path} cannot be read: {first_line(error)}") from error
    if not isinstance(config, dict) or "trainer" not in config:
        raise UserError(f"{path} is not the settings of a run")
    return config


def overridden(config: Config, arguments: list[str]) -> Config:
    """A resolved configuration with `key=value` overrides of its settings."""
    typed = OmegaConf.create(config)
    for argument in arguments:
        override = parse(argument)
        if override.chooses_file:
            raise UserError(f"{argument}: a run keeps its {override.key}")
        put(typed, override)
    changed = _resolved(typed)
    _check(changed)
    return changed


def to_yaml(config: Config) -> str:
    return OmegaConf.to_yaml(config)


def identity(config: Config, but: tuple[str, ...] = ()) -> dict[str, Any]:
    """The settings that make a run what it is, by their dotted names: all but VOLATILE ones and those of `but`."""
    return {key: value for key, value in flat(config).items() if not _among(key, (*VOLATILE, *but))}


def differences(old: Config, new: Config, but: tuple[str, ...] = ()) -> list[str]:
    """The settings that make two runs different ones, those of `but` aside, as "key: old there, new here"."""
    a, b = identity(old, but), identity(new, but)
    keys = sorted(a.keys() | b.keys())
    return [f"{k}: {a.get(k, 'absent')} there, {b.get(k, 'absent')} here" for k in keys if a.get(k) != b.get(k)]


@functools.lru_cache(maxsize=64)  # the jobs of a sweep mostly differ in values, which are set afterwards
def _composed(choices: tuple[str, ...]) -> tuple[Config, dict[str, str]]:
    """The files of configs/ put together, nothing resolved, and which file each group is."""
    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(str(FOLDER), version_base="1.3"):
            config = hydra_compose("train", list(choices), return_hydra_config=True)
    except (HydraException, OmegaConfBaseException) as error:
        raise UserError(first_line(error)) from error
    chosen = dict(config.hydra.runtime.choices)
    OmegaConf.set_struct(config, False)
    config.pop("hydra")
    return OmegaConf.to_container(config), chosen


def _resolved(config: DictConfig) -> Config:
    try:
        return OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    except OmegaConfBaseException as error:
        raise UserError(f"{error.full_key or 'settings'}: {first_line(error)}") from error


def _check(config: Config) -> None:
    """What can be refused without importing what it is for."""
    data, loader = config["data"], config["loader"]
    rules = (
        ("anar", _whole(config["anar"]) and config["anar"] in (2, 3, 5, 7), "give 2, 3, 5 or 7"),
        ("flows", _whole(config["flows"]) and config["flows"] >= 1, "give a whole number, 1 or more"),
        ("eta", _number(config["eta"]) and 0 <= config["eta"] <= 1, "give a number between 0 and 1"),
        ("gpus", config["gpus"] == "auto" or _whole(config["gpus"]), "give auto, or a whole number, 0 for the CPU"),
        (
            "loader.workers",
            loader["workers"] == "auto" or _whole(loader["workers"]),
            "give auto, or a whole number, 0 for none",
        ),
        ("loader.prefetch", _whole(loader["prefetch"]) and loader["prefetch"] > 0, "give a whole number above 0"),
        ("loader.timeout", _number(loader["timeout"]) and loader["timeout"] > 0, "give seconds, above 0"),
        ("data.max_bad", _whole(data.get("max_bad", 0)), "give a whole number, 0 or more"),
        ("dims", _whole(config["dims"]) and config["dims"] in (2, 3), "give 2 or 3"),
        ("stem", config["stem"] in ("imagenet", "small", "cifar"), "give imagenet, small or cifar"),
        ("attention", config["attention"] in ATTENTION, f"give {', '.join(ATTENTION[:-1])} or {ATTENTION[-1]}"),
        ("seed", _whole(config["seed"]), "give a whole number, 0 or more"),
        ("run_dir", config["run_dir"] != "", "give a folder"),
    )
    for key, right, hint in rules:
        if not right:
            value = flat(config).get(key, "...")
            shown = f"{value:g}" if isinstance(value, float) else "null" if value is None else value
            raise UserError(f"{key}={shown}: {hint}")


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _among(key: str, names: tuple[str, ...] = VOLATILE) -> bool:
    return any(key == name or key.startswith(name + ".") for name in names)


def _changed(before: Config, after: Config, resolved: Config) -> list[str]:
    """Which settings the command changed, as "key=value"; one set to what it was is not a change."""
    a, b, values = flat(before), flat(after), flat(resolved)
    keys = [k for k in a.keys() | b.keys() if a.get(k, a) != b.get(k, b) and k not in NAMED and not _among(k)]
    return [f"{k}={str(values[k]).replace(' ', '')}" if k in values else f"~{k}" for k in keys]


def _run_dir(config: Config, choices: dict[str, str], others: list[str]) -> Path:
    """runs/<task>/<backbone>-anar..-flows..-eta..-<recipe>-seed..[-<the other settings>]."""
    parts = [choices["backbone"], f"anar{config['anar']}", f"flows{config['flows']}", f"eta{config['eta']:g}"]
    if choices["tdaf"] != "tdaf":
        parts.insert(1, choices["tdaf"])
    parts += [choices["recipe"], f"seed{config['seed']}"]
    if others:
        exact = ",".join(others)
        text = re.sub(r"[^\w.=,+~-]", "_", exact)
        if text != exact or len(text) > 80:
            text = f"{text[:60]}-{hashlib.sha256(exact.encode()).hexdigest()[:8]}"
        parts.append(text)
    return Path("runs") / choices["task"] / "-".join(parts)


def _resumed(folder: Path, overrides: list[Override]) -> Config:
    config = from_folder(folder)
    rest = [o for o in overrides if o.key != "resume"]
    for override in rest:
        if not _among(override.key) or override.key == "run_dir":
            may = ", ".join(name for name in VOLATILE if name not in ("run_dir", "resume"))
            raise UserError(f"{override.text}: a run goes on with its own settings; resume takes only {may} beside it")
    return {**overridden(config, [o.text for o in rest]), "run_dir": str(folder), "resume": None}
