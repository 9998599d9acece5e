"""Parts of a pretrained backbone that stay as they are: its first stages, and its batch norms in every flow."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _NormBase

from tdaf.errors import UserError
from tdaf.model.staged import Staged

MODES = ("frozen", "affine", "trained")


class FrozenBatchNorm2d(torchvision.ops.FrozenBatchNorm2d):
    """torchvision's, whose weight and bias are buffers; maps keep their number format, which torchvision's widens."""

    def forward(self, x: Tensor) -> Tensor:
        if torch.is_grad_enabled() and x.requires_grad:
            # a product and a sum keep no map for backward; batch norm would keep x
            return super().forward(x).to(x.dtype)
        return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps)


# Not nn.BatchNorm2d: whoever asks for batch norm over all ranks must not get these statistics moved.
class FixedBatchNorm2d(_NormBase):
    """Batch norm by the statistics that were loaded, in train mode too; weight and bias train."""

    def forward(self, x: Tensor) -> Tensor:
        return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps)


def freeze_stages(body: Staged, count: int) -> None:
    """The parameters of the first `count` stages, the stem among them, no longer train, in any flow.

    body: Staged, TDAF or MultiScale. 1 is FCOS's FREEZE_CONV_BODY_AT: 2 (tianzhi0549/FCOS,
    fcos_core/modeling/backbone/resnet.py: stem and res2). Raises UserError for a count that the body has not.
    """
    if not 0 <= count <= len(body.stages):
        stages = len(body.stages)
        raise UserError(f"frozen_stages={count}: this backbone has {stages} stages, so give 0 to {stages}")
    for stage in list(body.stages)[:count]:
        stage.requires_grad_(False)


def fix_batch_norm(body: Staged, mode: str) -> None:
    """What of the backbone's batch norms trains, in every flow. The gates' are new and always train.

    mode: "frozen", nothing, and weight and bias are buffers, which no count of parameters sees; "affine", weight and
    bias, with the statistics as loaded; "trained", everything (the body is left alone). Names in the state dict stay.
    body: Staged, TDAF or MultiScale. Norms without running statistics stay as they are. Raises UserError for any other
    mode.
    """
    if mode not in MODES:
        raise UserError(f"batch_norm={mode}: give one of {', '.join(MODES)}")
    if mode == "trained":
        return
    for stages in _flows(body):
        _replace(stages, _frozen if mode == "frozen" else _fixed)


def _flows(body: nn.Module) -> Iterator[nn.ModuleList]:
    yield body.stages
    for flow in getattr(body, "earlier", ()):
        yield flow["stages"]


def _replace(stages: nn.ModuleList, made: Callable[[nn.Module], nn.Module]) -> None:
    new: dict[nn.Module, nn.Module] = {}
    for parent in list(stages.modules()):
        for name, child in parent.named_children():
            if isinstance(child, (nn.BatchNorm2d, nn.SyncBatchNorm)) and child.running_mean is not None:
                if child not in new:
                    new[child] = made(child).train(child.training)
                setattr(parent, name, new[child])


def _frozen(norm: nn.Module) -> FrozenBatchNorm2d:
    frozen = FrozenBatchNorm2d(norm.num_features, norm.eps)
    ones = torch.ones_like(norm.running_mean)
    frozen.weight = ones if norm.weight is None else norm.weight.detach().clone()
    frozen.bias = torch.zeros_like(ones) if norm.bias is None else norm.bias.detach().clone()
    frozen.running_mean, frozen.running_var = norm.running_mean, norm.running_var
    return frozen


def _fixed(norm: nn.Module) -> FixedBatchNorm2d:
    fixed = FixedBatchNorm2d(norm.num_features, norm.eps, norm.momentum, norm.affine)
    # the very same Parameters, which the flows share
    fixed.weight, fixed.bias = norm.weight, norm.bias
    fixed.running_mean, fixed.running_var = norm.running_mean, norm.running_var
    fixed.num_batches_tracked = norm.num_batches_tracked
    return fixed
