"""The three losses of FCOS, the same operations whatever the images hold: ranks cannot fall out of step."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.ops import sigmoid_focal_loss

from tasks.detection.line import Line
from tasks.detection.locations import flat, locations
from tasks.detection.targets import BACKGROUND, assign, centreness
from tdaf.engine import dist

ALPHA, GAMMA = 0.25, 2.0  # of the focal loss (Lin et al. 2017)


def losses(outputs: dict[str, Any], boxes: list[Tensor], labels: list[Tensor], line: Line) -> dict[str, Tensor]:
    """outputs: the head's, in float32. boxes, labels: as `assign` takes them.

    "classification" and "centreness" are divided by the number of positive locations, "box", weighted by the
    centre-ness of its target, by the sum of these weights; both are means over all ranks, so that an object counts the
    same on every rank (tianzhi0549/FCOS, fcos_core/modeling/rpn/fcos/loss.py).
    """
    where = locations(outputs)
    targets = assign(where, boxes, labels, line.centre_sampling)
    positive = targets.labels != BACKGROUND
    weight = centreness(targets.distances) * positive
    count, total = dist.mean(torch.stack([positive.sum(), weight.sum()])).unbind()
    count = count.clamp(min=1)

    logits = flat(outputs["logits"])
    hot = torch.zeros_like(logits)
    hot.scatter_(1, targets.labels.clamp(min=0)[:, None], positive[:, None].to(hot.dtype))
    classification = sigmoid_focal_loss(logits, hot, ALPHA, GAMMA, reduction="sum")

    unit = where.strides if line.normalised_targets else 1.0
    # elsewhere a box equal to its target, so that no rounding and no infinity of theirs counts
    predicted = torch.where(positive[:, None], flat(outputs["boxes"]), 1.0)
    box = BOX_LOSSES[line.box_loss](predicted / unit, targets.distances / unit)

    centre = F.binary_cross_entropy_with_logits(
        flat(outputs["centreness"])[:, 0], weight, positive.to(weight.dtype), reduction="sum"
    )
    return {
        "classification": classification / count,
        "box": (box * weight).sum() / total.clamp(min=1e-6),
        "centreness": centre / count,
    }


def iou_loss(predicted: Tensor, target: Tensor) -> Tensor:
    """-log((I + 1) / (U + 1)) of distances (B, 4, N) >= 0 from one point each -> (B, N)."""
    intersection, union, _ = _areas(predicted, target)
    return -torch.log((intersection + 1) / (union + 1))


def giou_loss(predicted: Tensor, target: Tensor) -> Tensor:
    """1 - GIoU of distances (B, 4, N) >= 0 from one point each -> (B, N)."""
    intersection, union, hull = _areas(predicted, target)
    tiny = 1e-7
    return 1 - intersection / (union + tiny) + (hull - union) / (hull + tiny)


BOX_LOSSES = {"iou": iou_loss, "giou": giou_loss}


def _areas(one: Tensor, other: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Of the intersection, the union and the smallest box around both."""
    intersection, hull = _area(torch.minimum(one, other)), _area(torch.maximum(one, other))
    return intersection, _area(one) + _area(other) - intersection, hull


def _area(distances: Tensor) -> Tensor:
    left, top, right, bottom = distances.unbind(1)
    return (left + right) * (top + bottom)
