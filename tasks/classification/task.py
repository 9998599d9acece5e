"""Image classification as the engine sees it (protocols: tdaf/task.py)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import default_collate

from tasks.classification.encoded import EncodedImages, check_decodes_on_gpu
from tasks.classification.evaluator import Accuracy, Record
from tasks.classification.transforms import Mixing, Transform
from tdaf.engine import handover
from tdaf.errors import UserError
from tdaf.media.drawing import labelled
from tdaf.model.classifier import Classifier, LinearHead, Probabilities, log_probabilities
from tdaf.model.normalise import Normalise
from tdaf.model.staged import Staged
from tdaf.task import Batch, Media


class LabelledImages(Protocol):
    """The images of one split. (`notes`, as a Dataset has them, and `label(index)` it may have; and `read_box(index,
    box)`, which gives only the pixels in `box(height, width)`: top, left, height and width.)"""

    skipped: int  # images left out by a skip list

    def __len__(self) -> int: ...

    def read(self, index: int) -> tuple[Tensor, int]:
        """uint8 RGB (3, H, W) and the class. Raises UnreadableSample."""

    def name(self, index: int) -> str:
        """What a person finds the image by."""


class Source(Protocol):
    """Where labelled images come from."""

    classes: list[str]  # names for people, one a class, in the order of the network's outputs

    def split(self, name: str) -> LabelledImages:
        """The split "train" or "val". Raises UserError when it is not there."""


class Samples:
    """A split with its transform: `samples[i]` has "input" uint8 ([V,] 3, H, W) and "label"; with decode="gpu" what
    `EncodedImages` are made of."""

    groups = None

    def __init__(self, images: LabelledImages, transform: Transform, mixing: Mixing, decode: str = "cpu") -> None:
        self.images, self.transform, self.mixing, self.files = images, transform, mixing, images
        self.skipped, self.notes = images.skipped, getattr(images, "notes", {})
        self._encoded = decode == "gpu"
        if self._encoded:
            check_decodes_on_gpu(transform, mixing)
        self._by_box = hasattr(images, "read_box") and hasattr(transform, "box")

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> dict[str, Any]:
        if self._encoded:
            content, height, width, label = self.images.encoded(index)
            box = self.transform.box(height, width)
            return {"input": (content, box, self.transform.then[0].drawn()), "label": label}
        if self._by_box:
            pixels, label = self.images.read_box(index, self.transform.box)
            return {"input": self.transform.of_box(pixels), "label": label}
        image, label = self.images.read(index)
        return {"input": self.transform(image), "label": label}

    def name(self, index: int) -> str:
        return self.images.name(index)

    def collate(self, samples: list[dict[str, Any]]) -> Batch:
        """Stacks, then mixes; the keys are those of `Mixing`."""
        labels = torch.tensor([sample["label"] for sample in samples])
        if self._encoded:
            images = EncodedImages.of([sample["input"] for sample in samples], self.transform.crop.size)
            return {"input": images, "label": labels}
        return self.mixing(handover.stack([sample["input"] for sample in samples]), labels)


class PredictDataset:
    """Pictures that a user gives to predict: one sample a picture, "input" uint8 ([V,] 3, H, W)."""

    skipped = 0
    notes: dict[str, int] = {}
    groups = None

    def __init__(self, pictures: Media, transform: Transform) -> None:
        self.pictures, self.transform = pictures, transform

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"input": self.transform(self.pictures.read(index))}

    def name(self, index: int) -> str:
        return self.pictures.name(index)

    def shown(self, index: int) -> list[int]:
        return [index]

    def collate(self, samples: list[dict[str, Any]]) -> Batch:
        return default_collate(samples)


class Classification:
    """Image classification: cross-entropy in training, top-1 and top-5 accuracy in evaluation.

    Args:
        data: the labelled images.
        train_transform: from an image, uint8 (3, H, W), to an input, uint8 (3, size, size).
        val_transforms: the same for evaluation, one for each protocol by name. Where it gives several views,
            (V, 3, size, size), their softmax probabilities are averaged.
        mean, std: of the pixels, RGB, in units of 0..1.
        head: "published", the backbone's own classifier where it has one (VGG's three layers), or "linear", pooling and
            one layer for any backbone.
        protocol: which of `val_transforms` is used.
        label_smoothing: in 0..1.
        mixup, cutmix: alphas of Beta(alpha, alpha), 0 for off; see `Mixing`.
        dropout: before the linear layer, in 0..1.

    Raises:
        UserError: values outside these.
    """

    metric = "top1"

    def __init__(
        self,
        data: Source,
        train_transform: Transform,
        val_transforms: Mapping[str, Transform],
        mean: list[float],
        std: list[float],
        head: str = "published",
        protocol: str = "1crop",
        label_smoothing: float = 0.0,
        mixup: float = 0.0,
        cutmix: float = 0.0,
        dropout: float = 0.0,
    ) -> None:
        if protocol not in val_transforms:
            raise UserError(f"protocol={protocol}: this data set has {', '.join(val_transforms)}")
        if head not in ("published", "linear"):
            raise UserError(f"head={head}: give published or linear")
        for name, value in (("label_smoothing", label_smoothing), ("dropout", dropout)):
            if not 0 <= value < 1:
                raise UserError(f"{name}={value}: give 0 or more and less than 1")
        if not len(mean) == len(std) == 3 or min(std) <= 0:
            raise UserError("mean, std: give three numbers each, one a colour, std above 0")
        self.data, self.train_transform, self.val_transform = data, train_transform, val_transforms[protocol]
        self.mean, self.std = list(mean), list(std)
        self.head, self.protocol, self.label_smoothing, self.dropout = head, protocol, label_smoothing, dropout
        self.mixing = Mixing(mixup, cutmix)

    @property
    def classes(self) -> list[str]:
        """Names for people, in the order of the logits."""
        return self.data.classes

    def network(self, backbone: Staged, tdaf: Callable[[Staged], Staged]) -> nn.Module:
        body = tdaf(backbone)
        return Classifier(body, self.make_head(body, body.widths[-1]), self.normalise(body))

    def make_head(self, body: Staged, width: int) -> nn.Module:
        """From a last map of `width` channels to logits."""
        if self.head == "linear" or body.classifier is None:
            return LinearHead(width, len(self.classes), self.dropout)
        if self.dropout:
            raise UserError(
                f"task.dropout={self.dropout}: this backbone's published classifier has its own; use task.head=linear"
            )
        return body.classifier(width, len(self.classes))

    def normalise(self, body: Staged) -> Normalise:
        return Normalise(self.mean, self.std, body.dims)

    def dataset(self, split: str) -> Samples:
        if split == "train":
            how = self.train_transform, self.mixing, getattr(self.data, "decode", "cpu")
            return Samples(self.data.split(split), *how)
        return Samples(self.data.split(split), self.val_transform, Mixing(0.0, 0.0))

    def losses(self, outputs: Tensor, batch: Batch) -> dict[str, Tensor]:
        """outputs: logits (B, K). A mixed batch counts both labels by their weights."""
        own = self._cross_entropy(outputs, batch["label"])
        if "mixed_label" in batch:
            mixed = self._cross_entropy(outputs, batch["mixed_label"])
            own = torch.lerp(own, mixed, batch["mixed_weight"])
        return {"cross_entropy": own.mean()}

    def _cross_entropy(self, logits: Tensor, label: Tensor) -> Tensor:
        return F.cross_entropy(logits.float(), label, label_smoothing=self.label_smoothing, reduction="none")

    def evaluator(self) -> Accuracy:
        return Accuracy(self.protocol)

    def predict_dataset(self, paths: list[Path]) -> PredictDataset:
        """Images and videos of the user's, each picture prepared as the protocol prepares a validation image."""
        from tdaf.media.files import Media  # with a decoder of videos, which training does not need

        return PredictDataset(Media(paths, getattr(self.data, "background", None)), self.val_transform)

    def postprocess(self, outputs: Tensor, batch: Batch) -> list[dict[str, Any]]:
        """{"top5": [{"class": name, "probability": p}, ...]} a sample, the best first; as "text" for people."""
        found = log_probabilities(outputs).exp().cpu().topk(min(5, len(self.classes)))
        answers = []
        for classes, values in zip(found.indices.tolist(), found.values.tolist(), strict=True):
            top5 = [{"class": self.classes[k], "probability": p} for k, p in zip(classes, values, strict=True)]
            text = ", ".join(f"{entry['class']} {entry['probability']:.1%}" for entry in top5)
            answers.append({"top5": top5, "text": text})
        return answers

    def draw(self, picture: Tensor, answers: list[dict[str, Any]]) -> Tensor:
        """The best class and its probability at the picture's foot."""
        best = answers[0]["top5"][0]
        return labelled(picture, f"{best['class']} {best['probability']:.0%}")

    def to_json(self, found: list[tuple[Path, int | None, list[dict[str, Any]]]]) -> dict[str, Any]:
        """{"predictions": [{"file", "frame" in a video, "top5"}, ...]}"""
        rows = []
        for path, frame, answers in found:
            place = {} if frame is None else {"frame": frame}
            rows += [{"file": str(path), **place, "top5": answer["top5"]} for answer in answers]
        return {"predictions": rows}

    def draw_targets(self, batch: Batch) -> list[Tensor]:
        """The class, and the one that it is mixed with, with their weights."""
        texts = [self.classes[label] for label in batch["label"].tolist()]
        if "mixed_label" in batch:
            weights = torch.as_tensor(batch["mixed_weight"]).expand(len(texts)).tolist()
            others = [self.classes[label] for label in batch["mixed_label"].tolist()]
            texts = [
                f"{a} {1 - share:.0%}, {b} {share:.0%}" for a, b, share in zip(texts, others, weights, strict=True)
            ]
        return [labelled(image, text) for image, text in zip(batch["input"], texts, strict=True)]

    def report(self, records: Mapping[int, Record], dataset: Samples) -> dict[str, str]:
        from tdaf.engine.report import Answer, classified

        answers = [Answer(index, label, best[0], share) for index, (best, label, _, share) in records.items()]
        return classified(answers, self.classes, lambda index: _shown(dataset[index]["input"]), dataset.name)

    def original(self, dataset: Samples, index: int) -> Tensor:
        return dataset.images.read(index)[0]

    def counts(self, dataset: Samples) -> dict[str, dict[str, int]]:
        """Images a class, where their source says classes without reading images."""
        label = getattr(dataset.images, "label", None)
        found = Counter(map(label, range(len(dataset)))) if label else None
        return {} if found is None else {"images by class": {name: found[k] for k, name in enumerate(self.classes)}}

    def deployed(self, network: nn.Module, onnx: bool) -> nn.Module:
        return Probabilities(network)

    def visualize(self, outputs: Tensor, batch: Batch) -> dict[str, list[Tensor]]:
        """Each input with its answer; of ten views the centre crop is shown."""
        images = map(_shown, batch["input"].cpu())
        answers = self.postprocess(outputs, batch)
        return {"prediction": [self.draw(image, [answer]) for image, answer in zip(images, answers, strict=True)]}


def _shown(views: Tensor) -> Tensor:
    """Of ten views the centre crop."""
    return views if views.ndim == 3 else views[(len(views) - 1) // 2]
