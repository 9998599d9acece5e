"""Crops of clips on uint8: callables from the frames of a window (T, 3, H, W) to an input (3, T, size, size), or
several views of it (V, 3, T, size, size), contiguous. All frames of a clip are cut and mirrored alike.

Every random choice draws from torch's global generator. Normalisation is the network's own first step. `clip_train`,
`clip_val` and `clip_three_crops` are what a configuration names.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.transforms import RandomResizedCrop
from torchvision.transforms.v2 import functional as v2F

from tdaf.errors import UserError
from tdaf.ranges import within

Transform = Callable[[Tensor], Tensor]
Box = tuple[int, int, int, int]  # top, left, height, width


def clip_train(
    size: int = 112, scale: Sequence[float] | None = (0.25, 1.0), corner_scales: int | None = None, flip: float = 0.5
) -> Transform:
    """One random box for the whole clip, resized and perhaps mirrored.

    Args:
        size: pixels of the result's side.
        scale: smallest and largest part of the frame's area, for a random resized crop.
        corner_scales: instead of it, a crop at a corner or in the middle, of so many sizes, each 2^(-1/4) of the one
            before.
        flip: probability of a mirror image.

    Raises:
        UserError: values that cannot be, or both kinds of crop.
    """
    within("[1, inf)", size=size, corner_scales=corner_scales)
    within("[0, 1]", flip=flip)
    if (scale is None) == (corner_scales is None):
        raise UserError("give scale (random resized crop) or corner_scales (corner crop), not both")
    if corner_scales is None:
        if len(scale) != 2 or not 0 < scale[0] <= scale[1] <= 1:
            raise UserError(f"scale={list(scale)}: give two parts of the area, 0 < first <= last <= 1")
        return partial(_training_crop, box=partial(area_box, scale=tuple(scale)), size=size, flip=flip)
    return partial(_training_crop, box=partial(corner_box, scales=corner_scales), size=size, flip=flip)


def clip_val(size: int = 112, short_side: int = 112) -> Transform:
    """The central square of `size` after the short side was resized to `short_side`. Raises UserError."""
    within(f"[1, {short_side}]", size=size)
    return partial(_centre_crop, size=size, short_side=short_side)


def clip_three_crops(size: int = 112, short_side: int = 112) -> Transform:
    """Three views, (3, 3, T, size, size): of the frames with their short side resized to `short_side`, the squares at
    the first end, the middle and the last end of the longer side, each in the middle of the short one
    (facebookresearch/SlowFast slowfast/datasets/transform.py, uniform_crop). Raises UserError."""
    within(f"[1, {short_side}]", size=size)
    return partial(_three_crops, size=size, short_side=short_side)


def corner_box(height: int, width: int, scales: int) -> Box:
    """A square at a corner or in the middle, its side the short side times 2^(-k/4), k = 0 .. `scales` - 1, both drawn
    evenly (kenshohara/3D-ResNets-PyTorch, branch CVPR2018, spatial_transforms.py and opts.py)."""
    side = max(1, int(min(height, width) * 2 ** (-int(torch.randint(scales, ())) / 4)))
    down, across = height - side, width - side
    places = ((down // 2, across // 2), (0, 0), (0, across), (down, 0), (down, across))
    return *places[int(torch.randint(5, ()))], side, side


def area_box(height: int, width: int, scale: tuple[float, float]) -> Box:
    """A box of `scale` times the frame's area and an aspect of 3/4 to 4/3, as torchvision draws it (the master branch
    of the same repository, opts.py)."""
    return RandomResizedCrop.get_params(torch.empty(1, height, width, device="meta"), list(scale), [3 / 4, 4 / 3])


def _training_crop(frames: Tensor, box: Callable[[int, int], Box], size: int, flip: float) -> Tensor:
    top, left, height, width = box(*frames.shape[-2:])
    # torch's uint8 kernel for pixels side by side, as decoders leave them, takes half the time of the one for planes
    cut = frames[..., top : top + height, left : left + width].contiguous(memory_format=torch.channels_last)
    resized = F.interpolate(cut, (size, size), mode="bilinear", antialias=True, align_corners=False)
    return _over_time(resized.flip(-1) if float(torch.rand(())) < flip else resized)


def _centre_crop(frames: Tensor, size: int, short_side: int) -> Tensor:
    return _over_time(v2F.center_crop(v2F.resize(frames, [short_side]), [size, size]))


def _three_crops(frames: Tensor, size: int, short_side: int) -> Tensor:
    whole = v2F.resize(frames, [short_side])
    down, across = (length - size for length in whole.shape[-2:])
    ends = [(down // 2, 0), (down // 2, across // 2), (down // 2, across)]
    if down > across:
        ends = [(0, across // 2), (down // 2, across // 2), (down, across // 2)]
    return torch.stack([_over_time(whole[..., y : y + size, x : x + size]) for y, x in ends])


def _over_time(frames: Tensor) -> Tensor:
    """(T, 3, H, W) -> (3, T, H, W), contiguous."""
    return frames.transpose(0, 1).contiguous()
