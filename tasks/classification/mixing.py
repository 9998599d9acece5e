"""Mixup and cutmix on a batch of bytes."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Beta

from tdaf.errors import UserError


@dataclass(frozen=True)
class Mixing:
    """Each sample mixed with the one before it in the batch, one weight a batch, drawn from Beta(alpha, alpha).

    mixup, cutmix: their alphas, 0 for off; where both are on, each batch takes either with equal chance, as
    torchvision's references/classification does. Zhang et al. 2018; Yun et al. 2019.
    """

    mixup: float
    cutmix: float

    def __post_init__(self) -> None:
        for name, alpha in (("mixup", self.mixup), ("cutmix", self.cutmix)):
            if not 0 <= alpha < math.inf:
                raise UserError(f"task.{name}={alpha}: give 0 (off) or the positive alpha of Beta(alpha, alpha)")

    def __call__(self, images: Tensor, labels: Tensor) -> dict[str, Any]:
        """images uint8 (B, 3, H, W), labels (B,) -> "input", "label", and with mixing "mixed_label" (B,) and its weight
        "mixed_weight" (B,) float32; "label" has the rest of the weight."""
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
