"""Augmentation on uint8: callables from an image (3, H, W) to a contiguous uint8 image (3, size, size).

Every random choice draws from torch's global generator. Normalisation is the network's own first step, so a pixel is a
byte until it is on the device. `imagenet_train` and the three others at the end are what a configuration names.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as v2F

from tdaf.errors import UserError

Transform = Callable[[Tensor], Tensor]
IMAGENET_MEAN = (124, 116, 104)  # what RandomErasing leaves behind: the mean pixel, which the network sees as 0

# Principal components of ImageNet's pixel values in units of 0..1 (Krizhevsky et al. 2012, Sec. 4.1): standard
# deviations and, a column each, directions; the figures of facebookarchive/fb.resnet.torch datasets/imagenet.lua.
DEVIATIONS = torch.tensor([0.2175, 0.0188, 0.0045])
DIRECTIONS = torch.tensor([[-0.5675, 0.7192, 0.4009], [-0.5808, -0.0045, -0.8140], [-0.5836, -0.6948, 0.4203]])


def resized_crop(image: Tensor, top: int, left: int, height: int, width: int, size: int) -> Tensor:
    """That box of the image as (3, size, size), antialiased bilinear.

    Only the box is resized. Pixels go in as (H, W, 3), as decoders leave them: torch's uint8 kernel for that order
    takes half the time of the one for planes, and gives the same bytes.
    """
    box = image.permute(1, 2, 0)[top : top + height, left : left + width].contiguous()
    # A batch stride of one image is what tells torch the order of the memory; view and unsqueeze would give another.
    pixels = box.as_strided((1, 3, height, width), (box.numel(), 1, 3 * width, 3))
    return F.interpolate(pixels, (size, size), mode="bilinear", antialias=True, align_corners=False)[0].contiguous()


@dataclass(frozen=True)
class ScaleJitterCrop:
    """A random square of `size` from the image resized to a random integer short side (He et al. 2016, Sec. 3.4).

    The square is found in the source's own pixels, to the nearest pixel, so that nothing outside it is resized.
    """

    short_side: tuple[int, int]  # both ends included
    size: int

    def __call__(self, image: Tensor) -> Tensor:
        height, width = image.shape[1:]
        short = min(height, width)
        target = int(torch.randint(self.short_side[0], self.short_side[1] + 1, ()))
        side = max(1, round(self.size * short / target))
        top = int(torch.randint(height - side + 1, ()))
        left = int(torch.randint(width - side + 1, ()))
        return resized_crop(image, top, left, side, side, self.size)


@dataclass(frozen=True)
class RandomResizedCrop:
    """A random box of `scale` times the image's area and an aspect of 3/4 to 4/3, resized to `size` (Szegedy et al.
    2015, Sec. 6). Boxes as torchvision's: ten tries, then the largest central box within these aspects."""

    scale: tuple[float, float]
    size: int

    def __call__(self, image: Tensor) -> Tensor:
        return resized_crop(image, *self._box(*image.shape[1:]), self.size)

    def _box(self, height: int, width: int) -> tuple[int, int, int, int]:
        smallest, largest = self.scale
        # one call for all tries: torch takes longer to draw one number than Python to use forty
        for area, aspect, down, across in torch.rand(10, 4, dtype=torch.float64).tolist():
            area = height * width * (smallest + (largest - smallest) * area)
            aspect = (4 / 3) ** (2 * aspect - 1)
            w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
            if 0 < w <= width and 0 < h <= height:
                return int(down * (height - h + 1)), int(across * (width - w + 1)), h, w
        h, w = min(height, round(width * 4 / 3)), min(width, round(height * 4 / 3))
        return (height - h) // 2, (width - w) // 2, h, w


@dataclass(frozen=True)
class ResizeCentreCrop:
    """The short side resized to `short_side`, then the central square of `size`: v2's Resize and CenterCrop."""

    short_side: int
    size: int

    def __call__(self, image: Tensor) -> Tensor:
        return v2F.center_crop(v2F.resize(image, [self.short_side]), [self.size, self.size]).contiguous()


@dataclass(frozen=True)
class TenCrop:
    """(10, 3, size, size): four corners and the centre of the image resized to `short_side`, then the same mirrored
    (Krizhevsky et al. 2012); order of torchvision's TenCrop."""

    short_side: int
    size: int

    def __call__(self, image: Tensor) -> Tensor:
        return torch.stack(v2F.ten_crop(v2F.resize(image, [self.short_side]), [self.size, self.size]))


@dataclass(frozen=True)
class PadCrop:
    """A random square of `size` from the image with `pad` black pixels around it (He et al. 2016, Sec. 4.2)."""

    pad: int
    size: int

    def __call__(self, image: Tensor) -> Tensor:
        padded = F.pad(image, (self.pad,) * 4)
        top = int(torch.randint(padded.shape[1] - self.size + 1, ()))
        left = int(torch.randint(padded.shape[2] - self.size + 1, ()))
        return padded[:, top : top + self.size, left : left + self.size].contiguous()


