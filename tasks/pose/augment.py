"""From a person's box to the network's input and back, as one affine map, and what training does at random with it.

Coordinates are pixel indices, which is how the published code reads COCO's annotations, and how OpenCV counts, which it
warps with: (0, 0) is the centre of the upper left pixel. A heat map's coordinates are the input's divided by its stride
(simplepose.py), so one matrix serves images, key points and heat maps. Sizes are (height, width); points and extents
are (x, y).
The geometry is that of microsoft/human-pose-estimation.pytorch, lib/dataset/coco.py and lib/utils/transforms.py, whose
`scale` is the extent divided by 200.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from tdaf.ranges import within

Array = NDArray[np.float64]
PADDING = 1.25
NORMAL = NormalDist()
LEAST_VISIBLE, LEAST_HALF, HALF_PADDING = 8, 2, 1.5  # of the half body (open-mmlab/mmpose, RandomHalfBody)


def framed(boxes: ArrayLike, size: tuple[int, int], padding: float = PADDING) -> tuple[Array, Array]:
    """Boxes (..., 4), x1 y1 x2 y2, -> centres (..., 2) and extents (..., 2): the smallest frames of the aspect of
    `size`, the network's input, around the same centres that hold the boxes, enlarged by `padding`.
    """
    boxes = np.asarray(boxes, np.float64)
    aspect = size[1] / size[0]
    width, height = boxes[..., 2] - boxes[..., 0], boxes[..., 3] - boxes[..., 1]
    width = np.maximum(width, height * aspect) * padding
    return (boxes[..., :2] + boxes[..., 2:]) / 2, np.stack([width, width / aspect], -1)


def affine(
    centre: ArrayLike, extent: ArrayLike, size: tuple[int, int], rotation: ArrayLike = 0.0, flip: ArrayLike = False
) -> Array:
    """Matrices (..., 2, 3) from image to input: the frame's centre goes to (W / 2, H / 2), its width to W.

    centre, extent (..., 2): of the frame in the image. rotation (...): degrees by which the frame is turned clockwise
    as one sees it in the image, so the person turns the other way. flip (...): whether the image is mirrored about the
    frame's centre, left for right, before the frame is turned; whoever flips must put key points in `mirrored` order.
    """
    centre, extent = np.asarray(centre, np.float64), np.asarray(extent, np.float64)
    scale = size[1] / extent[..., 0]
    angle = np.deg2rad(np.asarray(rotation, np.float64))
    cos, sin, side = np.cos(angle) * scale, np.sin(angle) * scale, np.where(flip, -1.0, 1.0)
    cos, sin, side = np.broadcast_arrays(cos, sin, side)
    linear = np.stack([np.stack([side * cos, sin], -1), np.stack([-side * sin, cos], -1)], -2)
    middle = np.array([size[1] / 2, size[0] / 2])
    shift = middle - (linear @ centre[..., None])[..., 0]
    return np.concatenate([linear, shift[..., None]], -1)


def inverse(matrix: ArrayLike) -> Array:
    """(..., 2, 3) -> (..., 2, 3): from input to image."""
    matrix = np.asarray(matrix, np.float64)
    linear = np.linalg.inv(matrix[..., :2])
    return np.concatenate([linear, -linear @ matrix[..., 2:]], -1)


def transform(points: ArrayLike, matrix: ArrayLike) -> Array:
    """points (..., K, 2) by matrices (..., 2, 3) -> (..., K, 2)."""
    matrix = np.asarray(matrix, np.float64)
    return np.asarray(points, np.float64) @ matrix[..., :2].swapaxes(-1, -2) + matrix[..., None, :, 2]


def crop(image: Tensor, matrix: ArrayLike, size: tuple[int, int]) -> Tensor:
    """image (C, height, width) uint8, by a matrix (2, 3) from image to input -> (C, H, W) uint8, contiguous.

    Linear interpolation between pixel centres in float32, rounded, the image black outside: what OpenCV's warpAffine
    computes. torch's grid_sample was chosen over OpenCV, which would be one more dependency, and over PIL's transform,
    which drops fractions and treats borders otherwise. Only the part of the image that the input shows is converted.
    """
    back = inverse(matrix)
    window = _window(back, size, image.shape[1:])
    if window is None:
        return image.new_zeros(image.shape[0], *size)
    left, top, right, bottom = window
    part = torch.empty(image.shape[0], bottom - top, right - left)
    part.copy_(image[:, top:bottom, left:right])
    back[:, 2] -= (left, top)
    grid = _grid(back, size, (bottom - top, right - left))
    pixels = F.grid_sample(part[None], grid[None], mode="bilinear", padding_mode="zeros", align_corners=False)
    return pixels[0].round_().to(torch.uint8)


def _window(back: Array, size: tuple[int, int], image: Sequence[int]) -> tuple[int, int, int, int] | None:
    """Left, top, right, bottom (exclusive) of the image's pixels that take part; None where there are none."""
    right, bottom = size[1] - 1, size[0] - 1
    corners = transform([[0, 0], [right, 0], [0, bottom], [right, bottom]], back)
    limits = np.array([image[1], image[0]])
    # One pixel more than is interpolated: the grid is in float32.
    low = np.clip(np.floor(corners.min(0)) - 1, 0, limits).astype(int)
    high = np.clip(np.ceil(corners.max(0)) + 2, 0, limits).astype(int)
    return (*low.tolist(), *high.tolist()) if (low < high).all() else None


