"""The command line as settings: Hydra's own compose, held to one line where something is wrong. No torch in here."""

from __future__ import annotations

import functools
import hashlib
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from hydra import initialize_config_dir
from hydra.core.config_loader import ConfigLoader
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException, MissingConfigException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from tdaf.build import checked, found, refuse_untrusted
from tdaf.cli import FOLDER
from tdaf.cli.overrides import TEXTS, did_you_mean, parse
from tdaf.engine.settings import LoaderSettings, Settings
from tdaf.errors import UserError, first_line
from tdaf.ranges import as_written, check_ranges
from tdaf.settings import draws_elsewhere, flat, map_leaves, read_yaml, upgraded

Config = dict[str, Any]

# where a run takes place and how it is watched: what may change between a run and its continuation
VOLATILE = (
    *("run_dir", "resume", "gpus", "loader", "data.root", "data.changed"),
    *("trainer.log_every", "trainer.pictures", "trainer.hang_timeout", "trainer.keep", "trainer.log", "log"),
)
ROOT = "data.root"
KNOBS = ("milestones",)  # settings that only say what another one is
NAMED = ("task", "backbone", "tdaf", "recipe", "anar", "flows", "eta", "seed")  # what a run folder's name always says
NODES = ("task", "data", "backbone", "tdaf", "optim", "schedule", "trainer", "loader")  # what every run is made of
# arguments of classes that have defaults, and so can be left out; but not what is read by more than the class
REMOVABLE = re.compile(
    r"(task|data|backbone|tdaf|schedule|optim\.factory)\.(?!root$|max_bad$|changed$)(.*\.)?(?!_target_$)[^.]+"
)
PIXELS = "tdaf.model.backbones.library.preprocessing"  # of configs/backbone/pixels; with torch, so looked up when asked
OmegaConf.register_new_resolver("pixels", lambda network, what: found(PIXELS, "backbone")(network)[what], replace=True)
# true and false, the first, are numbers to Python, and none to us
KINDS = {bool: "true or false", (int, float): "a number", list: "a list, as [1,2]", dict: ""}


def compose(arguments: Sequence[str]) -> Config:
    """The resolved settings of one run, as plain data, with its task's name under "name", its folder under "run_dir".

    Args:
        arguments: Hydra's overrides, `key=value`; a value that its grammar cannot read is taken as text.

    Raises:
        UserError: one line: an unknown setting or file, a value of another kind or out of range.
    """
    overrides = parse(arguments)
    resume = next((o.value() for o in overrides if o.key_or_group == "resume" and not o.is_delete()), None)
    if resume:
        return _resumed(Path(str(resume)), overrides)
    choosing = [o for o in overrides if _chooses_file(o, overrides)]
    before = OmegaConf.to_container(load(tuple(o.input_line for o in choosing))[0])
    _check_names([o for o in overrides if o not in choosing], before)
    after, choices = load(tuple(o.input_line for o in overrides))
    _check_recipe(choices["task"], choices["recipe"], overrides)
    config = {"name": choices["task"], "recipe": choices["recipe"], **_resolved(_of_kind(before, after))}
    _check_values(config)
    if config["run_dir"] is None:
        changed = _changed(before, OmegaConf.to_container(after), config)
        chosen = [o.input_line for o in choosing if o.key_or_group not in NAMED]
        # no mechanism is no change, whether or not the command says so
        chosen = [text for text in chosen if not text.startswith("hydra") and text != "attention=none"]
        config["run_dir"] = str(_run_dir(config, choices, [*changed, *chosen]))
    return _at_home(config)


def group_options(group: str, overrides: Sequence[Override] = ()) -> list[str]:
    """The files that a group has, a user's own of `hydra.searchpath` among them; none for what is no group."""
    return _options(group, tuple(o.input_line for o in overrides if o.key_or_group == "hydra.searchpath"))


