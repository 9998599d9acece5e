"""Parts of a pretrained backbone that stay as they are: its first stages, and its batch norms in every flow."""

from __future__ import annotations

import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional as F

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


# No subclass of nn.BatchNorm2d: whoever asks for batch norm over all ranks must not get these statistics moved.
class FixedBatchNorm2d(nn.Module):
    """What `fix_batch_norm` makes of a batch norm: by the statistics that were loaded, in train mode too; weight and
    bias train."""

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
        for norm in stages.modules():
            if isinstance(norm, (nn.BatchNorm2d, nn.SyncBatchNorm)) and norm.running_mean is not None:
                _fix(norm, mode)


def _fix(norm: nn.Module, mode: str) -> None:
    # the attributes and tensors that these classes need are those of a batch norm
    if mode == "affine":
        norm.__class__ = FixedBatchNorm2d
        return
    norm.__class__ = FrozenBatchNorm2d
    mean, variance, ones = norm.running_mean, norm.running_var, torch.ones_like(norm.running_mean)
    affine = {"weight": ones, "bias": torch.zeros_like(ones)}
    affine |= {name: own.detach().clone() for name in affine if (own := norm._parameters.pop(name)) is not None}
    norm._buffers.clear()
    for name, value in {**affine, "running_mean": mean, "running_var": variance}.items():
        norm.register_buffer(name, value)
