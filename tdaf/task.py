"""What a task is to the engine: data, a network, losses and a metric; and, optionally, how it shows and predicts.

A task inherits nothing. (A data set that names `Dataset` as its base gets what is optional in it.)
"""

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
    """One split. `dataset[i]` is a dict with "input"; it raises UnreadableSample when sample i cannot be read.

    Random choices inside `dataset[i]` and `collate` must use the global torch, numpy or random generators: the loader
    seeds all three from (seed, epoch, index), which makes them independent of workers and ranks.

    Attributes:
        skipped: samples left out by a skip list; printed beside the metric.
        notes: what was found wrong in the annotations and handled, and how often; printed at the start.
        groups: a number for each sample; a training batch takes samples of one. None: of any.
        files: what scripts/check_data.py reads instead of the samples, where it is there: with `len`, `name(index)`,
            `path(index)`, `scans` and `check(index, scan)`, which raises UnreadableSample and returns what is to be
            noted of a file. The scans are "full" and others.
    """

    skipped: int = 0
    notes: Mapping[str, int] = {}
    groups: Sequence[int] | None = None

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> dict[str, Any]: ...

    def name(self, index: int) -> str:
        """What a person finds sample `index` by: a file's path, say."""
        return f"sample {index}"

    def collate(self, samples: list[dict[str, Any]]) -> Batch:
        """A batch of such dicts; by itself torch's, which stacks tensors and numbers."""
        from torch.utils.data import default_collate

        return default_collate(samples)


class Evaluator(Protocol):
    """Turns outputs into one record a sample, and all records of all ranks into named numbers.

    Attributes:
        protocol: how it is measured, printed with every number.
    """

    protocol: str

    def update(self, outputs: Any, batch: Batch) -> Sequence[Any]:
        """One record (plain numbers or CPU tensors) for each sample of the batch, in the batch's order."""

    def compute(self, records: list[Any]) -> dict[str, float] | tuple[dict[str, float], dict[str, str]]:
        """The numbers by name, from the records of the whole split in the order of the data set.

        Returns:
            The numbers, or (numbers, files): texts by file name, kept beside the numbers, as results in a benchmark's
            own format. A name that ends in .md is a table that evaluate prints as well.
        """


class Task(Protocol):
    """What is trained for. Trainer and evaluate need no more than this.

    Its `__init__` takes the data source as `data`, and must survive one that has nothing but `.classes`: that is what
    predict and other scripts that need no data build a trained task with. So a source is looked into by `dataset` only.

    Attributes:
        metric: the evaluator's key by which "best" is chosen; higher is better. A value that is not finite, or -1 as
            COCO says it, is undefined, and neither better nor worse than another.
        classes: what the outputs stand for; stored with every checkpoint.
    """

    metric: str
    classes: Sequence[str]

    def network(self, backbone: Staged, tdaf: Callable[[Staged], Staged]) -> nn.Module:
        """The network whose `forward(batch["input"])` gives the outputs. The task decides where TDAF goes.

        (A script that gives Trainer a network of its own needs none.)
        """

    def dataset(self, split: str) -> Dataset:
        """The split "train" or "val"."""

    def losses(self, outputs: Any, batch: Batch) -> dict[str, Tensor]:
        """Scalar losses by name, the same names for every batch; the trainer minimises their sum.

        Args:
            outputs: what the network gave, every floating-point tensor in float32.
            batch: what `collate` gave, on the network's device.
        """

    def evaluator(self) -> Evaluator: ...


class PredictionTask(Task, Protocol):
    """A task that can also show what its network says: what TensorBoard's pictures, predict and export ask for."""

    def visualize(self, outputs: Any, batch: Batch) -> dict[str, list[Tensor]]:
        """For TensorBoard, by name, one uint8 RGB image (3, H, W) a sample: its input with what the network says."""

    def predict_dataset(self, paths: list[Path], **options: Any) -> PredictDataset:
        """Files that a user gives to predict, prepared as in evaluation. options: what only this task takes."""

    def postprocess(self, outputs: Any, batch: Batch) -> list[dict[str, Any]]:
        """What predict says of each sample: plain data, in pixels of the pictures as they were read."""

    def draw(self, picture: Tensor, answers: list[dict[str, Any]]) -> Tensor:
        """The picture, uint8 RGB (3, H, W), with the answers of all its samples drawn on it."""

    def to_json(self, found: list[tuple[Path, int | None, list[dict[str, Any]]]]) -> Any:
        """What predict writes as JSON: plain data, from (file, frame, answers) of every picture."""

    def draw_targets(self, batch: Batch) -> list[Tensor]:
        """Of a training batch each input with what is to be learnt of it: uint8 RGB (3, H, W), one a sample."""

    def original(self, dataset: Dataset, index: int) -> Tensor:
        """What sample `index` of a split is made from, before augmentation: uint8 RGB (3, H, W)."""

    def counts(self, dataset: Dataset) -> dict[str, dict[str, int]]:
        """What there is in a split, by title and by name: samples a class, boxes by size."""

    def report(self, records: Mapping[int, Any], dataset: Dataset) -> dict[str, str]:
        """Where an evaluation went wrong: HTML by heading, made of the parts of tdaf/engine/report.py.

        Args:
            records: the evaluator's, by the sample's place in the data set.
            dataset: the split, for pictures of samples.
        """

    def deployed(self, network: nn.Module, onnx: bool) -> nn.Module:
        """What export writes to a file for others (onnx: to one of ONNX): `forward` takes entries of a batch, by their
        names and "input" first, and gives named tensors, (B, ...) each, that are complete answers.

        Its attributes: "dynamic", whether height and width may be any; "raw", the one of these tensors that is the
        network's own output, or None: then evaluator and `postprocess` take them all for the network's output.
        Where it has a method "differences", that says by name how far apart (expected, found) outputs are, in shares of
        the largest value; "translations()" are operations of ONNX for its own ones (torch.onnx.export)."""


class Media(Protocol):
    """The pictures that predict draws on, in order: an image file is one, a video is as many as it has frames.

    Attributes:
        videos: whether there is a video among the files.
        faults: videos that cannot be read, or not to their end, with the reason.
    """

    videos: bool
    faults: Mapping[Path, str]

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
        """The pictures that sample `index` is about: its image, the one a person was cut from, the frames of a clip."""
