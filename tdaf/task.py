"""What a task is to the engine: four verbs and a name, and four more to show itself. A task inherits nothing."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor, nn

from tdaf.model.staged import Staged

# Always has "input" (B, ...) uint8 or float; the loader adds "index" (B,) int64, the samples' places in their data set.
Batch = dict[str, Any]


class Dataset(Protocol):
    """One split. `dataset[i]` is a dict with "input"; it raises UnreadableSample when sample i cannot be read."""

    skipped: int  # samples left out by a skip list; printed beside the metric
    notes: Mapping[str, int]  # what was found wrong in the annotations and handled: how often; printed at the start
    groups: Sequence[int] | None  # a number for each sample; a training batch takes samples of one. None: of any

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> dict[str, Any]: ...

    def name(self, index: int) -> str:
        """What a person finds sample `index` by: a file's path, say."""

    def collate(self, samples: list[dict[str, Any]]) -> Batch: ...


class Media(Protocol):
    """The pictures that predict draws on, in order: an image file is one, a video is as many as it has frames."""

    videos: bool  # whether there is a video among the files
    faults: Mapping[Path, str]  # videos that cannot be read, or not to their end, with the reason

    def __len__(self) -> int: ...

    def read(self, index: int) -> Tensor:
        """uint8 RGB (3, H, W). Raises UnreadableSample. Fast where `index` rises by one from call to call."""

    def file(self, index: int) -> Path: ...

    def frame(self, index: int) -> int | None:
        """The place in its video, from 0; None for an image file."""

    def fps(self, path: Path) -> Fraction:
        """Frames a second of a video."""


class PredictDataset(Dataset, Protocol):
    """What predict runs the network on."""

    pictures: Media

    def shown(self, index: int) -> Sequence[int]:
        """The pictures that sample `index` is about: its image, the image a person was cut from, the frames of a clip."""


class Evaluator(Protocol):
    """Turns outputs into one record a sample, and all records of all ranks into named numbers."""

    protocol: str

    def update(self, outputs: Any, batch: Batch) -> Sequence[Any]:
        """One record (plain numbers or CPU tensors) for each sample of the batch, in the batch's order."""

    def compute(self, records: list[Any]) -> dict[str, float]:
        """The numbers by name, from the records of the whole split in the order of the data set."""

    def files(self, records: list[Any]) -> dict[str, str]:
        """Texts by file name, kept beside the numbers: results in a benchmark's own format, say. Called after `compute`
        with the same records. A name that ends in .md is a table that evaluate prints as well."""


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

    def visualize(self, outputs: Any, batch: Batch) -> dict[str, list[Tensor]]:
        """By name, one uint8 RGB image (3, H, W) a sample: its input with what the network says of it, for TensorBoard."""

    def predict_dataset(self, paths: list[Path], **options: Any) -> PredictDataset:
        """Files that a user gives to predict, prepared as in evaluation. options: what only this task's predict takes."""

    def postprocess(self, outputs: Any, batch: Batch) -> list[dict[str, Any]]:
        """What predict says of each sample: plain data, in pixels of the pictures as they were read."""

    def draw(self, picture: Tensor, answers: list[dict[str, Any]]) -> Tensor:
        """The picture, uint8 RGB (3, H, W), with the answers of all its samples drawn on it."""

    def to_json(self, found: list[tuple[Path, int | None, list[dict[str, Any]]]]) -> Any:
        """What predict writes as JSON: plain data, from (file, frame, answers) of every picture."""
