"""Mistakes that show before anything waits for them: settings alone, then one forward pass of each split; and
recipe=check, which tries everything."""

from __future__ import annotations

import copy
import dataclasses
import time
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from tdaf.cli import build
from tdaf.cli.compose import Config
from tdaf.engine import dist
from tdaf.engine.precision import float32
from tdaf.engine.trainer import Trainer
from tdaf.errors import RunError, UnreadableSample, UserError, first_line
from tdaf.task import Task

SECONDS = 30  # of learning by heart
ENOUGH, NEEDED = 0.02, 0.3  # shares of the first loss: where it ends, and what must be reached by then
LR, FEW = 1e-3, 100


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


class First:
    """The first samples of a data set."""

    def __init__(self, dataset: Any, length: int) -> None:
        self.dataset, self.length = dataset, min(length, len(dataset))

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.dataset[index]

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["dataset"], name)


def check(config: Config, task: Any, network: nn.Module, device: torch.device, **trainer: Any) -> None:
    """recipe=check: a step of training and an evaluation of a few samples, pictures and checkpoint included, in a
    folder that goes again; then one batch is learnt by heart, which any network and loss must be able to.

    Raises whatever goes wrong, and RunError where the batch is not learnt.
    """
    begun = time.monotonic()
    settings = dataclasses.replace(build.settings(config), max_steps=1, evaluate_every=0, log_every=1)
    with TemporaryDirectory() as folder:
        made = Trainer(task, network, settings, run_dir=dist.broadcast(folder), device=device, **trainer)
        made.val_set = First(made.val_set, settings.batch)
        dist.run_on_all_ranks(lambda: shapes(made))
        made.fit()
    first, last, steps = by_heart(made)
    text = f"one batch learnt by heart: loss {first:.4g} to {last:.4g} in {steps} steps"
    if not last <= NEEDED * first:
        slow = f"; {steps} are few: on this machine give smaller inputs or trainer.batch=2" if steps < FEW else ""
        why = f"and not to {NEEDED:.0%} of it: look at the labels, the losses and what is frozen{slow}"
        raise RunError(f"{text}, {why}")
    if dist.rank() == 0:
        print(f"{text}; everything works ({time.monotonic() - begun:.0f} s)", flush=True)


def by_heart(trainer: Trainer) -> tuple[float, float, int]:
    """The first and the last loss on one batch, and the steps between them."""
    dataset, network = trainer.train_set, trainer.network.train()
    batch = dataset.collate([dataset[index] for index in range(min(trainer.micro_batch, len(dataset)))])
    batch = trainer.precision.move({**batch, "index": torch.arange(len(batch["input"]))})
    optimizer = torch.optim.AdamW([p for p in network.parameters() if p.requires_grad], lr=LR, weight_decay=0)
    values: list[float] = []
    end = time.monotonic() + SECONDS
    while True:
        with trainer.precision.autocast():
            outputs = network(batch["input"])
        loss = sum(trainer.task.losses(float32(outputs), batch).values())
        values.append(loss.item())
        done = time.monotonic() > end or not values[-1] > ENOUGH * values[0]
        if dist.broadcast(done):  # all ranks together, as losses may ask each other
            return values[0], min(values[-5:]), len(values) - 1
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
