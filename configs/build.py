"""From the resolved configuration to objects: the one place where a `_target_` becomes a class."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from torch import nn

from configs.compose import Config
from configs.overrides import first_line
from configs.signature import checked, checked_tree
from tdaf.demo.prepare import prepare
from tdaf.engine import optim
from tdaf.engine.settings import Settings
from tdaf.errors import UserError
from tdaf.model import pretrained
from tdaf.task import Task

REFUSALS = (TypeError, ValueError, ImportError, AttributeError)  # what a class says to arguments that it does not take


def make(node: Config, where: str, **extra: Any) -> Any:
    """The object that `node` describes. where: the setting's name, for messages. extra: arguments not in the config.

    Raises UserError for a setting that its class has not, or takes in another kind, and for what the class refuses.
    """
    try:
        return instantiate(checked_tree(node, where, tuple(extra)), _convert_="all", **extra)
    except InstantiationException as error:
        cause: BaseException = error
        while isinstance(cause, InstantiationException) and cause.__cause__ is not None:
            cause = cause.__cause__
        if isinstance(cause, UserError):
            raise cause from None
        if isinstance(cause, REFUSALS):
            raise UserError(f"{where}: {node['_target_']} cannot be built: {first_line(cause)}") from error
        raise


def settings(config: Config) -> Settings:
    return make({"_target_": "tdaf.engine.settings.Settings", **config["trainer"]}, "trainer")


def data_root(config: Config) -> str | None:
    """`data.root`; where it is null and the recipe has demo data, those, drawn if they are not there yet."""
    if config["data"]["root"] is None and config["demo"]:
        demo = checked(prepare, {**config["demo"], "root": str(config["demo"]["root"])}, "demo")
        return str(prepare(**{**demo, "root": Path(demo["root"])}))
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
            raise UserError("pretrained=imagenet: torchvision has no weights for this backbone; give a checkpoint")
        return pretrained.load(network, pretrained.torchvision_weights(config["weights"]))
    return pretrained.load(network, pretrained.read_checkpoint(source))


def optimizer(config: Config) -> Callable[[nn.Module], torch.optim.Optimizer]:
    """A function (network) -> its optimizer. Raises UserError at once for settings that it never takes."""
    own = {k: v for k, v in config["optim"].items() if k != "factory"}
    own = checked(optim.optimizer, own, "optim", ("network", "factory", "batch"))
    factory = make(config["optim"]["factory"], "optim.factory")

    def built(network: nn.Module) -> torch.optim.Optimizer:
        try:
            return optim.optimizer(network, factory, batch=config["trainer"]["batch"], **own)
        except REFUSALS as error:
            raise UserError(f"optim: {config['optim']['factory']['_target_']}: {first_line(error)}") from error

    built(nn.Linear(1, 1, device="meta"))
    return built
