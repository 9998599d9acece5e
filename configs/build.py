"""From the resolved configuration to objects: the one place where a `_target_` becomes a class."""

from __future__ import annotations

import difflib
import inspect
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from hydra.errors import InstantiationException
from hydra.utils import get_object, instantiate
from torch import nn

from configs.compose import Config
from tdaf.demo.prepare import prepare
from tdaf.engine import optim
from tdaf.errors import UserError
from tdaf.model import pretrained
from tdaf.task import Task


def make(node: Config, where: str, **extra: Any) -> Any:
    """The object that `node` describes. where: the setting's name, for messages. extra: arguments not in the config."""
    try:
        return instantiate(node, _convert_="all", **extra)
    except InstantiationException as error:
        cause = error.__cause__
        if isinstance(cause, UserError):
            raise cause from None
        if isinstance(cause, (TypeError, ImportError, AttributeError)) or cause is None:
            raise UserError(_explained(node, where, error)) from error
        raise


def data_root(config: Config) -> str | None:
    """`data.root`; where it is null and the recipe has demo data, those, drawn if they are not there yet."""
    if config["data"]["root"] is None and config["demo"]:
        return str(prepare(**{**config["demo"], "root": Path(config["demo"]["root"])}))
    return config["data"]["root"]


def task(config: Config) -> Task:
    settings = {k: v for k, v in config["data"].items() if k != "max_bad"}
    source = make({**settings, "root": data_root(config)}, "data")
    return make(config["task"], "task", data=source)


def network(config: Config, task: Task) -> nn.Module:
    """The task's network around the backbone and TDAF, with its first weights but for pretrained ones."""
    settings = dict(config["tdaf"])
    if settings.get("gate_init") == "auto":
        settings["gate_init"] = "identity" if config["pretrained"] and 0 < config["eta"] < 1 else "kaiming"
    return task.network(make(config["backbone"], "backbone"), make(settings, "tdaf"))


def load_pretrained(config: Config, network: nn.Module) -> pretrained.Report | None:
    """Puts `pretrained` weights into the network, if any are asked for."""
    source = config["pretrained"]
    if source is None:
        return None
    if source == "imagenet":
        if config["weights"] is None:
            raise UserError("pretrained=imagenet: torchvision has no weights for this backbone; give a checkpoint's path")
        return pretrained.load(network, pretrained.torchvision_weights(config["weights"]))
    return pretrained.load(network, pretrained.read_checkpoint(source))


def optimizer(config: Config) -> Callable[[nn.Module], torch.optim.Optimizer]:
    settings = {k: v for k, v in config["optim"].items() if k != "factory"}
    factory = make(config["optim"]["factory"], "optim.factory")
    return lambda network: optim.optimizer(network, factory, batch=config["trainer"]["batch"], **settings)


def _explained(node: Config, where: str, error: InstantiationException) -> str:
    text = str(error.__cause__ or error)
    unknown = re.search(r"unexpected keyword argument '(\w+)'", text)
    if unknown:
        known = [name for name in inspect.signature(get_object(node["_target_"])).parameters if name != "self"]
        close = difflib.get_close_matches(unknown[1], known, n=1)
        return (
            f"{where}.{unknown[1]}: {node['_target_']} has no such setting"
            + (f"; did you mean {close[0]}?" if close else f"; it has {', '.join(known)}")
        )
    return f"{where}: {node.get('_target_')} cannot be built: {text.splitlines()[0]}"
