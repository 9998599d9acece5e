"""From images to clips: a 2D network becomes a 3D one (I3D, Carreira and Zisserman 2017, Sec. 2.4)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tdaf.errors import UserError
from tdaf.model.staged import Staged

_POOLS = {nn.MaxPool2d: nn.MaxPool3d, nn.AvgPool2d: nn.AvgPool3d}
_ADAPTIVE = {nn.AdaptiveAvgPool2d: nn.AdaptiveAvgPool3d, nn.AdaptiveMaxPool2d: nn.AdaptiveMaxPool3d}
_DROPOUTS = {nn.Dropout2d: nn.Dropout3d}


def inflate(staged: Staged, stem: nn.Module | None = None) -> Staged:
    """A 2D network made 3D: every 2D layer replaced by its 3D twin.

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
    _inflate_children(staged.stages, stem)
    staged.dims = 3
    return staged


def inflate_weight(weight: Tensor, shape: tuple[int, ...]) -> Tensor:
    """A kernel (out, in, h, w) repeated over the t cells of `shape` (out, in, t, h, w) and divided by t."""
    return (weight / shape[2]).unsqueeze(2).expand(*shape).contiguous()


def _inflate_children(module: nn.Module, stem: nn.Module | None) -> None:
    for name, child in module.named_children():
        twin = _twin(child, child is stem)
        if twin is None:
            _inflate_children(child, stem)
        else:
            setattr(module, name, twin.train(child.training))


def _twin(layer: nn.Module, spare_time: bool) -> nn.Module | None:
    """The 3D layer for a 2D one; None for a layer that is the same in both."""
    kind = type(layer)
    if kind is nn.Conv2d:
        return _convolution(layer, spare_time)
    if kind is nn.BatchNorm2d:
        return _batch_norm(layer)
    if kind in _POOLS:
        return _pool(layer, spare_time)
    if kind in _ADAPTIVE:
        return _ADAPTIVE[kind](_cube(layer.output_size))
    if kind in _DROPOUTS:
        return _DROPOUTS[kind](layer.p, layer.inplace)
    if "2d" in kind.__name__:
        raise UserError(f"dims=3: {kind.__name__}, of the backbone or its attention, is for images and has no 3D twin")
    return None


def _cube(size: int | tuple[int, ...], time: int | None = None) -> tuple[int, ...]:
    """(k, k, k) for k or (k, k'); `time` replaces the first."""
    height, width = (size, size) if isinstance(size, int) else size
    return (height if time is None else time, height, width)


def _convolution(layer: nn.Conv2d, spare_time: bool) -> nn.Conv3d:
    padding = layer.padding if isinstance(layer.padding, str) else _cube(layer.padding)
    twin = nn.Conv3d(
        layer.in_channels,
        layer.out_channels,
        _cube(layer.kernel_size),
        stride=_cube(layer.stride, 1 if spare_time else None),
        padding=padding,
        dilation=_cube(layer.dilation),
        groups=layer.groups,
        bias=layer.bias is not None,
        padding_mode=layer.padding_mode,
        device="meta",  # its own start is never used
    )
    with torch.no_grad():
        weight = inflate_weight(layer.weight, tuple(twin.weight.shape))
    twin.weight = nn.Parameter(weight, requires_grad=layer.weight.requires_grad)
    twin.bias = layer.bias
    return twin


def _batch_norm(layer: nn.BatchNorm2d) -> nn.BatchNorm3d:
    twin = nn.BatchNorm3d(layer.num_features, layer.eps, layer.momentum, layer.affine, layer.track_running_stats)
    for name in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked"):
        setattr(twin, name, getattr(layer, name))
    return twin


def _pool(layer: nn.MaxPool2d | nn.AvgPool2d, spare_time: bool) -> nn.Module:
    kernel, stride, padding = layer.kernel_size, layer.stride, layer.padding
    settings = {"ceil_mode": layer.ceil_mode}
    if isinstance(layer, nn.AvgPool2d):
        settings |= {"count_include_pad": layer.count_include_pad, "divisor_override": layer.divisor_override}
    else:
        settings |= {"dilation": layer.dilation if isinstance(layer.dilation, int) else _cube(layer.dilation)}
    one, zero = (1, 0) if spare_time else (None, None)
    return _POOLS[type(layer)](_cube(kernel, one), _cube(stride, one), _cube(padding, zero), **settings)
