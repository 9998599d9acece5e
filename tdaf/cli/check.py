"""recipe=check: does everything work? A step of training and an evaluation of a few samples, pictures and checkpoint
included, in a folder that goes again; then one batch is learnt by heart, which any network and loss must be able to."""

from __future__ import annotations

import dataclasses
import time
from tempfile import TemporaryDirectory
from typing import Any

import torch

from tdaf.cli import build, rehearsal
from tdaf.cli.compose import Config
from tdaf.engine import dist
from tdaf.engine.precision import float32
from tdaf.engine.trainer import Trainer
from tdaf.errors import RunError

SECONDS = 30  # of learning by heart
ENOUGH, NEEDED = 0.02, 0.3  # shares of the first loss: where it ends, and what must be reached by then
LR, FEW = 1e-3, 20


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


def run(config: Config, task: Any, network: torch.nn.Module, device: torch.device, **trainer: Any) -> None:
    """Raises whatever goes wrong, and RunError where the batch is not learnt."""
    begun = time.monotonic()
    settings = dataclasses.replace(build.settings(config), max_steps=1, evaluate_every=0, log_every=1)
    with TemporaryDirectory() as folder:
        made = Trainer(task, network, settings, run_dir=dist.broadcast(folder), device=device, **trainer)
        made.val_set = First(made.val_set, settings.batch)
        dist.run_on_all_ranks(lambda: rehearsal.shapes(made))
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
