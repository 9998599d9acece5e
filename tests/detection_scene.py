"""Outputs of a head and annotations to go with them, for the tests of detection."""

from typing import Any

import torch
from torch import Tensor

STRIDES, CLASSES = [8, 16, 32, 64, 128], 3


def drawn(images: int, size: tuple[int, int] = (96, 128)) -> dict[str, Any]:
    """The head's outputs for images of `size`, drawn; leaves of the graph."""
    seed = torch.Generator().manual_seed(3)
    outputs: dict[str, Any] = {"logits": [], "boxes": [], "centreness": [], "strides": STRIDES}
    for stride in STRIDES:
        side = [-(-pixels // stride) for pixels in size]
        for name, channels in (("logits", CLASSES), ("boxes", 4), ("centreness", 1)):
            x = torch.randn(images, channels, *side, generator=seed)
            x = x.exp() * 2 * stride if name == "boxes" else x
            outputs[name].append(x.requires_grad_())
    return outputs


def scene() -> tuple[list[Tensor], list[Tensor]]:
    """Three images: five overlapping boxes, none, one."""
    first = [[10.2, 8.4, 60.7, 70.1], [12.3, 5.5, 50.2, 40.9], [3.1, 2.2, 121.4, 90.3], [80.6, 50.3, 99.9, 64.2]]
    boxes = [[*first, [85.5, 52.5, 92.5, 60.5]], [], [[20.7, 30.1, 100.3, 62.6]]]
    labels = [[0, 1, 2, 1, 0], [], [2]]
    return [torch.tensor(b).reshape(-1, 4) for b in boxes], [torch.tensor(k, dtype=torch.int64) for k in labels]


def shares(ranks: int) -> list[tuple[dict[str, Any], list[Tensor], list[Tensor]]]:
    """The scene's first two images, over one or two ranks."""
    outputs, (boxes, labels) = drawn(2), scene()
    parts = []
    for rank in range(ranks):
        mine = slice(rank, rank + 1) if ranks == 2 else slice(2)
        part = {k: v if k == "strides" else [x.detach()[mine].requires_grad_() for x in v] for k, v in outputs.items()}
        parts.append((part, boxes[:2][mine], labels[:2][mine]))
    return parts
