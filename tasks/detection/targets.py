"""Which location answers for which box (FCOS, Sec. 3.1 and 3.2)."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from tasks.detection.locations import Locations

BACKGROUND = -1


class Targets(NamedTuple):
    labels: Tensor  # (B, N) int64, BACKGROUND where no box
    distances: Tensor  # (B, 4, N) float32, to the left, top, right and bottom side in pixels; 1 in the background


def assign(where: Locations, boxes: list[Tensor], labels: list[Tensor], radius: float) -> Targets:
    """boxes: for each image (K, 4), x0 y0 x1 y1 in input pixels; labels: (K,) int64; K may be 0.

    A location answers for the smallest box by area of those which hold it (strictly), whose furthest side lies in its
    level's range, and, where radius > 0, whose centre is nearer than `radius` strides on both axes.
    """
    found = [_one(where, *image, radius) for image in zip(boxes, labels, strict=True)]
    return Targets(*[torch.stack(parts) for parts in zip(*found, strict=True)])


def centreness(distances: Tensor) -> Tensor:
    """(B, 4, N) -> (B, N) in 0..1: 1 in the middle of the box, 0 at its sides (FCOS, Eq. 3)."""
    left, top, right, bottom = distances.unbind(1)
    across = torch.minimum(left, right) / torch.maximum(left, right)
    down = torch.minimum(top, bottom) / torch.maximum(top, bottom)
    return (across * down).sqrt()


def _one(where: Locations, boxes: Tensor, labels: Tensor, radius: float) -> tuple[Tensor, Tensor]:
    # One box of no size, which holds no location, lets an image without boxes go the way of all others.
    boxes, labels = F.pad(boxes, (0, 0, 0, 1)), F.pad(labels, (0, 1))
    distances = _distances(where.points[:, None], boxes)
    furthest = distances.amax(2)
    matches = distances.amin(2) > 0
    if radius:
        offsets = (where.points[:, None] - (boxes[:, :2] + boxes[:, 2:]) / 2).abs().amax(2)
        matches &= offsets < radius * where.strides[:, None]
    smallest, largest = where.ranges.split(1, dim=1)
    matches &= (furthest >= smallest) & (furthest <= largest)
    area = (boxes[:, 2:] - boxes[:, :2]).prod(1)
    least, place = torch.where(matches, area, float("inf")).min(1)
    positive = least.isfinite()
    own = _distances(where.points, boxes[place])
    return torch.where(positive, labels[place], BACKGROUND), torch.where(positive[:, None], own, 1.0).T


def _distances(points: Tensor, boxes: Tensor) -> Tensor:
    return torch.cat([points - boxes[..., :2], boxes[..., 2:] - points], -1)
