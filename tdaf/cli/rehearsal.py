"""Mistakes that show before anything waits for them: settings alone, then one forward pass of each split."""

from __future__ import annotations

import copy
from types import SimpleNamespace

import torch
from torch import Tensor, nn

from tdaf.cli import build
from tdaf.cli.compose import Config
from tdaf.cli.overrides import first_line
from tdaf.engine import dist
from tdaf.engine.trainer import Trainer
from tdaf.errors import UnreadableSample, UserError
from tdaf.task import Task


def settings(config: Config) -> None:
    """Raises UserError for a run that cannot work, as far as that shows without samples and weights."""
    dist.count_gpus(config["gpus"])
    _built(config, build.task(config))


def choices(config: Config) -> nn.Module | None:
    """The network on the meta device, for ten classes in the place of data's. Raises UserError for choices that do not
    go together; data and GPUs are not looked at. None for a task of a user's own, which may ask more of its data."""
    if not str(config["task"].get("_target_")).startswith("tasks."):
        return None
    return _built(config, build.make(config["task"], "task", data=SimpleNamespace(classes=[*"0123456789"])))


def _built(config: Config, task: Task) -> nn.Module:
    build.settings(config)
    build.make(config["schedule"], "schedule")(steps_per_epoch=1, steps=1)
    optimizer = build.optimizer(config)
    network = meta_network(config, task)
    optimizer(network)
    return network


def meta_network(config: Config, task: Task) -> nn.Module:
    """The task's network on the meta device, without weights."""
    try:
        with torch.device("meta"):
            network = build.network(config, task)
    except NotImplementedError:  # a library's network may read values while it is built (torchvision's RegNet)
        network = build.network(config, task)
    return network.to("meta")


@torch.no_grad()
def shapes(trainer: Trainer) -> None:
    """Raises UserError where the network cannot take the shapes of the first samples of both splits."""
    splits = (
        ("training", trainer.train_set, True, trainer.micro_batch),
        ("validation", trainer.val_set, False, 1),
    )
    for split, dataset, mode, size in splits:
        try:
            inputs = dataset.collate([dataset[0]])["input"]
        except UnreadableSample:
            continue  # the loader names it and counts it
        if not isinstance(inputs, Tensor):
            continue
        try:
            _forward(trainer.network, mode, inputs, size)
        except UserError:
            raise
        except (RuntimeError, ValueError) as error:
            shape = "x".join(map(str, inputs.shape[1:]))
            reason = f"{first_line(error)}; look at their size, at dims and trainer.batch"
            raise UserError(f"the network cannot take {split} samples of {shape}: {reason}") from error


def _forward(network: nn.Module, training: bool, inputs: Tensor, size: int) -> None:
    """On the meta device, where nothing is computed; a network that reads a value (`.item()`, `nonzero`) cannot run
    there, so what fails is tried again with two real samples on the CPU."""
    for device, samples in (("meta", size), ("cpu", min(size, 2))):
        try:
            network_there = copy.deepcopy(network).to(device).train(training)
            network_there(inputs.to(device).expand(samples, *inputs.shape[1:]))
            return
        except (RuntimeError, ValueError):
            if device == "cpu":
                raise
