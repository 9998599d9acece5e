"""Evaluation: every sample of a split counted exactly once, whatever the number of ranks."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from tdaf.engine import dist
from tdaf.engine.data import EvaluationOrder, Loader
from tdaf.engine.precision import Precision, float32
from tdaf.engine.settings import LoaderSettings
from tdaf.errors import RunError
from tdaf.measure import eval_mode
from tdaf.settings import map_leaves
from tdaf.task import Dataset, Evaluator, Task

EARLY = 3  # evaluations of a run in which the weights that are not averaged are measured too
REPORT = "report.html"
WIDE = 0.2  # a difference of two metrics that is told, as a part of the larger one


@dataclass(frozen=True)
class Evaluation:
    """What an evaluation found.

    Attributes:
        values: the evaluator's numbers by name.
        samples: how many were counted.
        skipped: left out by a skip list or because they could not be read (`max_bad`).
        protocol: how it was measured.
        files: the evaluator's texts by file name, on rank 0 alone.
    """

    values: dict[str, float]
    samples: int
    skipped: int
    protocol: str
    files: dict[str, str] = field(default_factory=dict, compare=False, repr=False)

    def __str__(self) -> str:
        numbers = ", ".join(f"{name} {_short(value)}" for name, value in self.values.items())
        return f"{numbers} ({self.protocol}, {self.samples} samples, {self.skipped} skipped)"

    def behind(self, live: Evaluation, metric: str) -> str:
        """What is to be said where these numbers of averaged weights and those of the live ones differ widely."""
        ours, theirs = self.values.get(metric, math.nan), live.values.get(metric, math.nan)
        if not (is_defined(ours) and is_defined(theirs)) or abs(ours - theirs) <= WIDE * max(abs(ours), abs(theirs)):
            return ""
        return f"; weights that are not averaged have {metric} {_short(theirs)}: does trainer.ema suit so short a run?"

    def as_dict(self) -> dict[str, Any]:
        """All but the files, as plain data."""
        return {name: value for name, value in vars(self).items() if name != "files"}


def is_defined(metric: float) -> bool:
    """COCO's evaluation says -1 where there is nothing to measure."""
    return math.isfinite(metric) and metric != -1


def is_better(metric: float, before: float) -> bool:
    """Whether a metric is the best one, `before` the best before it. An undefined one is neither better nor worse: the
    first defined one is best, and until then the last."""
    return not is_defined(before) or is_defined(metric) and metric > before


def _short(value: float | None) -> str:
    """A count stays whole; what is not defined was kept as null."""
    value = math.nan if value is None else value
    return str(value) if isinstance(value, int) else f"{value:.4g}"


@torch.no_grad()
def evaluate(
    network: nn.Module,
    task: Task,
    split: str | Dataset = "val",
    *,
    batch: int,
    loader: LoaderSettings | None = None,
    precision: Precision | None = None,
    seed: int = 0,
    progress: Callable[[Loader], None] = lambda loader: None,
    report: str | None = None,
) -> Evaluation:
    """Runs the network over this rank's share of a split, and computes the numbers on rank 0 for all ranks.

    Args:
        network: on the device of `precision`.
        task: gives the evaluator and, by its name, the split.
        split: the name of a split, or a data set.
        batch: samples a batch on each rank.
        loader: how samples are read; None: LoaderSettings().
        precision: number format and device; None: "auto" where the network is.
        seed: of the samples' random numbers.
        progress: called with the loader before the first batch is read and before each is run.
        report: the title of report.html, a page that is added to the files (`report` in tdaf/task.py); None: no page.

    Raises:
        RunError: more samples than `max_bad` cannot be read, in this share or in all of them together; an output of the
            network is NaN.
    """
    dataset = task.dataset(split) if isinstance(split, str) else split
    anywhere = next(network.parameters(), torch.empty(0))  # one without parameters is on the CPU
    precision = precision or Precision("auto", anywhere.device)
    order = EvaluationOrder(len(dataset), batch, rank=dist.rank(), ranks=dist.world())
    pin = precision.device.type == "cuda"
    reading = Loader(dataset, order, seed=seed, pin=pin, **vars(loader or LoaderSettings()))
    evaluator = task.evaluator()
    try:
        with eval_mode(network):
            records, faults = _records(network, evaluator, reading, precision, progress)
    except RuntimeError as error:
        raise reading.explained(error) from None
    shares = dist.gather((records, reading.bad, faults))
    own = (shares, evaluator, reading, task, report)
    result = dist.run_on_all_ranks(lambda: _result(*own) if dist.rank() == 0 else None)
    numbers = dist.broadcast(result and result.as_dict())  # the files, which may be large, stay with rank 0
    return result or Evaluation(**numbers)


