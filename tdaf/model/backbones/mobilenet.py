"""MobileNet v1 (Howard et al. 2017, Table 1), width 1.0, cut where the stride changes."""

from __future__ import annotations

from collections import OrderedDict

from torch import nn

from tdaf.errors import UserError
from tdaf.model import attention as mechanisms
from tdaf.model.attention import Attention
from tdaf.model.inflate import inflate
from tdaf.model.staged import Staged, initialise

_WIDTHS = [64, 128, 256, 512, 1024]
_BLOCKS = [1, 2, 2, 6, 2]  # depthwise separable blocks a stage


def mobilenet(stem: str = "imagenet", attention: Attention | str | None = None, dims: int = 2) -> Staged:
    """Thirteen depthwise separable blocks after one 3x3 convolution, ReLU throughout.

    L = 5: a stage begins at each layer of stride 2.

    Args:
        stem: "imagenet", strides 2, 4, 8, 16, 32, and "small" the same, as there is no pool; "cifar": the first
            convolution has stride 1, strides 1, 2, 4, 8, 16.
        attention: None or "none"; or `channels -> module`, put after the batch norm of every pointwise convolution.
        dims: 3: all kernels cubes, the first stride (1, 2, 2).

    Raises:
        UserError: a setting that has no network.
    """
    if stem not in ("imagenet", "small", "cifar"):
        raise UserError(f"stem={stem}: choose imagenet, small or cifar")
    if dims not in (2, 3):
        raise UserError(f"dims={dims}: choose 2 (images) or 3 (clips)")
    attention = mechanisms.resolve(attention)
    if mechanisms.is_placement(attention):
        name = mechanisms.name_of(attention)
        raise UserError(
            f"attention: {name} is not defined for MobileNet, which takes channels -> module, as SE and CBAM"
        )
    conv = nn.Conv2d(3, 32, 3, stride=1 if stem == "cifar" else 2, padding=1, bias=False)
    parts: OrderedDict[str, nn.Module] = OrderedDict(conv=conv, bn=nn.BatchNorm2d(32), relu=nn.ReLU(inplace=True))
    stages: list[nn.Module] = []
    inputs, number = 32, 0
    for width, count in zip(_WIDTHS, _BLOCKS, strict=True):
        for place in range(count):
            number += 1
            stride = 2 if place == 0 and stages else 1
            parts[f"block{number}"] = _separable(inputs, width, stride, attention, activate=place < count - 1)
            inputs = width
        parts["relu_out"] = nn.ReLU(inplace=True)
        stages.append(nn.Sequential(parts))
        parts = OrderedDict()
    strides = [1, 2, 4, 8, 16] if stem == "cifar" else [2, 4, 8, 16, 32]
    staged = Staged(stages, _WIDTHS, strides)
    if dims == 3:
        inflate(staged, stem=conv)
    return initialise(staged)


def _separable(inputs: int, width: int, stride: int, attention: Attention | None, activate: bool) -> nn.Sequential:
    """Fig. 3 of the publication; without `activate` the last ReLU is left to the stage."""
    parts: OrderedDict[str, nn.Module] = OrderedDict(
        depthwise=nn.Conv2d(inputs, inputs, 3, stride, padding=1, groups=inputs, bias=False),
        bn1=nn.BatchNorm2d(inputs),
        relu1=nn.ReLU(inplace=True),
        pointwise=nn.Conv2d(inputs, width, 1, bias=False),
        bn2=nn.BatchNorm2d(width),
    )
    if attention is not None:
        parts["attention"] = attention(width)
    if activate:
        parts["relu2"] = nn.ReLU(inplace=True)
    return nn.Sequential(parts)
