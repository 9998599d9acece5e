"""From the resolved configuration to the objects of a run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from tdaf.cli.compose import Config
from tdaf.build import checked, make
from tdaf.demo.prepare import prepare
from tdaf.engine import optim
from tdaf.engine.settings import Settings
from tdaf.errors import UserError
from tdaf.model import pretrained
from tdaf.task import Task

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
        except UserError:
            raise
        except (TypeError, ValueError, ImportError, AttributeError) as error:
            first = str(error).splitlines()[0]
            raise UserError(f"optim: {config['optim']['factory']['_target_']}: {first}") from error

    built(nn.Linear(1, 1, device="meta"))
    return built
