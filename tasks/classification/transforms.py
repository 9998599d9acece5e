"""Augmentation on uint8: callables from an image (3, H, W) to an input (3, size, size), and the mixing of a batch.

Every random choice draws from torch's global generator. Normalisation is the network's own first step, so a pixel is a
byte until it is on the device. `imagenet_train`, `imagenet_val`, `cifar_train` and `cifar_val` are what a configuration
names: torchvision's v2 transforms, and what these lack or do more slowly.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.distributions import Beta
from torchvision.transforms import v2

from tdaf.errors import UserError
from tdaf.ranges import within

Transform = Callable[[Tensor], Tensor]
Box = tuple[int, int, int, int]  # top, left, height, width in pixels
LONG = 8  # times its width that an image is long before evaluation cuts it first

# What RandomErasing leaves behind: the mean pixel of the training images, which the network sees as 0.
IMAGENET_MEAN, CIFAR_MEAN = (124, 116, 104), (125, 123, 114)
# Principal components of ImageNet's pixel values in units of 0..1 (Krizhevsky et al. 2012, Sec. 4.1): standard
# deviations and, a column each, directions; the figures of facebookarchive/fb.resnet.torch datasets/imagenet.lua.
DEVIATIONS = torch.tensor([0.2175, 0.0188, 0.0045])
DIRECTIONS = torch.tensor([[-0.5675, 0.7192, 0.4009], [-0.5808, -0.0045, -0.8140], [-0.5836, -0.6948, 0.4203]])


def imagenet_train(
    size: int = 224,
    short_side: Sequence[int] | None = (256, 480),
    scale: Sequence[float] | None = None,
    flip: float = 0.5,
    lighting: float = 0.0,
    randaugment: int | None = None,
    erasing: float = 0.0,
) -> Transform:
    """Scale jitter or a random resized crop, then mirroring, colour shift, RandAugment and random erasing.

    Args:
        size: pixels of the input's side.
        short_side: for scale jitter, the smallest and largest length in pixels of the short side; or else
        scale: for a random resized crop, the smallest and largest part of the area.
        flip: probability of a mirror image.
        lighting: deviation of the colour shift along the principal components (He et al. 2016: 0.1).
        randaugment: magnitude, 0 to 30, of two operations an image; None for none.
        erasing: probability of erasing a box.

    Raises:
        UserError: values that cannot be.
    """
    within("[1, inf)", size=size)
    within("[0, inf)", lighting=lighting)
    if (short_side is None) == (scale is None):
        raise UserError("short_side, scale: give the one (scale jitter) or the other (random resized crop), not both")
    if scale is not None:
        if len(scale) != 2 or not 0 < scale[0] <= scale[1] <= 1:
            raise UserError(f"scale={list(scale)}: give two parts of the area, 0 < first <= last <= 1")
        crop: ScaleJitterCrop | RandomResizedCrop = RandomResizedCrop((scale[0], scale[1]), size)
    else:
        if len(short_side) != 2 or not size <= short_side[0] <= short_side[1]:
            raise UserError(f"short_side={list(short_side)}: give two lengths, size={size} <= first <= last")
        crop = ScaleJitterCrop((short_side[0], short_side[1]), size)
    shift = [Lighting(lighting)] if lighting else []
    return Cropped(crop, (_mirror(flip), *shift, *_modern(randaugment, erasing, IMAGENET_MEAN)))


def imagenet_val(size: int = 224, short_side: int = 256, crops: int = 1, interpolation: str = "bilinear") -> Transform:
    """The image resized, then cut.

    Args:
        size: pixels of the input's side.
        short_side: pixels of the resized image's short side.
        crops: 1 for the centre, 10 for corners and centre, mirrored too, as (10, 3, size, size).
        interpolation: of the resizing, "bilinear" or "bicubic", antialiased.

    Raises:
        UserError: values that cannot be.
    """
    if not 1 <= size <= short_side:
        raise UserError(f"size={size} must be between 1 and short_side={short_side}")
    if crops not in (1, 10):
        raise UserError(f"crops={crops}: give 1 or 10")
    if interpolation not in ("bilinear", "bicubic"):
        raise UserError(f"interpolation={interpolation}: give bilinear or bicubic")
    return EvaluationCrop(size, short_side, crops, interpolation)


def cifar_train(
    size: int = 32, pad: int = 4, flip: float = 0.5, randaugment: int | None = None, erasing: float = 0.0
) -> Transform:
    """A random square of `size` from the image with `pad` black pixels around it (He et al. 2016, Sec. 4.2), then
    mirroring, RandAugment and erasing; the rest as for `imagenet_train`."""
    within("[1, inf)", size=size)
    if pad < 0 or size > 32 + 2 * pad:
        raise UserError(f"pad={pad}: give 0 or more, so that size={size} fits into 32 + 2 * pad")
    return v2.Compose([v2.RandomCrop(size, padding=pad), _mirror(flip), *_modern(randaugment, erasing, CIFAR_MEAN)])


def cifar_val() -> Transform:
    """The image as it is."""
    return v2.Identity()


def _mirror(probability: float) -> Mirror:
    within("[0, 1]", flip=probability)
    return Mirror(probability)


def _modern(randaugment: int | None, erasing: float, mean: tuple[int, int, int]) -> list[Transform]:
    within("[0, 1]", erasing=erasing)
    within("[0, 30]", randaugment=randaugment)
    steps: list[Transform] = [] if randaugment is None else [v2.RandAugment(num_ops=2, magnitude=randaugment)]
    return [*steps, v2.RandomErasing(erasing, value=mean)] if erasing else steps


def resized(image: Tensor, size: int) -> Tensor:
    """The image as (3, size, size), antialiased bilinear: v2's function, at half its time.

    Pixels go in as (H, W, 3), as decoders leave them: torch's uint8 kernel for that order takes half the time of the
    one for planes, and gives the same bytes.
    """
    height, width = image.shape[1:]
    box = image.permute(1, 2, 0).contiguous()
    # A batch stride of one image is what tells torch the order of the memory; view and unsqueeze would give another.
    pixels = box.as_strided((1, 3, height, width), (box.numel(), 1, 3 * width, 3))
    return F.interpolate(pixels, (size, size), mode="bilinear", antialias=True, align_corners=False)[0].contiguous()


def resized_crop(image: Tensor, top: int, left: int, height: int, width: int, size: int) -> Tensor:
    """That box of the image, and nothing else of it, as `resized` gives it."""
    return resized(image[:, top : top + height, left : left + width], size)


@dataclass(frozen=True)
class Cropped:
    """A box of the image resized, then mirrored and so on: what only needs the box's pixels to be decoded.

    `transform(image)` is `transform.of_box(pixels)` of that image's pixels in `transform.box(height, width)`.
    """

    crop: ScaleJitterCrop | RandomResizedCrop
    then: tuple[Transform, ...]

    def __call__(self, image: Tensor) -> Tensor:
        return self._rest(self.crop(image))

    def box(self, height: int, width: int) -> Box:
        return self.crop.box(height, width)

    def of_box(self, pixels: Tensor) -> Tensor:
        return self._rest(resized(pixels, self.crop.size))

    def _rest(self, image: Tensor) -> Tensor:
        for step in self.then:
            image = step(image)
        return image


@dataclass(frozen=True)
class Mirror:
    """The image, or with this probability its mirror image: v2.RandomHorizontalFlip with its draws, at half its time.
    (In a worker each call of v2's machinery finds the caches cold.)"""

    probability: float

    def drawn(self) -> bool:
        return bool(torch.rand(1) < self.probability)

    def __call__(self, image: Tensor) -> Tensor:
        return image.flip(-1) if self.drawn() else image


@dataclass(frozen=True)
class ScaleJitterCrop:
    """A random square of `size` from the image resized to a random integer short side (He et al. 2016, Sec. 3.4).

    The square is found in the source's own pixels, to the nearest pixel, so that nothing outside it is resized.
    """

    short_side: tuple[int, int]  # both ends included
    size: int

    def __call__(self, image: Tensor) -> Tensor:
        return resized_crop(image, *self.box(*image.shape[1:]), self.size)

    def box(self, height: int, width: int) -> Box:
        short = min(height, width)
        target = int(torch.randint(self.short_side[0], self.short_side[1] + 1, ()))
        side = max(1, round(self.size * short / target))
        top = int(torch.randint(height - side + 1, ()))
        left = int(torch.randint(width - side + 1, ()))
        return top, left, side, side


@dataclass(frozen=True)
class RandomResizedCrop:
    """A random box of `scale` times the image's area and an aspect of 3/4 to 4/3, resized to `size` (Szegedy et al.
    2015, Sec. 6). Boxes as torchvision's: ten tries, then the largest central box within these aspects."""

    scale: tuple[float, float]
    size: int

    def __call__(self, image: Tensor) -> Tensor:
        return resized_crop(image, *self.box(*image.shape[1:]), self.size)

    def box(self, height: int, width: int) -> Box:
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
class EvaluationCrop:
    """The image resized to `short_side`, then its centre; or, of ten crops, corners and centre, then the same mirrored
    (Krizhevsky et al. 2012), (10, 3, size, size). Pixels as torchvision's.

    Of an image more than `LONG` times as long as it is wide the crops are cut first, to the nearest pixel of the
    source, and then resized (bilinear), since a strip of a few pixels' width would grow to gigabytes.
    """

    size: int
    short_side: int
    crops: int
    interpolation: str

    def __call__(self, image: Tensor) -> Tensor:
        if max(image.shape[1:]) > LONG * min(image.shape[1:]):
            return self._cut_first(image)
        resized = v2.functional.resize(image, [self.short_side], v2.InterpolationMode(self.interpolation))
        if self.crops == 1:
            return v2.functional.center_crop(resized, [self.size, self.size])
        return torch.stack(v2.functional.ten_crop(resized, [self.size, self.size]))

    def _cut_first(self, image: Tensor) -> Tensor:
        height, width = image.shape[1:]
        side = max(1, round(self.size * min(height, width) / self.short_side))
        down, right = height - side, width - side
        places = [(round(down / 2), round(right / 2))]
        if self.crops == 1:
            return resized_crop(image, *places[0], side, side, self.size)
        places = [(0, 0), (0, right), (down, 0), (down, right), *places]
        sources = (image, image.flip(-1))
        return torch.stack([resized_crop(source, *p, side, side, self.size) for source in sources for p in places])


@dataclass(frozen=True)
class Lighting:
    """One shift a colour, a sum of the principal components with weights N(0, deviation) (Krizhevsky et al. 2012)."""

    deviation: float

    def __call__(self, image: Tensor) -> Tensor:
        shift = 255 * DIRECTIONS @ (DEVIATIONS * torch.randn(3) * self.deviation)
        # The same shift for all pixels of a colour: rounding it first equals rounding each sum, and stays in integers.
        return image.to(torch.int16).add_(shift.round().to(torch.int16).view(3, 1, 1)).clamp_(0, 255).to(torch.uint8)


@dataclass(frozen=True)
class Mixing:
    """Each sample of a batch of bytes mixed with the one before it, one weight a batch, drawn from Beta(alpha, alpha).

    Args:
        mixup, cutmix: their alphas, 0 for off (Zhang et al. 2018; Yun et al. 2019); where both are on, each batch takes
            either with equal chance, as torchvision's references/classification does.

    Raises:
        UserError: an alpha below 0 or without end.
    """

    mixup: float
    cutmix: float

    def __post_init__(self) -> None:
        for name, alpha in (("mixup", self.mixup), ("cutmix", self.cutmix)):
            if not 0 <= alpha < math.inf:
                raise UserError(f"{name}={alpha}: give 0 (off) or the positive alpha of Beta(alpha, alpha)")

    def __call__(self, images: Tensor, labels: Tensor) -> dict[str, Any]:
        """A training batch.

        Args:
            images: uint8 (B, 3, H, W).
            labels: (B,).

        Returns:
            "input" and "label", and with mixing "mixed_label" (B,) and its weight "mixed_weight" (B,) float32; "label"
            has the rest of the weight.
        """
        if not (self.mixup or self.cutmix):
            return {"input": images, "label": labels}
        cut = bool(self.cutmix) and (not self.mixup or float(torch.rand(())) < 0.5)
        alpha = self.cutmix if cut else self.mixup
        kept = float(Beta(alpha, alpha).sample())
        mixed, kept = _cut(images, kept) if cut else (_blend(images, kept), kept)
        weight = torch.full((len(labels),), 1 - kept)
        return {"input": mixed, "label": labels, "mixed_label": labels.roll(1), "mixed_weight": weight}


def _blend(images: Tensor, kept: float) -> Tensor:
    mixed = torch.empty_like(images)
    # image by image: a whole batch in float would be hundreds of MB
    for i, image in enumerate(images):
        mixed[i] = torch.lerp(images[i - 1].float(), image.float(), kept).round_()
    return mixed


def _cut(images: Tensor, kept: float) -> tuple[Tensor, float]:
    """A box from the other image, round a uniform centre; what the border cuts off is given back to `kept`."""
    height, width = images.shape[-2:]
    half = 0.5 * math.sqrt(1 - kept)
    y, x = int(torch.randint(height, ())), int(torch.randint(width, ()))
    top, bottom = max(0, y - int(half * height)), min(height, y + int(half * height))
    left, right = max(0, x - int(half * width)), min(width, x + int(half * width))
    mixed = images.clone()
    mixed[..., top:bottom, left:right] = images.roll(1, 0)[..., top:bottom, left:right]
    return mixed, 1 - (bottom - top) * (right - left) / (height * width)
