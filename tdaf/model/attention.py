"""Attention mechanisms that sit at one place of a backbone: the end of a residual branch, or a pointwise convolution.

The paper's Table 3b treats a backbone with such a mechanism as a backbone of its own, to which TDAF is added.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from tdaf.errors import UserError

REDUCTION = 16  # the ratio of both publications


def attention(name: str, channels: int) -> nn.Module | None:
    """The mechanism `name` for a map of `channels`; it keeps the map's shape. None for "none".

    Built for images; `inflate` makes it one for clips. Raises UserError for a name that is not known.
    """
    if name == "none":
        return None
    if name not in _MECHANISMS:
        known = ", ".join(["none", *_MECHANISMS])
        raise UserError(f"attention={name}: not defined for this backbone, which has {known}")
    return _MECHANISMS[name](channels)


def squeeze_excitation(channels: int) -> nn.Module:
    """SE (Hu et al. 2018, Eqs. 2-4), both layers with bias; torchvision's module."""
    from torchvision.ops import SqueezeExcitation  # torchvision takes as long to import as torch

    return SqueezeExcitation(channels, max(1, channels // REDUCTION))


class CBAM(nn.Module):
    """Convolutional block attention (Woo et al. 2018): channels first (Eq. 2), then places (Eq. 3).

    (B, C, [T,] H, W) -> the same shape. The batch norm of the spatial mask, its momentum and its start at weight 0
    (the mask is 1/2 everywhere) are not in the paper's text but in the authors' code
    (Jongchan/attention-module, MODELS/cbam.py and model_resnet.py).
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        hidden = max(1, channels // REDUCTION)
        self.mlp = nn.Sequential(nn.Conv2d(channels, hidden, 1), nn.ReLU(inplace=True), nn.Conv2d(hidden, channels, 1))
        self.spatial = nn.Conv2d(2, 1, 7, padding=3, bias=False)
        self.norm = nn.BatchNorm2d(1, momentum=0.01)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.zeros_(self.norm.weight)

    def forward(self, x: Tensor) -> Tensor:
        places = tuple(range(2, x.ndim))
        x = x * torch.sigmoid(self.mlp(x.mean(places, keepdim=True)) + self.mlp(x.amax(places, keepdim=True)))
        summary = torch.cat([x.amax(1, keepdim=True), x.mean(1, keepdim=True)], dim=1)
        return x * torch.sigmoid(self.norm(self.spatial(summary)))


_MECHANISMS: dict[str, Callable[[int], nn.Module]] = {"se": squeeze_excitation, "cbam": CBAM}