@dataclass(frozen=True)
class Flip:
    """Mirrored left to right with this probability."""

    probability: float

    def __call__(self, image: Tensor) -> Tensor:
        return image.flip(-1) if float(torch.rand(())) < self.probability else image


@dataclass(frozen=True)
class Lighting:
    """One shift a colour, a sum of the principal components with weights N(0, deviation) (Krizhevsky et al. 2012)."""

    deviation: float

    def __call__(self, image: Tensor) -> Tensor:
        shift = 255 * DIRECTIONS @ (DEVIATIONS * torch.randn(3) * self.deviation)
        # The same shift for all pixels of a colour: rounding it first equals rounding each sum, and stays in integers.
        return image.to(torch.int16).add_(shift.round().to(torch.int16).view(3, 1, 1)).clamp_(0, 255).to(torch.uint8)


@dataclass(frozen=True)
class Chain:
    steps: tuple[Transform, ...]

    def __call__(self, image: Tensor) -> Tensor:
        for step in self.steps:
            image = step(image)
        return image


def imagenet_train(
    size: int = 224,
    short_side: Sequence[int] | None = (256, 480),
    scale: Sequence[float] | None = None,
    flip: float = 0.5,
    lighting: float = 0.0,
    randaugment: int | None = None,
    erasing: float = 0.0,
) -> Transform:
    """Either scale jitter (`short_side`: its smallest and largest value) or a random resized crop (`scale`: smallest
    and largest part of the area), then flip, lighting (He et al.: 0.1), RandAugment with two operations of this
    magnitude (0..30), and random erasing with this probability. Raises UserError for values that cannot be."""
    _check(size, flip, erasing, randaugment)
    if (short_side is None) == (scale is None):
        raise UserError("train_transform: give short_side (scale jitter) or scale (random resized crop), not both")
    if lighting < 0:
        raise UserError(f"train_transform.lighting={lighting}: give 0 or more")
    if scale is not None:
        if len(scale) != 2 or not 0 < scale[0] <= scale[1] <= 1:
            raise UserError(f"train_transform.scale={list(scale)}: give two parts of the area, 0 < first <= last <= 1")
        crop: Transform = RandomResizedCrop((scale[0], scale[1]), size)
    else:
        if len(short_side) != 2 or not size <= short_side[0] <= short_side[1]:
            raise UserError(
                f"train_transform.short_side={list(short_side)}: give two lengths, size={size} <= first <= last"
            )
        crop = ScaleJitterCrop((short_side[0], short_side[1]), size)
    light = (Lighting(lighting),) if lighting else ()
    return Chain((crop, Flip(flip), *light, *_modern(randaugment, erasing, IMAGENET_MEAN)))


def imagenet_val(size: int = 224, short_side: int = 256, crops: int = 1) -> Transform:
    """`crops`: 1 for the centre, 10 for corners and centre, mirrored too, as (10, 3, size, size)."""
    if not 1 <= size <= short_side:
        raise UserError(f"val_transforms: size={size} must be between 1 and short_side={short_side}")
    if crops not in (1, 10):
        raise UserError(f"val_transforms: crops={crops}: give 1 or 10")
    return TenCrop(short_side, size) if crops == 10 else ResizeCentreCrop(short_side, size)


def cifar_train(
    size: int = 32, pad: int = 4, flip: float = 0.5, randaugment: int | None = None, erasing: float = 0.0
) -> Transform:
    """Padding by `pad` and a random crop of `size`, flip, then RandAugment and erasing as in `imagenet_train`."""
    _check(size, flip, erasing, randaugment)
    if pad < 0 or size > 32 + 2 * pad:
        raise UserError(f"train_transform: pad={pad}: give 0 or more, so that size={size} fits into 32 + 2 * pad")
    # mean pixel of CIFAR-10's training images
    return Chain((PadCrop(pad, size), Flip(flip), *_modern(randaugment, erasing, (125, 123, 114))))


def cifar_val() -> Transform:
    """The image as it is."""
    return Chain(())


def _modern(randaugment: int | None, erasing: float, mean: tuple[int, int, int]) -> list[Transform]:
    steps: list[Transform] = []
    if randaugment is not None:
        steps.append(v2.RandAugment(num_ops=2, magnitude=randaugment))
    if erasing:
        steps.append(v2.RandomErasing(erasing, value=mean))
    return steps


def _check(size: int, flip: float, erasing: float, randaugment: int | None) -> None:
    if size < 1:
        raise UserError(f"train_transform.size={size}: give 1 or more")
    for name, value in (("flip", flip), ("erasing", erasing)):
        if not 0 <= value <= 1:
            raise UserError(f"train_transform.{name}={value}: a probability lies between 0 and 1")
    if randaugment is not None and not 0 <= randaugment <= 30:
        raise UserError(f"train_transform.randaugment={randaugment}: give null or a magnitude of 0 to 30")
