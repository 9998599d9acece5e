"""Where the cells of the levels lie in the image, and how large an object each level answers for."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

RANGE = 8  # strides: the largest distance to a box's side that a level answers for (64 pixels at stride 8)


class Locations(NamedTuple):
    """All N cells of all levels, the finest level first and each level row by row."""

    points: Tensor  # (N, 2) float32, x and y in input pixels
    strides: Tensor  # (N,) float32
    ranges: Tensor  # (N, 2) float32: the smallest and largest furthest distance to a side, pixels, both included


def locations(outputs: dict[str, Any]) -> Locations:
    """The cells of the head's outputs. At strides 8..128 the ranges are those published: to 64, 128, 256, 512, inf."""
    strides = outputs["strides"]
    limits = [-1.0, *[float(RANGE * stride) for stride in strides[:-1]], float("inf")]
    points, cells, ranges = [], [], []
    for level, (logits, stride) in enumerate(zip(outputs["logits"], strides, strict=True)):
        y, x = (torch.arange(size, device=logits.device) * stride + stride // 2 for size in logits.shape[2:])
        grid = torch.stack(torch.meshgrid(x, y, indexing="xy"), 2).flatten(0, 1).float()
        points.append(grid)
        cells.append(grid.new_full((len(grid),), stride))
        both = torch.stack([grid.new_full((len(grid),), limit) for limit in limits[level : level + 2]], 1)
        ranges.append(both)
    return Locations(torch.cat(points), torch.cat(cells), torch.cat(ranges))


def flat(maps: list[Tensor]) -> Tensor:
    """One map (B, C, h, w) a level -> (B, C, N), in the order of `Locations`."""
    return torch.cat([x.flatten(2) for x in maps], 2)