def from_folder(folder: Path) -> Config:
    """The settings that a run folder holds, to compare with; to build from them, see `refuse_untrusted`."""
    path = folder / "config.yaml"
    try:
        config = read_yaml(path)
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(f"{folder} is not a run folder: it has no config.yaml") from None
    if not isinstance(config, dict) or not all(isinstance(config.get(node), dict) for node in ("trainer", "loader")):
        raise UserError(f"{path} is not the settings of a run")
    return upgraded(config)


def overridden(config: Config, arguments: Sequence[str]) -> Config:
    """Resolved settings with `key=value` overrides; the files that they were composed of stay. Raises UserError."""
    overrides = parse(arguments)
    for override in overrides:
        if _chooses_file(override, overrides):
            raise UserError(f"{override.input_line}: a run keeps its {override.key_or_group}")
    _check_names(overrides, config)
    after = OmegaConf.create(config)
    for override in overrides:
        key = override.key_or_group
        if override.is_delete():
            parent, _, name = key.rpartition(".")
            del OmegaConf.select(after, parent)[name]
        else:
            value = override.value()
            try:
                OmegaConf.update(after, key, value, merge=isinstance(value, dict), force_add=True)
            except (OmegaConfBaseException, TypeError) as error:
                raise UserError(f"{override.input_line}: this cannot be set ({first_line(error)})") from error
    changed = _resolved(_of_kind(config, after))
    _check_values(changed)
    return _at_home(changed)


def to_yaml(config: Config) -> str:
    return OmegaConf.to_yaml(config)


def identity(config: Config, but: tuple[str, ...] = ()) -> dict[str, Any]:
    """The settings that make a run what it is, by their dotted names: all but VOLATILE ones and those of `but`."""
    return {key: value for key, value in flat(_at_home(config)).items() if not _among(key, (*VOLATILE, *KNOBS, *but))}


def differences(old: Config, new: Config, but: tuple[str, ...] = ()) -> list[str]:
    """The settings that make two runs different ones, those of `but` aside, as "key: old there, new here"."""
    a, b = identity(old, but), identity(new, but)
    keys = sorted(a.keys() | b.keys())
    return [f"{k}: {a.get(k, 'absent')} there, {b.get(k, 'absent')} here" for k in keys if a.get(k) != b.get(k)]


@functools.cache
def _loader() -> ConfigLoader:
    """Hydra's reader of configs/. It is made once; a running `hydra.main` keeps its own."""
    state = GlobalHydra.instance()
    running, state.hydra = state.hydra, None
    try:
        with initialize_config_dir(str(FOLDER), version_base="1.3"):
            return GlobalHydra.instance().config_loader()
    finally:
        GlobalHydra.instance().hydra = running


@functools.cache  # Hydra reads train.yaml anew for each question, and a command asks one for every word
def _options(group: str, search: tuple[str, ...]) -> list[str]:
    try:
        return _loader().get_group_options(group, config_name="train", overrides=list(search))
    except HydraException as error:
        raise UserError(first_line(error)) from error


@functools.lru_cache(maxsize=64)  # the jobs of a sweep mostly share their files
def load(overrides: tuple[str, ...]) -> tuple[DictConfig, dict[str, str]]:
    """What Hydra composes, nothing resolved, and which file each group is."""
    try:
        config = _loader().load_configuration("train", list(overrides), RunMode.RUN, from_shell=False)
    except MissingConfigException as error:
        raise UserError(_missing(error)) from error
    except (HydraException, OmegaConfBaseException) as error:
        raise UserError(first_line(error)) from error
    except yaml.MarkedYAMLError as error:
        raise UserError(f"{' '.join(str(error.problem_mark).split())}: {error.problem}") from error
    choices = dict(config.hydra.runtime.choices)
    OmegaConf.set_struct(config, False)
    config.pop("hydra")
    return config, choices


