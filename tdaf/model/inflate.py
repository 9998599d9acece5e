"""From images to clips: a 2D network becomes a 3D one (I3D, Carreira and Zisserman 2017, Sec. 2.4)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tdaf.errors import UserError
from tdaf.model.staged import Staged

_KINDS = ("Conv", "BatchNorm", "MaxPool", "AvgPool", "AdaptiveAvgPool", "AdaptiveMaxPool", "Dropout")
_TWINS = {getattr(nn, f"{kind}2d"): getattr(nn, f"{kind}3d") for kind in _KINDS}
_BY_AXIS = ("kernel_size", "stride", "padding", "output_padding", "dilation", "output_size")


def inflate(staged: Staged, stem: nn.Module | None = None) -> Staged:
    """A 2D network made 3D: every 2D layer becomes its 3D twin.

    A kernel k becomes (k, k, k) with the 2D weights repeated over time and divided by k, so that a still clip gives the
    image's maps away from the clip's ends; a stride s becomes (s, s, s); batch norm keeps its affine and statistics.

    Args:
        staged: changed in place.
        stem: the one convolution or pool whose stride spares time: conv1 7x7x7 with stride (1, 2, 2) in Hara et al.
            2018, pool1 1x2x2 in Tran et al. 2015 (C3D).

    Returns:
        `staged`, with `dims` 3.

    Raises:
        UserError: a module whose class says "2d" and has no known twin.
    """
    for layer in staged.stages.modules():
        kind = type(layer).__name__
        if type(layer) in _TWINS:
            _inflate(layer, spare_time=layer is stem)
        elif "2d" in kind:
            raise UserError(f"dims=3: {kind}, of the backbone or its attention, is for images and has no 3D twin")
    staged.dims = 3
    return staged


def inflate_weight(weight: Tensor, shape: tuple[int, ...]) -> Tensor:
    """A kernel (out, in, h, w) repeated over the t cells of `shape` (out, in, t, h, w) and divided by t."""
    return (weight / shape[2]).unsqueeze(2).expand(*shape).contiguous()


def _inflate(layer: nn.Module, spare_time: bool) -> None:
    # a layer and its twin have the same attributes and tensors, but for the numbers by axis and the kernel
    layer.__class__ = _TWINS[type(layer)]
    spared = {"stride": 1} if isinstance(layer, nn.Conv3d) else {"kernel_size": 1, "stride": 1, "padding": 0}
    for name in _BY_AXIS:
        value = getattr(layer, name, "")
        if not isinstance(value, str):  # of padding: "same"
            height, width = (value, value) if isinstance(value, int) else value
            setattr(layer, name, (spared.get(name, height) if spare_time else height, height, width))
    if isinstance(layer, nn.Conv3d):
        layer._reversed_padding_repeated_twice += layer._reversed_padding_repeated_twice[-2:]
        with torch.no_grad():
            weight = inflate_weight(layer.weight, (*layer.weight.shape[:2], *layer.kernel_size))
        layer.weight = nn.Parameter(weight, requires_grad=layer.weight.requires_grad)
