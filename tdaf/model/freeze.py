"""Parts of a pretrained backbone that stay as they are: its first stages, and its batch norms in every flow."""

from __future__ import annotations

import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional as F

from tdaf.errors import UserError
from tdaf.model.staged import Staged, with_children

MODES = ("frozen", "affine", "trained")


class FrozenBatchNorm2d(torchvision.ops.FrozenBatchNorm2d):
    """torchvision's, whose weight and bias are buffers; maps keep their number format, which torchvision's widens."""

    def forward(self, x: Tensor) -> Tensor:
        if torch.is_grad_enabled() and x.requires_grad:
            # a product and a sum keep no map for backward; batch norm would keep x
            return super().forward(x).to(x.dtype)
        return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps)


# No subclass of nn.BatchNorm2d: whoever asks for batch norm over all ranks must not get these statistics moved.
class FixedBatchNorm2d(nn.Module):
    """Batch norm by the statistics that were loaded, in train mode too; weight and bias train."""

    def __init__(self, num_features: int, eps: float = 1e-5, affine: bool = True) -> None:
        super().__init__()
        self.num_features, self.eps = num_features, eps
        self.weight = nn.Parameter(torch.ones(num_features)) if affine else None
        self.bias = nn.Parameter(torch.zeros(num_features)) if affine else None
        self.register_buffer("running_mean", torch.zeros(num_features))
        self.register_buffer("running_var", torch.ones(num_features))
        self.register_buffer("num_batches_tracked", torch.tensor(0))

    def forward(self, x: Tensor) -> Tensor:
        return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps)


def freeze_stages(body: Staged, count: int) -> None:
    """The parameters of the first `count` stages, the stem among them, no longer train, in any flow.

    Args:
        body: Staged, TDAF or MultiScale.
        count: 1 is FCOS's FREEZE_CONV_BODY_AT: 2 (tianzhi0549/FCOS, fcos_core/modeling/backbone/resnet.py: stem, res2).

    Raises:
        UserError: a count that the body has not.
    """
    if not 0 <= count <= len(body.stages):
        stages = len(body.stages)
        raise UserError(f"frozen_stages={count}: this backbone has {stages} stages, so give 0 to {stages}")
    for stage in list(body.stages)[:count]:
        stage.requires_grad_(False)


def fix_batch_norm(body: Staged, mode: str) -> None:
    """What of the backbone's batch norms trains, in every flow. The gates' are new and always train.

    Names in the state dict stay; norms without running statistics stay as they are.

    Args:
        body: Staged, TDAF or MultiScale.
        mode: "frozen", nothing, and weight and bias are buffers, which no count of parameters sees; "affine", weight
            and bias, with the statistics as loaded; "trained", everything (the body is left alone).

    Raises:
        UserError: any other mode.
    """
    if mode not in MODES:
        raise UserError(f"batch_norm={mode}: give one of {', '.join(MODES)}")
    if mode == "trained":
        return
    for stages in [body.stages, *[flow["stages"] for flow in getattr(body, "earlier", ())]]:
        fixed: dict[nn.Module, nn.Module] = {}
        for parent in list(stages.modules()):
            for name, norm in parent.named_children():
                if isinstance(norm, (nn.BatchNorm2d, nn.SyncBatchNorm)) and norm.running_mean is not None:
                    if norm not in fixed:
                        fixed[norm] = _fixed(norm, mode).train(norm.training)
                    setattr(parent, name, fixed[norm])


def _fixed(norm: nn.Module, mode: str) -> FrozenBatchNorm2d | FixedBatchNorm2d:
    """The same norm without statistics of its batches; weight and bias are the very same Parameters, or buffers."""
    if mode == "frozen":
        fixed = FrozenBatchNorm2d(norm.num_features, norm.eps)
        ones = torch.ones_like(norm.running_mean)
        fixed.weight = ones if norm.weight is None else norm.weight.detach().clone()
        fixed.bias = torch.zeros_like(ones) if norm.bias is None else norm.bias.detach().clone()
    else:
        fixed = FixedBatchNorm2d(norm.num_features, norm.eps, norm.affine)
        fixed.weight, fixed.bias = norm.weight, norm.bias
        fixed.num_batches_tracked = norm.num_batches_tracked
    fixed.running_mean, fixed.running_var = norm.running_mean, norm.running_var
    return with_children(norm, fixed)
