"""Evaluation: every sample of a split counted exactly once, whatever the number of ranks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from tdaf.engine import dist
from tdaf.engine.loader import Loader
from tdaf.engine.precision import Precision, float32
from tdaf.errors import RunError
from tdaf.task import Evaluator, Task


@dataclass(frozen=True)
class Evaluation:
    """values: the evaluator's numbers by name. samples: how many were counted. skipped: left out by a skip list or
    because they could not be read (`data.max_bad`). protocol: how it was measured."""

    values: dict[str, float]
    samples: int
    skipped: int
    protocol: str

    def __str__(self) -> str:
        numbers = ", ".join(f"{name} {_short(value)}" for name, value in self.values.items())
        return f"{numbers} ({self.protocol}, {self.samples} samples, {self.skipped} skipped)"


def _short(value: float) -> str:
    """A count stays whole."""
    return str(value) if isinstance(value, int) else f"{value:.4g}"


@torch.no_grad()
def evaluate(
    network: nn.Module,
    task: Task,
    loader: Loader,
    precision: Precision,
    *,
    keep: Callable[[str, str], None],
    beat: Callable[[], None] = lambda: None,
) -> Evaluation:
    """Runs the network over this rank's share of a split and computes the numbers on rank 0 for all ranks.

    keep(name, text) takes the evaluator's files, on rank 0. beat() is called before every batch.

    RunError: more samples than `data.max_bad` cannot be read, in this share or in all of them together.
    """
    evaluator = task.evaluator()
    try:
        records = _records(network, evaluator, loader, precision, beat)
    except RuntimeError as error:
        raise loader.explained(error) from None
    shares = dist.gather((records, loader.bad))
    result = dist.together(lambda: _result(shares, evaluator, loader, keep) if dist.rank() == 0 else None)
    return dist.broadcast(result)


def _records(
    network: nn.Module, evaluator: Evaluator, loader: Loader, precision: Precision, beat: Callable[[], None]
) -> list[tuple[int, Any]]:
    """Of this rank's share: (the sample's index, its record)."""
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
    return records


def _result(
    shares: list[tuple[list, dict]], evaluator: Evaluator, loader: Loader, keep: Callable[[str, str], None]
) -> Evaluation:
    records = sorted((r for share, _ in shares for r in share), key=lambda pair: pair[0])
    bad = {index: why for _, found in shares for index, why in found.items()}
    files = list(dict.fromkeys(name for name, _ in bad.values()))
    if len(files) > loader.max_bad:
        names = ", ".join(files[:3]) + (", ..." if len(files) > 3 else "")
        raise RunError(f"cannot read {len(files)} samples ({names}), data.max_bad={loader.max_bad}")
    expected = len(loader.dataset)
    if len({index for index, _ in records}) != len(records) or len(records) + len(bad) != expected:
        counts = f"{len(records)} of {expected} samples ({len(bad)} unreadable)"
        raise RunError(f"evaluation counted {counts}: a sample was lost or counted twice")
    if not records:
        raise RunError("not one sample of the split could be read; see scripts/check_data.py")
    found = [record for _, record in records]
    values = evaluator.compute(found)
    values, files = values if isinstance(values, tuple) else (values, evaluator.files(found))
    for name, text in files.items():
        keep(name, text)
    return Evaluation(values, len(records), len(bad) + loader.dataset.skipped, evaluator.protocol)
