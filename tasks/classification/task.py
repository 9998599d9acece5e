"""Image classification as the engine sees it (protocols: tdaf/task.py)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import default_collate

from tasks.classification.evaluator import Accuracy
from tasks.classification.inputs import PredictDataset
from tasks.classification.mixing import Mixing
from tasks.classification.sources import LabelledImages, Source
from tasks.classification.transforms import Transform
from tdaf.errors import UserError
from tdaf.media.drawing import labelled
from tdaf.media.pictures import Media
from tdaf.model.classifier import Classifier, LinearHead, log_probabilities
from tdaf.model.normalise import Normalise
from tdaf.model.staged import Staged
from tdaf.task import Batch


class Samples:
    """A split with its transform: `samples[i]` has "input" uint8 ([V,] 3, H, W) and "label"."""

    notes: dict[str, int] = {}
    groups = None

    def __init__(self, images: LabelledImages, transform: Transform, mixing: Mixing) -> None:
        self.images, self.transform, self.mixing = images, transform, mixing
        self.skipped = images.skipped

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> dict[str, Any]:
        image, label = self.images.read(index)
        return {"input": self.transform(image), "label": label}

    def name(self, index: int) -> str:
        return self.images.name(index)

    def collate(self, samples: list[dict[str, Any]]) -> Batch:
        """Stacks, then mixes; the keys are those of `Mixing`."""
        # default_collate stacks in shared memory when it runs in a worker, which saves a copy of the batch
        batch = default_collate(samples)
        return self.mixing(batch["input"], batch["label"])


class Classification:
    """data: the images. train_transform: from an image to an input. val_transforms: the same for evaluation, one for
    each protocol by name; `protocol` picks. Where that gives several views, their softmax probabilities are averaged.
    mean, std: of the pixels, in units of 0..1.
    head: "published", the backbone's own classifier where it has one (VGG's three layers), or "linear", pooling and one
    layer for any backbone. dropout: before the linear layer.
    label_smoothing: in 0..1. mixup, cutmix: alphas, 0 for off.
    Raises UserError for values outside these.
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
            raise UserError(f"task.head={head}: give published or linear")
        for name, value in (("label_smoothing", label_smoothing), ("dropout", dropout)):
            if not 0 <= value < 1:
                raise UserError(f"task.{name}={value}: give 0 or more and less than 1")
        if not len(mean) == len(std) == 3 or min(std) <= 0:
            raise UserError("task.mean, task.std: give three numbers each, one a colour, std above 0")
        self.data, self.train_transform, self.val_transform = data, train_transform, val_transforms[protocol]
        self.mean, self.std = list(mean), list(std)
        self.head, self.protocol, self.label_smoothing, self.dropout = head, protocol, label_smoothing, dropout
        self.mixing = Mixing(mixup, cutmix)

    @property
    def classes(self) -> list[str]:
        """Names for people, in the order of the logits."""
        return self.data.classes

    def network(self, backbone: Staged, tdaf: Callable[[Staged], Staged]) -> nn.Module:
        classes = len(self.classes)
        body = tdaf(backbone.for_classes(classes))
        width = body.widths[-1]
        published = self.head == "published" and body.classifier is not None
        if published and self.dropout:
            raise UserError(
                f"task.dropout={self.dropout}: this backbone's published classifier has its own; use task.head=linear"
            )
        head = body.classifier(width, classes) if published else LinearHead(width, classes, self.dropout)
        return Classifier(body, head, Normalise(self.mean, self.std, body.dims))

    def dataset(self, split: str) -> Samples:
        if split == "train":
            return Samples(self.data.split(split), self.train_transform, self.mixing)
        return Samples(self.data.split(split), self.val_transform, Mixing(0.0, 0.0))

    def losses(self, outputs: Tensor | dict[str, Tensor], batch: Batch) -> dict[str, Tensor]:
        """outputs: logits (B, K), or those and an attention branch's, whose loss is added with weight 1 (Fukui et al.
        2019, Sec. 3.3). A mixed batch counts both labels by their weights."""
        if isinstance(outputs, Tensor):
            return {"cross_entropy": self._loss(outputs, batch)}
        return {
            "cross_entropy": self._loss(outputs["logits"], batch),
            "attention_branch": self._loss(outputs["branch"], batch),
        }

    def _loss(self, logits: Tensor, batch: Batch) -> Tensor:
        own = self._cross_entropy(logits, batch["label"])
        if "mixed_label" not in batch:
            return own.mean()
        return torch.lerp(own, self._cross_entropy(logits, batch["mixed_label"]), batch["mixed_weight"]).mean()

    def _cross_entropy(self, logits: Tensor, label: Tensor) -> Tensor:
        return F.cross_entropy(logits.float(), label, label_smoothing=self.label_smoothing, reduction="none")

    def evaluator(self) -> Accuracy:
        return Accuracy(self.protocol)

    def predict_dataset(self, paths: list[Path]) -> PredictDataset:
        """Images and videos of the user's, each picture prepared as the protocol prepares a validation image."""
        return PredictDataset(Media(paths), self.val_transform)

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

    def visualize(self, outputs: Tensor, batch: Batch) -> dict[str, list[Tensor]]:
        """Each input with its answer; of ten views the centre crop is shown."""
        inputs = batch["input"].cpu()
        images = inputs if inputs.ndim == 4 else inputs[:, (inputs.shape[1] - 1) // 2]
        answers = self.postprocess(outputs, batch)
        return {"prediction": [self.draw(image, [answer]) for image, answer in zip(images, answers, strict=True)]}