def _missing(error: MissingConfigException) -> str:
    group, _, name = str(error.missing_cfg_file).rpartition("/")
    if error.options is None or not group:
        return first_line(error)
    if group.startswith("hydra/"):
        return first_line(error) + ("; pip install 'tdaf[slurm]' brings SLURM's" if group == "hydra/launcher" else "")
    hint = did_you_mean(name, error.options) or "."
    return f"{group}={name}: there is no such {group}{hint} Choose from {', '.join(sorted(error.options))}"


def _chooses_file(override: Override, overrides: Sequence[Override]) -> bool:
    """Whether it picks files, or is Hydra's own setting, rather than a value."""
    key = override.key_or_group
    if key.startswith(("hydra.", "hydra/")):
        return True
    if not _is_group(key, overrides):
        return False
    if override.is_delete():
        raise UserError(f"{override.input_line}: {key} cannot be left out; choose another file of it")
    if override.is_add() and key in NODES:
        raise UserError(f"{override.input_line}: {key} has a choice already; write {key}={override.value()}")
    if key in NODES and override.value() in (None, "", "null"):
        options = ", ".join(group_options(key, overrides))
        raise UserError(f"{override.input_line}: there is no such {key}. Choose from {options}")
    return True


def _check_recipe(task: str, recipe: str, overrides: Sequence[Override]) -> None:
    """Raises UserError for a recipe that is of other tasks alone. (A task of a user's own takes any.)"""
    pairs = group_options("recipe/task", overrides)
    of = [pair.removesuffix(f"_{recipe}") for pair in pairs if pair.endswith(f"_{recipe}")]
    if of and task not in of and any(pair.startswith(f"{task}_") for pair in pairs):
        raise UserError(f"recipe={recipe}: there is none for task={task}, only for {', '.join(of)}")


def _is_group(key: str, overrides: Sequence[Override]) -> bool:
    return "." not in key and bool(group_options(key, overrides))


def _check_names(overrides: Sequence[Override], config: Config) -> None:
    """Raises UserError for a setting that is not there, and for one that must be."""
    known = [*flat(config), *config]
    for override in overrides:
        key, text = override.key_or_group, override.input_line
        exists = key in known or any(name.startswith(key + ".") for name in known)
        if override.is_delete():
            if not exists:
                raise UserError(f"{text}: there is no setting {key}{did_you_mean(key, known)}")
            if not REMOVABLE.fullmatch(key):
                raise UserError(f"{text}: {key} cannot be left out; give it another value")
        elif exists and override.is_add():
            raise UserError(f"{text}: {key} is there already; leave the + out")
        elif not exists and not (override.is_add() or override.is_force_add()):
            raise UserError(f"{text}: there is no setting {key}{did_you_mean(key, known) or '; --cfg job lists all'}")
        elif not exists and "." not in key:
            raise UserError(f"{text}: nothing reads a new setting {key}{did_you_mean(key, known)}")
        elif exists and isinstance(override.value(), dict) and not override.is_force_add():
            for name in flat(override.value(), key):
                if name not in known:
                    raise UserError(f"{name}: there is no such setting{did_you_mean(name, known)}")


def _of_kind(old: Config, after: DictConfig) -> DictConfig:
    """`after`, whole numbers made floats where floats stand in `old`. UserError for a value of another kind; null
    and ${...} are judged where the setting is used."""
    new, known = OmegaConf.to_container(after), flat(old)
    groups = {name.rsplit(".", depth)[0] for name in known for depth in range(1, name.count(".") + 1)}
    for key, value in flat(new).items():
        now = {} if key in groups else known.get(key)
        kind = next((kind for kind in KINDS if isinstance(now, kind)), None)
        if kind is None or value is None and key not in NODES or any("${" in str(v) for v in (now, value)):
            continue
        if not isinstance(value, kind) or isinstance(value, bool) and kind is not bool:
            shown = f"{KINDS[kind]} (it is {str(now).lower().replace(' ', '')})"
            if kind is dict:
                inside = (k for k in (f"{key}.root", *known) if k in known and k.startswith(f"{key}."))
                shown = f"its settings, as {next(inside, key)}=..."
            elif type(now) is int:
                shown = shown.replace("a number", "a whole number")
            raise UserError(f"{key}={as_written(value)}: give {shown}")
        if isinstance(now, float):
            OmegaConf.update(after, key, float(value))
    return after


