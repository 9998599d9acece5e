"""Image classification as the engine sees it (protocols: tdaf/task.py)."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tasks.classification.encoded import EncodedImages, check_decodes_on_gpu
from tasks.classification.transforms import Mixing, Transform
from tasks.common import ClassTask, PredictDataset, Source
from tdaf.engine import handover
from tdaf.errors import RunError, UserError
from tdaf.model.classifier import Classifier, LinearHead, log_probabilities
from tdaf.model.staged import Staged
from tdaf.task import Batch, Dataset

# best classes, best first; label; cross-entropy; probability of the best class
Record = tuple[list[int], int, float, float]


class LabelledImages(Protocol):
    """The images of one split. (`notes`, as a Dataset has them, and `label(index)` it may have; and `read_box(index,
    box)`, which gives only the pixels in `box(height, width)`: top, left, height and width.)"""

    skipped: int  # images left out by a skip list

    def __len__(self) -> int: ...

    def read(self, index: int) -> tuple[Tensor, int]:
        """uint8 RGB (3, H, W) and the class. Raises UnreadableSample."""

    def name(self, index: int) -> str:
        """What a person finds the image by."""


class Samples(Dataset):
    """A split with its transform: `samples[i]` has "input" uint8 ([V,] 3, H, W) and "label"; with decode="gpu" what
    `EncodedImages` are made of."""

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


class Accuracy:
    """Accuracy and cross-entropy of single labels.

    Args:
        protocol: "1crop", one view a sample; "10crop", ten views whose softmax probabilities are averaged.
    """

    def __init__(self, protocol: str) -> None:
        self.protocol = protocol

    def update(self, outputs: Tensor, batch: Batch) -> list[Record]:
        """One record a sample. Of equal probabilities the class with the smaller number comes first.

        Args:
            outputs: logits (B, K) or (B, V, K).
            batch: "label" (B,).
        """
        scores = log_probabilities(outputs)
        label = batch["label"].to(scores.device)
        ordered = scores.sort(dim=1, descending=True, stable=True)
        best, probability = ordered.indices[:, :5], ordered.values[:, :1].exp()
        loss = -scores.gather(1, label[:, None])
        # one transfer from the device for everything; class numbers are exact in float64
        rows = torch.cat([loss.double(), probability.double(), label[:, None].double(), best.double()], 1).tolist()
        return [([int(k) for k in row[3:]], int(row[2]), row[0], row[1]) for row in rows]

    def compute(self, records: list[Record]) -> dict[str, float]:
        """ "top1" and "top5" (100 with fewer than 6 classes) in percent, and "loss", the mean cross-entropy in nats.
        RunError where there is no record."""
        if not records:
            raise RunError("no sample was evaluated")
        count = len(records)
        top1 = sum(label == best[0] for best, label, *_ in records)
        top5 = sum(label in best for best, label, *_ in records)
        loss = math.fsum(loss for _, _, loss, _ in records) / count
        return {"top1": 100 * top1 / count, "top5": 100 * top5 / count, "loss": loss}


class Classification(ClassTask):
    """Image classification: cross-entropy in training, top-1 and top-5 accuracy in evaluation.

    Args:
        data: whose splits are `LabelledImages`.
        train_transform, val_transforms: from an image, uint8 (3, H, W), to an input, uint8 ([V,] 3, size, size).
        head: "published", the backbone's own classifier where it has one (VGG's three layers), or "linear", pooling and
            one layer for any backbone.
        mixup, cutmix: alphas of Beta(alpha, alpha), 0 for off; see `Mixing`.
        mean, std, protocol, label_smoothing, dropout: see `ClassTask`.

    Raises:
        UserError: values outside these.
    """

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
        super().__init__(data, train_transform, val_transforms, mean, std, protocol, label_smoothing, dropout)
        if head not in ("published", "linear"):
            raise UserError(f"head={head}: give published or linear")
        self.head, self.mixing = head, Mixing(mixup, cutmix)

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
        return PredictDataset(self.media(paths), self.val_transform)

    def to_json(self, found: list[tuple[Path, int | None, list[dict[str, Any]]]]) -> dict[str, Any]:
        """{"predictions": [{"file", "frame" in a video, "top5"}, ...]}"""
        rows = []
        for path, frame, answers in found:
            place = {} if frame is None else {"frame": frame}
            rows += [{"file": str(path), **place, "top5": answer["top5"]} for answer in answers]
        return {"predictions": rows}

    def draw_targets(self, batch: Batch) -> list[Tensor]:
        """The class, and the one that it is mixed with, with their weights."""
        from tdaf.media.drawing import labelled  # training draws nothing

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
        return {"images by class": self.by_class(map(label, range(len(dataset))))} if label else {}

    def visualize(self, outputs: Tensor, batch: Batch) -> dict[str, list[Tensor]]:
        """Each input with its answer; of ten views the centre crop is shown."""
        images = map(_shown, batch["input"].cpu())
        answers = self.postprocess(outputs, batch)
        return {"prediction": [self.draw(image, [answer]) for image, answer in zip(images, answers, strict=True)]}


def _shown(views: Tensor) -> Tensor:
    """Of ten views the centre crop."""
    return views if views.ndim == 3 else views[(len(views) - 1) // 2]
