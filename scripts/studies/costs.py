"""What each network of the study costs beside its accuracy: the time of a training step as a ratio to the first row's."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import nn

from benchmarks.timing import Spread, interleaved
from tdaf.cli import build
from tdaf.cli.compose import compose
from studies import kept
from studies.plan import Row
from tdaf.engine.precision import Precision
from tdaf.task import Batch, Task

ROUNDS = 7


def step_times(rows: Sequence[Row], more: list[str], cache: Path, rounds: int = ROUNDS) -> dict[str, Spread]:
    """By row name: the ratio of its training step (forward, loss, backward, optimizer) to that of the first row, timed in
    turns in this process, on a training batch of the run's own size. The first row's is its null: itself, again.

    cache: a JSON file that keeps the figures; rows that are all in it are not timed again.
    """
    known = kept.read(cache)
    if not all(row.name in known for row in rows):
        steps = {row.name: _step([*row.settings, *more]) for row in rows}
        times = interleaved(steps, rounds, torch.device("cpu"))
        first = rows[0].name
        known = {name: vars(times.null() if name == first else times.ratio(name, first)) for name in steps}
        kept.keep(cache, known)
    return {row.name: Spread(**known[row.name]) for row in rows}


def _step(settings: list[str]) -> Callable[[], None]:
    config = compose(settings)
    task = build.task(config)
    precision = Precision("fp32", torch.device("cpu"))
    network = precision.place(build.network(config, task)).train()
    dataset = task.dataset("train")
    batch = precision.move(dataset.collate([dataset[i] for i in range(config["trainer"]["batch"])]))
    return _training(network, task, batch, build.optimizer(config)(network))


def _training(network: nn.Module, task: Task, batch: Batch, optimizer: torch.optim.Optimizer) -> Callable[[], None]:
    def call() -> None:
        losses = task.losses(network(batch["input"]), batch)
        torch.stack(list(losses.values())).sum().backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return call