def _records(
    network: nn.Module, evaluator: Evaluator, loader: Loader, precision: Precision, progress: Callable[[Loader], None]
) -> tuple[list[tuple[int, Any]], list[str]]:
    """Of this rank's share: (the sample's index, its record); and the names of samples whose outputs are NaN, after
    which nothing more is run."""
    records = []
    progress(loader)
    for batch in loader:
        progress(loader)
        if len(batch["index"]) == 0:
            continue
        moved = precision.move(batch)
        with precision.autocast():
            outputs = forward(network, moved)
        wrong = undefined_outputs(outputs, len(batch["index"]))
        if wrong:
            return records, [loader.dataset.name(batch["index"][place].item()) for place in wrong]
        per_sample = evaluator.update(float32(outputs), moved)
        records.extend(zip(batch["index"].tolist(), per_sample, strict=True))
    return records, []


def forward(network: nn.Module, batch: dict[str, Any]) -> Any:
    """The outputs for a batch. A network that takes more than "input", as an exported one may, says so in `reads`."""
    return network(*(batch[name] for name in getattr(network, "reads", ("input",))))


def undefined_outputs(outputs: Any, count: int) -> list[int]:
    """Which of the `count` samples of a batch have an output that is NaN; all of them where that cannot be told."""
    wrong: list[torch.Tensor] = []

    def look(tensor: Any) -> None:
        if isinstance(tensor, torch.Tensor) and tensor.is_floating_point():
            apart = tensor.ndim > 0 and len(tensor) == count
            nan = tensor.isnan()
            wrong.append(nan[..., None].flatten(1).any(1) if apart else nan.any().expand(count))

    map_leaves(look, outputs)
    return torch.stack(wrong).any(0).nonzero().flatten().tolist() if wrong else []


def _result(
    shares: list[tuple[list, dict, list]], evaluator: Evaluator, loader: Loader, task: Task, report: str | None
) -> Evaluation:
    faults = [name for *_, names in shares for name in names]
    if faults:
        names = ", ".join(faults[:3]) + (f" and {len(faults) - 3} more" if len(faults) > 3 else "")
        raise RunError(f"the network's output is NaN for {names}: its weights or these samples are not usable")
    records = sorted((r for share, _, _ in shares for r in share), key=lambda pair: pair[0])
    bad = {index: why for _, unreadable, _ in shares for index, why in unreadable.items()}
    files = list(dict.fromkeys(name for name, _ in bad.values()))
    if loader.max_bad is not None and len(files) > loader.max_bad:
        names = ", ".join(files[:3]) + (", ..." if len(files) > 3 else "")
        raise RunError(f"cannot read {len(files)} samples ({names}), max_bad={loader.max_bad}")
    expected = len(loader.dataset)
    if len({index for index, _ in records}) != len(records) or len(records) + len(bad) != expected:
        counts = f"{len(records)} of {expected} samples ({len(bad)} unreadable)"
        raise RunError(f"evaluation counted {counts}: a sample was lost or counted twice")
    if not records:
        raise RunError("not one sample of the split could be read; see scripts/check_data.py")
    computed = evaluator.compute([record for _, record in records])
    values, texts = computed if isinstance(computed, tuple) else (computed, {})
    result = Evaluation(values, len(records), len(bad) + loader.dataset.skipped, evaluator.protocol, {**texts})
    if report is not None:
        from tdaf.engine.report import page  # draws, which an evaluation in training does not

        result.files[REPORT] = page(report, [str(result)], task.report(dict(records), loader.dataset))
    return result
