"""Stages that can be called with a gate (Eq. 3), and the fusion of a gate with the stage's last ReLU."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tdaf.errors import UserError

Gate = Callable[[Tensor], Tensor]  # a stage's map (B, C, *size) -> the factor (B, 1 or C, *size) it is multiplied by


class GatedSequential(nn.Sequential):
    """A stage whose call may include its gate; where it ends in a plain nn.ReLU, the two are one operation."""

    def forward(self, x: Tensor, gate: Gate | None = None) -> Tensor:
        """x (B, C, *size) -> the stage's map, times gate(map)."""
        if gate is None:
            return super().forward(x)
        *layers, last = self
        if type(last) is not nn.ReLU or not layers:
            h = super().forward(x)
            return h * gate(h)
        for layer in layers:
            x = layer(x)
        return relu_gate(x, gate(x), last.inplace)


class ThresholdSequential(GatedSequential):
    """A stage whose gate, less 1, is added to what its last ReLU reads."""

    def forward(self, x: Tensor, gate: Gate | None = None) -> Tensor:
        """x (B, C, *size) -> relu(z + gate(z) - 1)."""
        if gate is None:
            return nn.Sequential.forward(self, x)
        for layer in [*self][:-1]:
            x = layer(x)
        return F.relu(x + (gate(x) - 1), inplace=True)


class GatedModule:
    """The same for a stage of a class of its own; `take_gate` puts it in front of that class."""

    def forward(self, x: Tensor, gate: Gate | None = None) -> Tensor:
        h = super().forward(x)
        return h if gate is None else h * gate(h)

    def __reduce_ex__(self, protocol: int) -> tuple[Any, ...]:
        return _new_gated, (type(self).__mro__[2],), self.__dict__  # pickle finds no class that was made at run time


def take_gate(stage: nn.Module, preactivation: bool = False) -> None:
    """Lets the stage be called with a gate, so that its hooks see the gated map. It keeps its names, hooks and type."""
    sequential = type(stage) in (nn.Sequential, GatedSequential, ThresholdSequential)
    if preactivation:
        if not sequential or len(stage) < 2 or type(stage[-1]) is not nn.ReLU:
            raise UserError(
                "preactivation=true needs stages that end in an nn.ReLU, as ResNet's; this backbone's do not"
            )
        stage.__class__ = ThresholdSequential
    elif sequential:
        stage.__class__ = GatedSequential
    elif not isinstance(stage, (GatedSequential, GatedModule)):
        stage.__class__ = _gated_class(type(stage))


@functools.cache
def _gated_class(kind: type[nn.Module]) -> type[nn.Module]:
    return type(f"Gated{kind.__name__}", (GatedModule, kind), {"__module__": kind.__module__})


def _new_gated(kind: type[nn.Module]) -> nn.Module:
    return object.__new__(_gated_class(kind))


def relu_gate(h: Tensor, m: Tensor, inplace: bool = False) -> Tensor:
    """relu(h) * m, storing for backward no map but the result. h (B, C, *size), m (B, 1 or C, *size) >= 0, one dtype.

    inplace writes into h, as nn.ReLU(inplace=True) does. Where m is 0 its gradient is taken as 0: a mask that
    comes from a sigmoid is 0 only where the sigmoid is flat.
    """
    # A compiler plans memory itself, and does not follow every function that writes into its input.
    inplace = inplace and not torch.compiler.is_compiling()
    if torch.is_grad_enabled() and (h.requires_grad or m.requires_grad):
        return _ReluGate.apply(h, m, inplace)
    return (h.relu_() if inplace else h.relu()).mul_(m)


class _ReluGate(torch.autograd.Function):
    @staticmethod
    def forward(ctx, h: Tensor, m: Tensor, inplace: bool) -> Tensor:
        y = (h.relu_() if inplace else h.relu()).mul_(m)
        if inplace:
            ctx.mark_dirty(h)
        ctx.save_for_backward(y, m)
        return y

    @staticmethod
    def backward(ctx, grad_y: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        y, m = ctx.saved_tensors
        grad_h = grad_m = product = None
        if ctx.needs_input_grad[1]:
            # relu(h) is y / m, so h itself need not be kept. Half precision sums over channels in float32.
            wide = torch.promote_types(y.dtype, torch.float32)
            product = grad_y * y
            total = product if m.shape == y.shape else product.sum(1, keepdim=True, dtype=wide)
            grad_m = torch.where(m > 0, total / m, 0).to(m.dtype)
        if ctx.needs_input_grad[0]:
            aten = torch.ops.aten
            if product is None or torch.compiler.is_compiling():
                grad_h = aten.threshold_backward(grad_y * m, y, 0)
            else:  # into the same memory: new memory for a map is as dear as its arithmetic
                torch.mul(grad_y, m, out=product)
                grad_h = aten.threshold_backward.grad_input(product, y, 0, grad_input=product)
        return grad_h, grad_m, None
