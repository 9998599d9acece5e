"""Object detection with FCOS (Tian et al. 2019, 2020) as the engine sees it (protocols: tdaf/task.py)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from tasks.coco.source import box_sizes, to_coco
from tasks.common import ColourTask, Source
from tasks.detection.data import Detections, PredictDataset
from tasks.detection.evaluator import CocoBoxes, Record
from tasks.detection.fcos import VARIANTS, Decoder, FcosNetwork, Outputs, assign, locations, losses
from tasks.detection.transforms import Transform
from tdaf.errors import UserError
from tdaf.media.drawing import boxes as with_boxes
from tdaf.media.drawing import colour, dots
from tdaf.model.freeze import MODES, fix_batch_norm, freeze_stages
from tdaf.model.staged import Staged
from tdaf.ranges import within
from tdaf.task import Batch

STRIDES = (8, 16, 32, 64, 128)  # of the pyramid on a published backbone
TEXT_LIMIT = 5  # detections of a picture that its text names


class Fcos(ColourTask):
    """The task of detection.

    Args:
        data: images and annotations.
        train_transform, val_transform: from an image and its boxes to an input.
        mean, std: of the pixels, RGB, in units of 0..1.
        head: "original" or "improved", the two versions of FCOS (`fcos.Variant` says what they are).
        channels: of the pyramid and the head, a multiple of 8.
        convs: of each tower of the head.
        batch_norm: of the backbone, "frozen", "affine" (weight and bias train) or "trained"; "auto": frozen without
            attention, affine with it, as the paper's parameter counts have it, and trained without pretrained weights.
        frozen_stages: the first stages (the stem is in the first) whose parameters do not train; "auto": 1, and 0
            without pretrained weights.
        pretrained: only whether it is None counts, for "auto".
        keep_empty: whether images without an object are trained on.
        score_threshold, nms, top, per_image: see `fcos.Decoder`.
        shown: detections of this score and above are drawn.

    Raises:
        UserError: a value outside these.
    """

    metric = "AP"

    def __init__(
        self,
        data: Source,
        train_transform: Transform,
        val_transform: Transform,
        mean: list[float],
        std: list[float],
        head: str = "original",
        channels: int = 256,
        convs: int = 4,
        batch_norm: str = "auto",
        frozen_stages: int | str = "auto",
        pretrained: str | None = "imagenet",
        keep_empty: bool = False,
        score_threshold: float = 0.05,
        nms: float = 0.6,
        top: int = 1000,
        per_image: int = 100,
        shown: float = 0.5,
    ) -> None:
        if head not in VARIANTS:
            raise UserError(f"head={head}: give {' or '.join(VARIANTS)}")
        if batch_norm not in ("auto", *MODES):
            raise UserError(f"batch_norm={batch_norm}: give auto, {', '.join(MODES)}")
        if channels < 8 or channels % 8:
            raise UserError(f"channels={channels}: give a multiple of 8")
        within("[0, inf)", convs=convs)
        within("[0, 1]", shown=shown)
        if frozen_stages != "auto" and (isinstance(frozen_stages, str) or frozen_stages < 0):
            raise UserError(f"frozen_stages={frozen_stages}: give auto, or 0 or more")
        super().__init__(data, mean, std)
        self.train_transform, self.val_transform = train_transform, val_transform
        self.variant, self.channels, self.convs = VARIANTS[head], channels, convs
        self.batch_norm, self.frozen_stages, self.pretrained = batch_norm, frozen_stages, pretrained is not None
        self.pad_value = [round(255 * value) for value in mean]  # the pixel that is nearest to 0 when normalised
        self.keep_empty, self.shown = keep_empty, shown
        self.decoder = Decoder(score_threshold, nms, top, per_image)

    @property
    def class_ids(self) -> list[int]:
        """The categories' ids in the annotation file, as predict writes them; from 1 on where they are not known."""
        return getattr(self.data, "ids", None) or list(range(1, len(self.classes) + 1))

    def network(self, backbone: Staged, tdaf: Callable[[Staged], Staged]) -> nn.Module:
        """TDAF goes around the backbone."""
        body = tdaf(backbone)
        plain = getattr(body, "flows", 1) == 1
        automatic = ("frozen" if plain else "affine") if self.pretrained else "trained"
        fix_batch_norm(body, automatic if self.batch_norm == "auto" else self.batch_norm)
        freeze_stages(body, int(self.pretrained) if self.frozen_stages == "auto" else self.frozen_stages)
        return FcosNetwork(body, len(self.classes), self.variant, self.normalise(body), self.channels, self.convs)

    def dataset(self, split: str) -> Detections:
        if split == "train":
            return Detections(self.data.split(split), self.train_transform, self.keep_empty, self.pad_value)
        return Detections(self.data.split(split), self.val_transform, pad_value=self.pad_value)

    def losses(self, outputs: Outputs, batch: Batch) -> dict[str, Tensor]:
        return losses(outputs, batch["boxes"], batch["labels"], self.variant)

    def evaluator(self) -> CocoBoxes:
        return CocoBoxes(self.data.split("val").annotations, self.decoder)

    def predict_dataset(self, paths: list[Path]) -> PredictDataset:
        """Images and videos of the user's, each picture prepared as a validation image."""
        return PredictDataset(self.media(paths), self.val_transform, self.pad_value)

    def postprocess(self, outputs: Outputs, batch: Batch) -> list[dict[str, Any]]:
        """A picture: {"detections": [{"class", "score", "box": [x, y, width, height]}, ...], the best first, "width",
        "height", "text" for people}, all in the picture's pixels."""
        answers = []
        sizes, scales = (batch[key].double().cpu() for key in ("size", "scale"))
        for detected, size, scale in zip(self.decoder(outputs, batch["size"]), sizes, scales, strict=True):
            width, height = (size.flip(0) / scale).round().int().tolist()
            corners = (detected.boxes.double().cpu() / scale.repeat(2)).tolist()
            rows = zip(corners, detected.scores.tolist(), detected.labels.tolist(), strict=True)
            entries = []
            for (x0, y0, x1, y1), score, label in rows:
                box = [x0, y0, min(x1, width) - x0, min(y1, height) - y0]
                entries.append({"class": self.classes[label], "score": score, "box": box})
            answers.append({"detections": entries, "width": width, "height": height, "text": self._text(entries)})
        return answers

    def _text(self, entries: list[dict[str, Any]]) -> str:
        drawn = [f"{entry['class']} {entry['score']:.2f}" for entry in entries if entry["score"] >= self.shown]
        more = [f"{len(drawn) - TEXT_LIMIT} more"] if len(drawn) > TEXT_LIMIT else []
        return ", ".join([*drawn[:TEXT_LIMIT], *more]) or "nothing"

    def draw(self, picture: Tensor, answers: list[dict[str, Any]]) -> Tensor:
        """Boxes with class and score, a colour a class."""
        entries = [entry for answer in answers for entry in answer["detections"] if entry["score"] >= self.shown]
        boxes = torch.tensor([entry["box"] for entry in entries], dtype=torch.float64).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        texts = [f"{entry['class']} {entry['score']:.2f}" for entry in entries]
        return with_boxes(picture, boxes, texts, [colour(self.classes.index(entry["class"])) for entry in entries])

    def draw_targets(self, batch: Batch) -> list[Tensor]:
        """Boxes with their classes, and in each box's colour the locations that answer for it, larger on coarser levels
        (of strides 8 to 128)."""
        height, width = batch["input"].shape[-2:]
        maps = [torch.empty(1, 1, -(-height // stride), -(-width // stride)) for stride in STRIDES]
        where = locations({"logits": maps, "strides": STRIDES})
        targets = assign(where, batch["boxes"], batch["labels"], self.variant.centre_sampling)
        rows = zip(batch["input"], batch["size"].tolist(), batch["boxes"], batch["labels"], targets.labels, strict=True)
        drawn = []
        for image, (h, w), own, labels, answering in rows:
            texts = [self.classes[label] for label in labels]
            found = [k for k in range(len(where.points)) if answering[k] >= 0]
            image = dots(
                image[:, :h, :w],
                where.points[found],
                (where.strides[found] / 8).log2() + 1,
                [colour(int(answering[k])) for k in found],
            )
            drawn.append(with_boxes(image, own, texts, [colour(int(label)) for label in labels]))
        return drawn

    def report(self, records: Mapping[int, Record], dataset: Detections) -> dict[str, str]:
        return self.evaluator().report(list(records.values()))

    def original(self, dataset: Detections, index: int) -> Tensor:
        return dataset.split.read(int(dataset.images[index]))

    def counts(self, dataset: Detections) -> dict[str, dict[str, int]]:
        """Objects that are no crowd, by category and by size."""
        annotations = dataset.split.annotations
        objects = annotations.all_objects[annotations.only(dataset.images).rows()[1]]
        objects = objects[~objects["iscrowd"]]
        found = np.bincount(objects["category"], minlength=len(self.classes)).tolist()
        by_class = dict(zip(self.classes, found, strict=True))
        return {"objects by category": by_class, "boxes by side in pixels": box_sizes(objects)}

    def deployed(self, network: nn.Module, onnx: bool) -> nn.Module:
        from tasks.detection.deploy import Detector  # registers an operation, which nothing else needs

        return Detector(network, self.decoder, len(self.classes), onnx)

    def visualize(self, outputs: Outputs, batch: Batch) -> dict[str, list[Tensor]]:
        """The detections on each input, without its padding."""
        answers = self.postprocess(outputs, {**batch, "scale": torch.ones_like(batch["scale"])})
        images = zip(batch["input"].cpu(), batch["size"].tolist(), answers, strict=True)
        return {"prediction": [self.draw(image[:, :h, :w], [answer]) for image, (h, w), answer in images]}

    def to_json(self, pictures: list[tuple[Path, int | None, list[dict[str, Any]]]]) -> dict[str, Any]:
        """COCO's format; an annotation has "score", the image of a video "frame". Categories have `class_ids`."""
        ids, classes = self.class_ids, self.classes
        entries = [
            [
                {"bbox": entry["box"], "score": entry["score"], "category_id": ids[classes.index(entry["class"])]}
                for answer in answers
                for entry in answer["detections"]
            ]
            for _, _, answers in pictures
        ]
        categories = [{"id": number, "name": name} for number, name in zip(ids, classes, strict=True)]
        found = to_coco(pictures, entries, categories)
        for image, (_, _, answers) in zip(found["images"], pictures, strict=True):
            image |= {key: answer[key] for answer in answers for key in ("width", "height")}
        return found
