"""What training does at random with a person's frame, before the one interpolation that makes the input."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
import torch
from numpy.typing import NDArray

from tasks.pose.crop import framed
from tdaf.errors import UserError

Array = NDArray[np.float64]
NORMAL = NormalDist()
LEAST_VISIBLE, LEAST_HALF, HALF_PADDING = 8, 2, 1.5  # of the half body (open-mmlab/mmpose, RandomHalfBody)


@dataclass(frozen=True)
class Augmentation:
    """scale: the frame is enlarged by 1 + N(0, scale), at most by 1 +- scale. rotation: deviation of N(0, rotation) in
    degrees, at most +- rotation_limit, done with probability `rotated`. flip: probability of mirroring.
    The defaults are the publication's (microsoft/human-pose-estimation.pytorch, lib/dataset/JointsDataset.py), which
    has none of what follows. shift: deviation and limit of moving the frame along either axis, in its extents, done
    with probability `shifted`. half_body: probability with which only the upper or the lower half of a person of whom
    at least 8 key points are labelled is framed.
    truncated: numbers beyond a limit are drawn anew; without it they are set to the limit, as published.
    mmpose's figures are scale 0.5, rotation 80 within 80, shift 0.16, shifted 0.3, half_body 0.3, truncated
    (open-mmlab/mmpose, mmpose/datasets/transforms/common_transforms.py).
    Raises UserError for values outside their ranges.
    """

    scale: float = 0.3
    rotation: float = 40.0
    rotation_limit: float = 80.0
    rotated: float = 0.6
    flip: float = 0.5
    shift: float = 0.0
    shifted: float = 0.3
    half_body: float = 0.0
    truncated: bool = False

    def __post_init__(self) -> None:
        for name in ("rotated", "flip", "shifted", "half_body"):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(f"task.train_augment.{name}={getattr(self, name)}: a probability lies between 0 and 1")
        if not 0 <= self.scale < 1:
            raise UserError(f"task.train_augment.scale={self.scale}: give 0 or more and less than 1")
        for name in ("rotation", "rotation_limit", "shift"):
            if not 0 <= getattr(self, name) <= 360:
                raise UserError(f"task.train_augment.{name}={getattr(self, name)}: give 0 or more, and not above 360")

    def __call__(
        self, box: Array, joints: Array, legs: Sequence[bool], size: tuple[int, int]
    ) -> tuple[Array, Array, float, bool]:
        """A person to the frame's centre (2,) and extent (2,), its rotation in degrees, and whether it is mirrored
        (what `crop.affine` takes). box (4,) x1 y1 x2 y2, joints (J, 3) x y and above 0 where labelled, in pixels of
        the image; legs (J,); size (height, width) of the input."""
        centre, extent = self._half(joints, legs, size) or framed(box, size)
        flip = _chance(self.flip)
        if _chance(self.shifted):
            centre = centre + extent * [self._normal(self.shift, self.shift) for _ in range(2)]
        extent = extent * (1 + self._normal(self.scale, self.scale))
        rotation = self._normal(self.rotation, self.rotation_limit) if _chance(self.rotated) else 0.0
        return centre, extent, rotation, flip

    def _half(self, joints: Array, legs: Sequence[bool], size: tuple[int, int]) -> tuple[Array, Array] | None:
        seen = joints[:, 2] > 0
        if seen.sum() < LEAST_VISIBLE or not _chance(self.half_body):
            return None
        lower = np.asarray(legs)
        halves = [joints[seen & half, :2] for half in (~lower, lower)]
        halves = [half for half in halves if len(half) >= LEAST_HALF and np.ptp(half, 0).any()]
        if not halves:
            return None
        chosen = halves[int(torch.randint(len(halves), ()))]
        return framed(np.concatenate([chosen.min(0), chosen.max(0)]), size, HALF_PADDING)

    def _normal(self, deviation: float, limit: float) -> float:
        if not deviation or not limit:
            return 0.0
        if not self.truncated:
            return min(max(deviation * float(torch.randn(())), -limit), limit)
        tail = NORMAL.cdf(-limit / deviation)
        place = tail + (1 - 2 * tail) * float(torch.rand((), dtype=torch.float64))
        return deviation * NORMAL.inv_cdf(min(max(place, 1e-12), 1 - 1e-12))


def _chance(probability: float) -> bool:
    return float(torch.rand(())) < probability