def _resolved(config: DictConfig) -> Config:
    try:
        return OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    except OmegaConfBaseException as error:
        cause: BaseException | None = error  # of a resolver's own, OmegaConf makes another
        while cause := cause.__cause__ or cause.__context__:
            if isinstance(cause, UserError):
                raise cause from None
        raise UserError(f"{error.full_key or 'settings'}: {first_line(error)}") from error


def _check_values(config: Config) -> None:
    """What can be refused without importing what it is for."""
    for node in NODES:
        if not isinstance(config.get(node), dict):
            raise UserError(f"{node}: this cannot be left out; choose another file of it")
    for key, value in flat(config).items():
        if TEXTS.fullmatch(key) and value is not None:
            if not isinstance(value, str) or not value or value != value.strip():
                raise UserError(f"{key}={as_written(value)}: give null or a path, without a blank at one end")
    check_ranges(config)
    for node, kind in (("trainer", Settings), ("loader", LoaderSettings)):
        checked(kind, config[node], node)


def _at_home(node: Any) -> Any:
    """Settings with the user's home folder in place of each leading ~."""
    home = os.path.expanduser
    return map_leaves(lambda leaf: home(leaf) if isinstance(leaf, str) and leaf.startswith("~/") else leaf, node)


def _among(key: str, names: tuple[str, ...] = VOLATILE) -> bool:
    return any(key == name or key.startswith(name + ".") for name in names)


def _changed(before: Config, after: Config, resolved: Config) -> list[str]:
    """Which settings the command changed, as "key=value"; one set to what it was is not a change."""
    a, b, values = flat(before), flat(after), flat(resolved)
    keys = [k for k in a.keys() | b.keys() if a.get(k, a) != b.get(k, b) and k not in NAMED]
    keys = [k for k in keys if k == ROOT or not _among(k)]
    return [f"{k}={str(values[k]).replace(' ', '')}" if k in values else f"~{k}" for k in keys]


def _run_dir(config: Config, choices: dict[str, str], others: Sequence[str]) -> Path:
    """The run's folder by its settings. Of `data.root` its last part is in the name: two data sets are two runs, and
    one that is moved or copied stays the same. (What an older version named by the whole path is found.)"""
    root = config["data"].get("root")
    short = [f"{ROOT}={os.path.basename(os.path.abspath(root))}" if t.startswith(f"{ROOT}=") else t for t in others]
    new, old = (_folder(config, choices, sorted(set(texts))) for texts in (short, others))
    return old if (old / "config.yaml").exists() and not (new / "config.yaml").exists() else new


def _folder(config: Config, choices: dict[str, str], others: list[str]) -> Path:
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
    trust = [str(o.value()) for o in overrides if o.key_or_group == "trust"]
    refuse_untrusted(config, str(folder / "config.yaml"), trust)
    if draws_elsewhere(config):
        asks = f"{folder / 'config.yaml'} asks to draw demo data in {config['demo']['root']}"
        raise UserError(f"{asks}: give the run's own command instead")
    rest = [o for o in overrides if o.key_or_group not in ("resume", "trust")]
    for override in rest:
        if not _among(override.key_or_group) or override.key_or_group == "run_dir":
            may = ", ".join(name for name in VOLATILE if name not in ("run_dir", "resume"))
            text = override.input_line
            raise UserError(f"{text}: a run goes on with its own settings; resume takes only {may} beside it")
    return {**overridden(config, [o.input_line for o in rest]), "run_dir": str(folder), "resume": None}
