"""From the resolved configuration to the objects of a run."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import nn

from tdaf.build import checked, make
from tdaf.cli.compose import Config
from tdaf.engine import checkpoint, optim
from tdaf.engine.settings import Settings
from tdaf.engine.trained import build_network as network
from tdaf.engine.trained import build_task as task
from tdaf.engine.trained import data_root
from tdaf.errors import UserError, first_line

if TYPE_CHECKING:
    from tdaf.model import pretrained

__all__ = ["data_root", "load_pretrained", "make", "network", "optimizer", "settings", "task"]


def settings(config: Config) -> Settings:
    return make({**config["trainer"], "_target_": "tdaf.engine.settings.Settings"}, "trainer")


def load_pretrained(config: Config, network: nn.Module) -> pretrained.Report | None:
    """Puts `pretrained` weights into the network, if any are asked for: by name, of a file, or of a run folder."""
    source = config["pretrained"]
    if source is None:
        return None
    from tdaf.model import pretrained

    if source == "imagenet":
        name = config["weights"]
        if name is None:
            raise UserError("pretrained=imagenet: torchvision has no weights for this backbone; give a checkpoint")
        if "/" in name:
            from tdaf.model.backbones import library

            return pretrained.load(network, library.weights(name), name)
        return pretrained.load(network, pretrained.torchvision_weights(name), name)
    return pretrained.load(network, *pretrained.read_checkpoint(checkpoint.of(source)))


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
            raise UserError(f"optim: {config['optim']['factory']['_target_']}: {first_line(error)}") from error

    built(nn.Linear(1, 1, device="meta"))
    return built
