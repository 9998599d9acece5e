"""Crops of clips on uint8: callables from the frames of a window (T, 3, H, W) to an input (3, T, size, size), or
several views of it (V, 3, T, size, size), contiguous. All frames of a clip are cut and mirrored alike.

Every random choice draws from torch's global generator. Normalisation is the network's own first step. `clip_train`,
`clip_val` and `clip_three_crops` are what a configuration names.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.transforms import RandomResizedCrop
from torchvision.transforms.v2 import functional as v2F

from tdaf.errors import UserError

Transform = Callable[[Tensor], Tensor]
Box = tuple[int, int, int, int]  # top, left, height, width


def resized_crop(frames: Tensor, box: Box, size: int) -> Tensor:
    """That box of every frame as (T, 3, size, size), antialiased bilinear."""
    top, left, height, width = box
    # torch's uint8 kernel for pixels side by side, as decoders leave them, takes half the time of the one for planes
    cut = frames[..., top : top + height, left : left + width].contiguous(memory_format=torch.channels_last)
    return F.interpolate(cut, (size, size), mode="bilinear", antialias=True, align_corners=False)


def over_time(frames: Tensor) -> Tensor:
    """(T, 3, H, W) -> (3, T, H, W), contiguous."""
    return frames.transpose(0, 1).contiguous()


@dataclass(frozen=True)
class CornerBox:
    """A square at a corner or in the middle, its side the short side times 2^(-k/4), k = 0 .. `scales` - 1, both drawn
    evenly (kenshohara/3D-ResNets-PyTorch, branch CVPR2018, spatial_transforms.py and opts.py)."""

    scales: int

    def __call__(self, height: int, width: int) -> Box:
        side = max(1, int(min(height, width) * 2 ** (-int(torch.randint(self.scales, ())) / 4)))
        down, across = height - side, width - side
        places = ((down // 2, across // 2), (0, 0), (0, across), (down, 0), (down, across))
        return *places[int(torch.randint(5, ()))], side, side


@dataclass(frozen=True)
class AreaBox:
    """A box of `scale` times the frame's area and an aspect of 3/4 to 4/3, as torchvision draws it (the master branch
    of the same repository, opts.py)."""

    scale: tuple[float, float]

    def __call__(self, height: int, width: int) -> Box:
        shape = torch.empty(1, height, width, device="meta")
        return RandomResizedCrop.get_params(shape, list(self.scale), [3 / 4, 4 / 3])


@dataclass(frozen=True)
class TrainingCrop:
    """One random box for the whole clip, resized to `size`, mirrored left to right with probability `flip`."""

    box: Callable[[int, int], Box]
    size: int
    flip: float

    def __call__(self, frames: Tensor) -> Tensor:
        cut = resized_crop(frames, self.box(*frames.shape[-2:]), self.size)
        return over_time(cut.flip(-1) if float(torch.rand(())) < self.flip else cut)


@dataclass(frozen=True)
class CentreCrop:
    """The short side resized to `short_side`, then the central square of `size`."""

    short_side: int
    size: int

    def __call__(self, frames: Tensor) -> Tensor:
        return over_time(v2F.center_crop(v2F.resize(frames, [self.short_side]), [self.size, self.size]))


@dataclass(frozen=True)
class ThreeCrops:
    """(3, 3, T, size, size): of the frames with their short side resized to `short_side`, the squares at the first end,
    the middle and the last end of the longer side, each in the middle of the short one
    (facebookresearch/SlowFast slowfast/datasets/transform.py, uniform_crop)."""

    short_side: int
    size: int

    def __call__(self, frames: Tensor) -> Tensor:
        whole = v2F.resize(frames, [self.short_side])
        down, across = (length - self.size for length in whole.shape[-2:])
        ends = ((0, down), (across // 2,) * 2) if down > across else ((down // 2,) * 2, (0, across))
        (top, bottom), (left, right) = ends
        corners = ((top, left), (down // 2, across // 2), (bottom, right))
        return torch.stack([over_time(whole[..., y : y + self.size, x : x + self.size]) for y, x in corners])


def clip_train(
    size: int = 112, scale: Sequence[float] | None = (0.25, 1.0), corner_scales: int | None = None, flip: float = 0.5
) -> Transform:
    """Either a random resized crop (`scale`: smallest and largest part of the area) or a crop at a corner or in the
    middle with `corner_scales` sizes, each 2^(-1/4) of the one before; then a flip with probability `flip`.
    Raises UserError for values that cannot be."""
    _check("train_transform", size, size)
    if not 0 <= flip <= 1:
        raise UserError(f"train_transform.flip={flip}: a probability lies between 0 and 1")
    if (scale is None) == (corner_scales is None):
        raise UserError("train_transform: give scale (random resized crop) or corner_scales (corner crop), not both")
    if corner_scales is not None:
        if corner_scales < 1:
            raise UserError(f"train_transform.corner_scales={corner_scales}: give 1 or more")
        return TrainingCrop(CornerBox(corner_scales), size, flip)
    if len(scale) != 2 or not 0 < scale[0] <= scale[1] <= 1:
        raise UserError(f"train_transform.scale={list(scale)}: give two parts of the area, 0 < first <= last <= 1")
    return TrainingCrop(AreaBox((scale[0], scale[1])), size, flip)


def clip_val(size: int = 112, short_side: int = 112) -> Transform:
    """The central square of `size` after the short side was resized to `short_side`."""
    _check("val_transforms", size, short_side)
    return CentreCrop(short_side, size)


def clip_three_crops(size: int = 112, short_side: int = 112) -> Transform:
    """Three views: squares of `size` along the longer side after the short side was resized to `short_side`."""
    _check("val_transforms", size, short_side)
    return ThreeCrops(short_side, size)


def _check(where: str, size: int, short_side: int) -> None:
    if not 1 <= size <= short_side:
        bounds = "give 1 or more" if size == short_side else f"it must be between 1 and short_side={short_side}"
        raise UserError(f"{where}: size={size}: {bounds}")
