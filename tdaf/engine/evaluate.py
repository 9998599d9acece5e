"""Evaluation: every sample of a split counted exactly once, whatever the number of ranks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from tdaf.engine import dist
from tdaf.engine.loader import Loader
from tdaf.engine.precision import Precision, float32
from tdaf.errors import RunError
from tdaf.task import Task


@dataclass(frozen=True)
class Evaluation:
    """values: the evaluator's numbers by name. samples: how many were counted. skipped: left out by a skip list or
    because they could not be read (`data.max_bad`). protocol: how it was measured."""

    values: dict[str, float]
    samples: int
    skipped: int
    protocol: str

    def __str__(self) -> str:
        numbers = ", ".join(f"{name} {value:.4g}" for name, value in self.values.items())
        return f"{numbers} ({self.protocol}, {self.samples} samples, {self.skipped} skipped)"


@torch.no_grad()
def evaluate(
    network: nn.Module, task: Task, loader: Loader, precision: Precision, beat: Callable[[], None] = lambda: None
) -> Evaluation:
    """Runs the network over this rank's share of a split and computes the numbers on rank 0 for all ranks."""
    evaluator = task.evaluator()
    training = network.training
    network.eval()
    records = []
    for batch in loader:
        beat()
        if len(batch["index"]) == 0:
            continue
        moved = precision.move(batch)
        with precision.autocast():
            outputs = network(moved["input"])
        found = evaluator.update(float32(outputs), moved)
        records.extend(zip(batch["index"].tolist(), found, strict=True))
    network.train(training)
    shares = dist.gather((records, len(loader.bad)))
    result = None
    if dist.rank() == 0:
        records = sorted((r for share, _ in shares for r in share), key=lambda pair: pair[0])
        bad = sum(count for _, count in shares)
        expected = len(loader.dataset)
        if len({index for index, _ in records}) != len(records) or len(records) + bad != expected:
            raise RunError(f"evaluation counted {len(records)} of {expected} samples ({bad} unreadable): a sample was lost")
        values = evaluator.compute([record for _, record in records]) if records else {}
        result = Evaluation(values, len(records), bad + loader.dataset.skipped, evaluator.protocol)
    return dist.broadcast(result)
