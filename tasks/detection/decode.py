"""From the head's outputs to boxes (tianzhi0549/FCOS, fcos_core/modeling/rpn/fcos/inference.py)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torchvision.ops import batched_nms

from tasks.detection.locations import flat, locations
from tdaf.errors import UserError


class Found(NamedTuple):
    """The detections of one image, the best first."""

    boxes: Tensor  # (D, 4) float32, x0 y0 x1 y1 in input pixels, inside the image
    scores: Tensor  # (D,) float32, the root of class probability times centre-ness
    labels: Tensor  # (D,) int64


@dataclass(frozen=True)
class Decoder:
    """score_threshold: a class probability must be above it, before centre-ness counts. top: candidates of a level that
    are kept, by score. nms: overlap (IoU) above which the lower of two boxes of a class goes. per_image: detections.
    Raises UserError for values out of range."""

    score_threshold: float = 0.05
    nms: float = 0.6
    top: int = 1000
    per_image: int = 100

    def __post_init__(self) -> None:
        for name in ("score_threshold", "nms"):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(f"task.{name}={getattr(self, name)}: give a number in 0..1")
        for name in ("top", "per_image"):
            if getattr(self, name) < 1:
                raise UserError(f"task.{name}={getattr(self, name)}: give 1 or more")

    @torch.no_grad()
    def __call__(self, outputs: dict[str, Any], sizes: Tensor) -> list[Found]:
        """outputs: the head's, in float32. sizes (B, 2): height and width of each image without its padding."""
        where = locations(outputs)
        points = where.points.split([x[0, 0].numel() for x in outputs["logits"]])
        levels = zip(outputs["logits"], outputs["boxes"], outputs["centreness"], points, strict=True)
        parts = [self._candidates(*level) for level in levels]
        boxes, scores, labels = (torch.cat(part, 1) for part in zip(*parts, strict=True))
        limit = sizes.to(boxes.device).flip(1).repeat(1, 2)[:, None].to(boxes.dtype)
        boxes = torch.minimum(boxes.clamp(min=0), limit)
        return [self._kept(*image) for image in zip(boxes, scores, labels, strict=True)]

    def _candidates(
        self, logits: Tensor, boxes: Tensor, centre: Tensor, points: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The best `top` of one level: boxes (B, T, 4), scores (B, T), labels (B, T). A score of -1 is no candidate."""
        probability = flat([logits]).sigmoid()
        score = (probability * flat([centre]).sigmoid()).sqrt()
        score = torch.where(probability > self.score_threshold, score, -1.0).flatten(1)
        score, place = score.topk(min(self.top, score.shape[1]))
        cell = place % len(points)
        point = points[cell]
        distances = flat([boxes]).gather(2, cell[:, None].expand(-1, 4, -1)).transpose(1, 2)
        boxes = torch.cat([point - distances[..., :2], point + distances[..., 2:]], 2)
        return boxes, score, place // len(points)

    def _kept(self, boxes: Tensor, scores: Tensor, labels: Tensor) -> Found:
        # a box that lies in the padding has no area left; the publication keeps it
        real = (scores >= 0) & (boxes[:, 2:] > boxes[:, :2]).all(1)
        boxes, scores, labels = boxes[real], scores[real], labels[real]
        best = batched_nms(boxes, scores, labels, self.nms)[: self.per_image]
        return Found(boxes[best], scores[best], labels[best])
