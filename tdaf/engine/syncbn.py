"""Batch norm over all ranks: torch's SyncBatchNorm on GPUs, and the same thing for CPU ranks, which torch lacks."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as td
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim.swa_utils import AveragedModel


class _Sum(torch.autograd.Function):
    """The sum over all ranks; so is its gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        total = x.clone()
        td.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        total = gradient.clone()
        td.all_reduce(total)
        return total


class _CpuSyncBatchNorm(_BatchNorm):
    """Statistics of the batches of all gloo ranks (they may differ in size), differentiable through the all-reduce."""

    def _check_input_dim(self, input: Tensor) -> None:
        if input.dim() < 2:
            raise ValueError(f"expected at least a 2D input, got {input.dim()}D")

    def forward(self, input: Tensor) -> Tensor:
        if not self.training or td.get_world_size() == 1:
            return super().forward(input)
        axes, channels = [0, *range(2, input.dim())], input.shape[1]
        shape = [1, channels] + [1] * (input.dim() - 2)
        x = input.float() if input.dtype in (torch.bfloat16, torch.float16) else input
        sums = _Sum.apply(torch.cat([x.sum(axes), x.new_tensor([x.numel() / channels])]))
        mean, count = sums[:-1] / sums[-1], sums[-1]
        # a second exchange: the mean of squares minus the squared mean would lose the digits that SyncBatchNorm keeps
        variance = _Sum.apply((x - mean.view(shape)).square().sum(axes)) / count
        if self.track_running_stats:
            with torch.no_grad():
                self.num_batches_tracked.add_(1)
                self.running_mean.lerp_(mean, self.momentum)
                self.running_var.lerp_(variance * count / (count - 1).clamp_min(1), self.momentum)
        scale = self.weight * torch.rsqrt(variance + self.eps)
        return ((x - mean.view(shape)) * scale.view(shape) + self.bias.view(shape)).to(input.dtype)


def synchronise(network: nn.Module, device: torch.device) -> nn.Module:
    """The network with every batch norm's statistics taken over all ranks; parameters, buffers are the same objects."""
    if device.type == "cuda":
        return nn.SyncBatchNorm.convert_sync_batchnorm(network)
    for module in network.modules():
        if isinstance(module, _BatchNorm):
            module.__class__ = _CpuSyncBatchNorm
    return network


@torch.no_grad()
def agree(network: nn.Module, averaged: AveragedModel | None) -> None:
    """Gives all ranks the mean of their running statistics, so that each evaluates, and saves, the same network.

    averaged: the EMA of the network, whose statistics are the network's own.
    """
    if not td.is_initialized() or td.get_world_size() == 1:
        return
    for buffer in network.buffers():
        if buffer.is_floating_point():
            td.all_reduce(buffer, op=td.ReduceOp.SUM)
            buffer /= td.get_world_size()
    if averaged is not None:
        for theirs, own in zip(averaged.module.buffers(), network.buffers(), strict=True):
            theirs.copy_(own)
