"""The gate of a stage (paper, Eq. 5): x = h[x] * (g + eta), with the stage's last ReLU fused where it ends in one."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def ends_in_relu(stage: nn.Module) -> bool:
    """Whether the stage is a Sequential whose last child is a plain nn.ReLU, which the gate can then take over."""
    return isinstance(stage, nn.Sequential) and len(stage) > 1 and type(stage[-1]) is nn.ReLU


def gated(stage: nn.Module, gate: nn.Module, x: Tensor, above: Tensor, eta: float) -> Tensor:
    """h_l[x] * (g_l[above] + eta).

    x (B, C, *size) the stage's input, above (B, A, *smaller) the previous flow's map of the same stage.
    """
    if not ends_in_relu(stage):
        h = stage(x)
        return h * _mask(gate, above, h, eta)
    *layers, relu = stage
    for layer in layers:
        x = layer(x)
    return relu_gate(x, _mask(gate, above, x, eta), relu.inplace)


def relu_gate(h: Tensor, m: Tensor, inplace: bool = False) -> Tensor:
    """relu(h) * m, storing for backward no map but the result. h (B, C, *size), m (B, 1, *size) >= 0, of one dtype.

    inplace writes into h, as nn.ReLU(inplace=True) does. Where m is 0 its gradient is taken as 0: a mask that
    comes from a sigmoid is 0 only where the sigmoid is flat.
    """
    # A compiler plans memory itself, and does not follow every function that writes into its input.
    inplace = inplace and not torch.compiler.is_compiling()
    if torch.is_grad_enabled() and (h.requires_grad or m.requires_grad):
        return _ReluGate.apply(h, m, inplace)
    return (h.relu_() if inplace else h.relu()).mul_(m)


def _mask(gate: nn.Module, above: Tensor, h: Tensor, eta: float) -> Tensor:
    # A deconvolution doubles a map whose size was rounded up: what lies beyond half of h is of no cell of h, and would
    # squeeze the mask. Elsewhere every size is half of the next flow's, rounded up, and nothing is cut.
    above = above[(..., *(slice(-(-size // 2)) for size in h.shape[2:]))]
    return gate(above, h.shape[2:]).to(h.dtype) + eta


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
        grad_h = grad_m = None
        if ctx.needs_input_grad[1]:
            # relu(h) is y / m, so h itself need not be kept. Half precision sums over channels in float32.
            wide = torch.promote_types(y.dtype, torch.float32)
            total = (grad_y * y).sum(1, keepdim=True, dtype=wide)
            grad_m = torch.where(m > 0, total / m, 0).to(m.dtype)
        if ctx.needs_input_grad[0]:
            grad_h = torch.ops.aten.threshold_backward(grad_y * m, y, 0)
        return grad_h, grad_m, None
