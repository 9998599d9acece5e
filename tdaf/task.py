"""What a task is to the engine: four verbs and a name, and three more to show itself. A task inherits nothing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor, nn

from tdaf.model.staged import Staged

# Always has "input" (B, ...) uint8 or float; the loader adds "index" (B,) int64, the samples' places in their data set.
Batch = dict[str, Any]


class Dataset(Protocol):
    """One split. `dataset[i]` is a dict with "input"; it raises UnreadableSample when sample i cannot be read."""

    skipped: int  # samples left out by a skip list; printed beside the metric

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> dict[str, Any]: ...

    def name(self, index: int) -> str:
        """What a person finds sample `index` by: a file's path, say."""

    def collate(self, samples: list[dict[str, Any]]) -> Batch: ...


class Evaluator(Protocol):
    """Turns outputs into one record a sample, and all records of all ranks into named numbers."""

    protocol: str

    def update(self, outputs: Any, batch: Batch) -> Sequence[Any]:
        """One record (plain numbers or CPU tensors) for each sample of the batch, in the batch's order."""

    def compute(self, records: list[Any]) -> dict[str, float]:
        """The numbers by name, from the records of the whole split in the order of the data set."""


class Task(Protocol):
    """Random choices inside `dataset[i]` and `collate` must use the global torch, numpy or random generators: the
    loader seeds all three from (seed, epoch, index), which makes them independent of workers and ranks."""

    metric: str  # the evaluator's key by which "best" is chosen; higher is better
    classes: Sequence[str]  # what the outputs stand for; stored with every checkpoint

    def network(self, backbone: Staged, tdaf: Callable[[Staged], Staged]) -> nn.Module:
        """The network whose `forward(batch["input"])` gives the outputs. The task decides where TDAF goes."""

    def dataset(self, split: str) -> Dataset:
        """The split "train" or "val"."""

    def losses(self, outputs: Any, batch: Batch) -> dict[str, Tensor]:
        """Scalar losses by name; the trainer minimises their sum."""

    def evaluator(self) -> Evaluator: ...

    def pictures(self, inputs: Tensor, outputs: Any) -> list[Tensor]:
        """Each input as an uint8 RGB image (3, H, W) with its prediction drawn on it, for TensorBoard and predict."""

    def inputs(self, paths: list[Path]) -> Dataset:
        """Files that a user gives to predict, prepared as in evaluation; it also has `picture(index)`, uint8 (3, H, W)."""

    def answers(self, outputs: Any) -> list[dict[str, Any]]:
        """What predict writes of each sample: plain data."""
