"""Images with boxes to inputs, on uint8. Every random choice draws from torch's global generator."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as v2F

from tdaf.errors import UserError
from tdaf.ranges import within


class View(NamedTuple):
    """An image as the network sees it, and what became of its boxes."""

    image: Tensor  # uint8 (3, h, w)
    boxes: Tensor  # (L, 4) float32: x1, y1, x2, y2 in its pixels
    kept: Tensor  # (K,) bool: which of the K boxes given these are
    scale: tuple[float, float]  # its pixels for one of the original, along x and y


Transform = Callable[[Tensor, Tensor], View]  # (uint8 (3, H, W), boxes (K, 4)) -> View


@dataclass(frozen=True)
class TrainTransform:
    """Colours, a window, a mirror image, then the size: the cheap steps see the smaller image.

    Args:
        short_sides: pixels; one size; two are the ends of a range of whole numbers, both included; more are a list to
            draw from.
        max_size: pixels, of the long side.
        flip, crop: probabilities of a mirror image, and of a random window of half to all of each side.
        jitter: brightness, contrast and saturation change by up to this part.

    Raises:
        UserError: a value that cannot be.
    """

    short_sides: list[int]
    max_size: int = 1333
    flip: float = 0.5
    crop: float = 0.0
    jitter: float = 0.0

    def __post_init__(self) -> None:
        if not self.short_sides or min(self.short_sides) < 1 or list(self.short_sides) != sorted(self.short_sides):
            raise UserError(f"short_sides={list(self.short_sides)}: give rising sizes of 1 or more")
        within("[0, 1]", flip=self.flip, crop=self.crop, jitter=self.jitter)
        within(f"[{self.short_sides[-1]}, inf)", max_size=self.max_size)

    def __call__(self, image: Tensor, boxes: Tensor) -> View:
        if self.jitter:
            image = jittered(image, self.jitter)
        kept = torch.ones(len(boxes), dtype=torch.bool)
        if self.crop and float(torch.rand(())) < self.crop:
            image, boxes, kept = cropped(image, boxes)
        if float(torch.rand(())) < self.flip:
            image, boxes = flipped(image, boxes)
        low, *others = self.short_sides
        sizes = range(low, others[0] + 1) if len(others) == 1 else self.short_sides
        short_side = sizes[int(torch.randint(len(sizes), ())) if len(sizes) > 1 else 0]
        return resized(image, boxes, short_side, self.max_size)._replace(kept=kept)


@dataclass(frozen=True)
class ValTransform:
    """The whole image. short_side, max_size: pixels. Raises UserError for values that cannot be."""

    short_side: int = 800
    max_size: int = 1333

    def __post_init__(self) -> None:
        within("[1, inf)", short_side=self.short_side)
        within(f"[{self.short_side}, inf)", max_size=self.max_size)

    def __call__(self, image: Tensor, boxes: Tensor) -> View:
        return resized(image, boxes, self.short_side, self.max_size)


train_transform, val_transform = TrainTransform, ValTransform  # as configurations name them


def resized(image: Tensor, boxes: Tensor, short_side: int, max_size: int) -> View:
    """The short side as asked, unless the long side would exceed `max_size`."""
    height, width = image.shape[1:]
    new_height, new_width = resized_size(height, width, short_side, max_size)
    scale = new_width / width, new_height / height
    pixels = v2F.resize(image, [new_height, new_width], antialias=True)
    return View(pixels, boxes * boxes.new_tensor(scale).repeat(2), torch.ones(len(boxes), dtype=torch.bool), scale)


def resized_size(height: int, width: int, short_side: int, max_size: int) -> tuple[int, int]:
    """(height, width) with the aspect kept as far as whole pixels allow; the long side is rounded down
    (tianzhi0549/FCOS, fcos_core/data/transforms/transforms.py)."""
    short, long = min(height, width), max(height, width)
    if long / short * short_side > max_size:
        short_side = max(1, round(max_size * short / long))
    new_long = max(1, int(short_side * long / short))
    return (short_side, new_long) if height <= width else (new_long, short_side)


def flipped(image: Tensor, boxes: Tensor) -> tuple[Tensor, Tensor]:
    """Mirrored left to right."""
    width = image.shape[2]
    left, top, right, bottom = boxes.unbind(1)
    return image.flip(2), torch.stack([width - right, top, width - left, bottom], 1)


def cropped(image: Tensor, boxes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(image, boxes, kept) of a window of half to all of each side; of an object whose box has its centre outside it,
    too little is left to learn from, and the box is dropped."""
    height, width = image.shape[1:]
    h = int(torch.randint((height + 1) // 2, height + 1, ()))
    w = int(torch.randint((width + 1) // 2, width + 1, ()))
    top, left = int(torch.randint(height - h + 1, ())), int(torch.randint(width - w + 1, ()))
    moved = boxes - boxes.new_tensor([left, top, left, top])
    limit = boxes.new_tensor([w, h])
    centre = (moved[:, :2] + moved[:, 2:]) / 2
    kept = ((centre > 0) & (centre < limit)).all(1)
    inside = torch.minimum(moved[kept].clamp(min=0), limit.repeat(2))
    return image[:, top : top + h, left : left + w], inside, kept


def jittered(image: Tensor, part: float) -> Tensor:
    """Brightness, contrast and saturation, each multiplied by a number within `part` of 1."""
    brightness, contrast, saturation = (1 + part * (2 * torch.rand(3) - 1)).tolist()
    image = v2F.adjust_contrast(v2F.adjust_brightness(image, brightness), contrast)
    return v2F.adjust_saturation(image, saturation)
