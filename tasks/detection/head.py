"""The head of FCOS: two towers, shared by all levels."""

from __future__ import annotations

import math
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn

from tasks.detection.line import Line

PRIOR = 0.01  # the probability that every location starts with for every class


class Head(nn.Module):
    """Towers of `convs` times 3x3 convolution, group norm, ReLU; a learnable scale a level before the box's activation.

    strides: of the levels, input pixels a cell. channels: a multiple of 8; groups of the norm: 32, fewer for fewer than
    256 channels (8 or more channels a group). Starts with N(0, 0.01), biases 0 but the classes', scales 1
    (tianzhi0549/FCOS, fcos_core/modeling/rpn/fcos/fcos.py).
    """

    def __init__(self, classes: int, strides: list[int], line: Line, channels: int = 256, convs: int = 4) -> None:
        super().__init__()
        self.strides, self.line = list(strides), line
        self.class_tower, self.box_tower = _tower(channels, convs), _tower(channels, convs)
        self.logits = nn.Conv2d(channels, classes, 3, padding=1)
        self.boxes = nn.Conv2d(channels, 4, 3, padding=1)
        self.centreness = nn.Conv2d(channels, 1, 3, padding=1)
        self.scales = nn.Parameter(torch.ones(len(strides)))
        for part in self.modules():
            if isinstance(part, nn.Conv2d):
                nn.init.normal_(part.weight, std=0.01)
                nn.init.zeros_(part.bias)
        nn.init.constant_(self.logits.bias, -math.log((1 - PRIOR) / PRIOR))

    def forward(self, levels: list[Tensor]) -> dict[str, list]:
        """levels (B, channels, h, w) -> lists of one entry a level: "logits" (B, K, h, w); "boxes" (B, 4, h, w),
        distances to the left, top, right and bottom side in input pixels, float32; "centreness" (B, 1, h, w), logits;
        "strides", numbers."""
        logits, boxes, centreness = [], [], []
        for level, (x, stride) in enumerate(zip(levels, self.strides, strict=True)):
            for_classes, for_boxes = self.class_tower(x), self.box_tower(x)
            logits.append(self.logits(for_classes))
            centreness.append(self.centreness(for_boxes if self.line.centreness_on_box_tower else for_classes))
            with _full_precision(x.device):
                # bfloat16 would give the logarithm of a distance to 1.6 % of the distance
                raw = self.boxes(for_boxes.to(self.boxes.weight.dtype)) * self.scales[level]
                boxes.append(raw.relu() * stride if self.line.normalised_targets else raw.exp())
        return {"logits": logits, "boxes": boxes, "centreness": centreness, "strides": self.strides}


def _tower(channels: int, convs: int) -> nn.Sequential:
    groups = math.gcd(32, channels // 8)
    layers: list[nn.Module] = []
    for _ in range(convs):
        layers += [nn.Conv2d(channels, channels, 3, padding=1), nn.GroupNorm(groups, channels), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers)


def _full_precision(device: torch.device) -> AbstractContextManager:
    if torch.amp.is_autocast_available(device.type):
        return torch.autocast(device.type, enabled=False)
    return nullcontext()  # the meta device
