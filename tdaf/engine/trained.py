"""A run again, as a library: from its checkpoint or folder to its settings, its task and its trained network.

    run = load_checkpoint("runs/imagenet/res50-anar3-flows3-eta0.5-paper-seed0")
    network, task = run.network(), run.task()

Settings are plain dictionaries in which `_target_` names a class (tdaf/build.py); nothing here needs Hydra. They come
out of a file, so what they name is held against tdaf's own parts before any of it is imported.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn

from tdaf.build import checked, make, takes
from tdaf.engine import checkpoint
from tdaf.errors import UserError, refused_files
from tdaf.settings import Settings, checked_settings
from tdaf.task import Task

EXPORTED = ".onnx"


@dataclass(frozen=True)
class Run:
    """A trained network's file, opened.

    Attributes:
        path: the checkpoint.
        settings: the run's, resolved and up to date.
        classes: names of what the network was trained to tell apart.
        weights: those that are evaluated: averaged over the steps (EMA) where the run keeps such.
        class_ids: numbers of the classes in the data set's own files, where its task has such (`Fcos.class_ids`).
    """

    path: Path
    settings: Settings
    classes: Sequence[str]
    weights: Mapping[str, torch.Tensor]
    class_ids: Sequence[int] | None = None

    @property
    def folder(self) -> Path:
        """The run folder, or the checkpoint's own where it lies alone."""
        return self.path.parent.parent if self.path.parent.name == "checkpoints" else self.path.parent

    def task(self, data: bool = False) -> Task:
        """The run's task.

        Args:
            data: with the data set that the settings name, for evaluation; else with the names of its classes alone,
                which is enough to predict with.

        Raises:
            UserError: settings that do not work, or data with other classes. (Those with the same ones in another
                order are brought into the network's order where the data source can, see `reorder`; with data.changed
                other names are accepted, as many of them.)
        """
        if not data:
            about = {"classes": list(self.classes), "ids": self.class_ids}
            data = SimpleNamespace(**about, background=self.settings["data"].get("background"))
            return make(self.settings["task"], "task", data=data)
        task = build_task(self.settings)
        own, now = list(self.classes), list(task.classes)
        if len(own) != len(now):
            difference = checkpoint.class_difference(own, now)
            raise UserError(
                f"{self.path} was trained for {len(own)} classes, and the data have {len(now)}: {difference}"
            )
        if self.settings["data"].get("changed") or own == now:
            return task
        reorder = getattr(getattr(task, "data", None), "reorder", None)
        if reorder is not None and len(set(own)) == len(own) and set(own) == set(now):
            reorder(own)
            return task
        difference = checkpoint.class_difference(own, now)
        raise UserError(f"{self.path} was trained for other classes: {difference}; {checkpoint.ACCEPT}")

    def network(self, task: Task | None = None, folded: bool = False) -> nn.Module:
        """The network with its weights, in eval mode, on the CPU: a new one in each call; folded: with every batch norm
        folded into its convolution, as it always is in an exported file. Raises UserError where weights and settings
        are not of one network."""
        if self.path.suffix == EXPORTED:
            return _exported(self.path)
        network = build_network({**self.settings, "pretrained": None}, task or self.task())
        try:
            network.load_state_dict(self.weights)
        except (RuntimeError, TypeError, AttributeError) as error:
            first = next((line.strip() for line in str(error).splitlines()[1:]), str(error))
            raise UserError(f"{self.path} is not of this network: {first[:200]}") from error
        if not folded:
            return network.eval()
        from tdaf.model.fold import fold

        return fold(network)


def load_checkpoint(path: str | Path, overrides: Mapping[str, Any] | None = None, trust: Sequence[str] = ()) -> Run:
    """A trained network from its file.

    Args:
        path: a checkpoint (.pt); a run folder, whose best checkpoint is taken; or what scripts/export.py wrote (.onnx).
        overrides: settings to change, by dotted names: {"task.protocol": "10crop"}.
        trust: modules beside tdaf's own that the file's settings may name, such as that of a task of yours.

    Raises:
        UserError: no checkpoint, a damaged one, or one that asks to run what is not to be trusted. Nothing that it
            names has been imported then.
    """
    with refused_files(path):
        path = checkpoint.of(path)
        is_exported = path.suffix == EXPORTED
        state = {"network": {}, "about": _exported(path).about} if is_exported else checkpoint.load(path)
    about = state.get("about")
    if not isinstance(about, dict) or not isinstance(about.get("config"), dict):
        raise UserError(f"{path} was not written by train.py: it does not say its settings")
    classes = about.get("classes")
    if not isinstance(classes, list) or not all(isinstance(name, str) for name in classes):
        raise UserError(f"{path} does not name the classes that it was trained for")
    settings = checked_settings(about["config"], str(path), trust)
    for key, value in (overrides or {}).items():
        _set(settings, key, value)
    return Run(path, settings, classes, _evaluated(state), about.get("class_ids"))


def build_task(settings: Settings) -> Task:
    """The task with its data set, which is `data.root` or, with recipe=demo and no root, drawn if it is not there."""
    data = {key: value for key, value in settings["data"].items() if key not in ("max_bad", "changed")}
    if settings["data"].get("max_bad") and takes(data, "max_bad", "data"):
        data["max_bad"] = settings["data"]["max_bad"]  # whether an archive may be cut off
    if "root" in data:
        data["root"] = data_root(settings)
    return make(settings["task"], "task", data=make(data, "data"))


def data_root(settings: Settings) -> str | None:
    """Where the data set lies: `data.root` or, where that is null, the recipe's demo data, drawn if not there yet."""
    if settings["data"]["root"] is not None or not settings.get("demo"):
        return settings["data"]["root"]
    from tdaf.demo.prepare import prepare  # what draws is needed by nothing else

    demo = checked(prepare, {**settings["demo"], "root": str(settings["demo"]["root"])}, "demo")
    return str(prepare(**{**demo, "root": Path(demo["root"])}))


def build_network(settings: Settings, task: Task) -> nn.Module:
    """The task's network around backbone and TDAF, with its first weights; `pretrained` ones are not loaded.

    gate_init=auto is "identity" (a network with pretrained weights starts as exactly the plain one) or "kaiming".
    """
    tdaf = dict(settings["tdaf"])
    if tdaf.get("gate_init") == "auto":
        tdaf["gate_init"] = "identity" if settings.get("pretrained") and 0 < settings["eta"] < 1 else "kaiming"
    return task.network(make(settings["backbone"], "backbone"), make(tdaf, "tdaf"))


def _exported(path: Path) -> Any:
    from tdaf.engine.export import Exported

    return Exported(path)


def _evaluated(state: dict[str, Any]) -> dict[str, torch.Tensor]:
    averaged = state.get("ema")
    if not isinstance(averaged, dict):
        return state["network"]
    if not any(name.startswith("module.") for name in averaged):
        return averaged
    return {name.removeprefix("module."): value for name, value in averaged.items() if name.startswith("module.")}


def _set(settings: Settings, key: str, value: Any) -> None:
    names = key.split(".")
    node: Any = settings
    for place, name in enumerate(names):
        known = list(node) if isinstance(node, dict) else []
        if name not in known:
            close = difflib.get_close_matches(name, known, n=1)
            hint = f"; did you mean {'.'.join([*names[:place], *close, *names[place + 1 :]])}?" if close else ""
            raise UserError(f"{key}={value}: this run has no such setting{hint}")
        parent, node = node, node[name]
    parent[names[-1]] = value