def _grid(back: Array, size: tuple[int, int], part: tuple[int, int]) -> Tensor:
    """Where each pixel of the input lies in the part, (H, W, 2) in grid_sample's units: -1 and 1 are the outer edges of
    the first and the last pixel."""
    units = back * (2 / np.array([[part[1]], [part[0]]]))
    units[:, 2] += 1 / np.array([part[1], part[0]]) - 1
    columns = torch.arange(size[1], dtype=torch.float32)
    rows = torch.arange(size[0], dtype=torch.float32)[:, None]
    grid = torch.empty(*size, 2)
    for axis, (along, down, start) in enumerate(units.tolist()):
        torch.add(columns * along, rows * down + start, out=grid[..., axis])
    return grid


@dataclass(frozen=True)
class Augmentation:
    """What training does at random with a person's frame, before the one interpolation that makes the input.

    The defaults are the publication's (microsoft/human-pose-estimation.pytorch, lib/dataset/JointsDataset.py), which
    has no shift and no half bodies; those and `truncated` are mmpose's (datasets/transforms/common_transforms.py).

    Args:
        scale: the frame is enlarged by 1 + N(0, scale), at most by 1 +- scale.
        rotation, rotation_limit: deviation of a rotation and its limit either way, in degrees.
        shift: deviation and limit of moving the frame along either axis, in its extents.
        rotated, shifted, flip: probabilities of a rotation, of a shift and of mirroring.
        half_body: probability with which only the upper or the lower half of a person of whom at least 8 key points
            are labelled is framed.
        truncated: numbers beyond a limit are drawn anew; without it they are set to the limit, as published.

    Raises:
        UserError: a value outside its range.
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
        within("[0, 1]", rotated=self.rotated, flip=self.flip, shifted=self.shifted, half_body=self.half_body)
        within("[0, 1)", scale=self.scale)
        within("[0, 360]", rotation=self.rotation, rotation_limit=self.rotation_limit, shift=self.shift)

    def __call__(
        self, box: Array, joints: Array, legs: Sequence[bool], size: tuple[int, int]
    ) -> tuple[Array, Array, float, bool]:
        """A person to the frame's centre (2,) and extent (2,), its rotation in degrees, and whether it is mirrored
        (what `affine` takes). box (4,) x1 y1 x2 y2, joints (J, 3) x y and above 0 where labelled, in pixels of
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
        half = halves[int(torch.randint(len(halves), ()))]
        return framed(np.concatenate([half.min(0), half.max(0)]), size, HALF_PADDING)

    def _normal(self, deviation: float, limit: float) -> float:
        if not deviation or not limit:
            return 0.0
        if not self.truncated:
            return min(max(deviation * float(torch.randn(())), -limit), limit)
        tail = NORMAL.cdf(-limit / deviation)
        quantile = tail + (1 - 2 * tail) * float(torch.rand((), dtype=torch.float64))
        return deviation * NORMAL.inv_cdf(min(max(quantile, 1e-12), 1 - 1e-12))


def _chance(probability: float) -> bool:
    return float(torch.rand(())) < probability
