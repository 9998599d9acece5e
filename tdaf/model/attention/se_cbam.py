"""Attention at the end of each branch: squeeze-and-excitation (Hu et al. 2018) and CBAM (Woo et al. 2018)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

REDUCTION = 16  # Hu et al., Sec. 6.1; Woo et al., Sec. 4.1


def squeeze_excitation(channels: int, reduction: int = REDUCTION) -> nn.Module:
    """SE (Hu et al. 2018, Eqs. 2-4) for a map of `channels`, both layers with bias; torchvision's module."""
    from torchvision.ops import SqueezeExcitation  # torchvision takes as long to import as torch

    return SqueezeExcitation(channels, max(1, channels // reduction))


class CBAM(nn.Module):
    """Convolutional block attention (Woo et al. 2018): channels first (Eq. 2), then places (Eq. 3).

    (B, C, [T,] H, W) -> the same shape. The batch norm of the spatial mask, its momentum and its start at weight 0
    (the mask is 1/2 everywhere) are not in the paper's text but in the authors' code
    (Jongchan/attention-module, MODELS/cbam.py and model_resnet.py).
    """

    def __init__(self, channels: int, reduction: int = REDUCTION) -> None:
        super().__init__()
        hidden = max(1, channels // reduction)
        self.mlp = nn.Sequential(nn.Conv2d(channels, hidden, 1), nn.ReLU(inplace=True), nn.Conv2d(hidden, channels, 1))
        self.spatial = nn.Conv2d(2, 1, 7, padding=3, bias=False)
        self.norm = nn.BatchNorm2d(1, momentum=0.01)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.zeros_(self.norm.weight)

    def forward(self, x: Tensor) -> Tensor:
        # The layers know whether they have been inflated. Asking x would hide them from torch.fx, which folds norms.
        places = tuple(range(2, 2 + len(self.spatial.kernel_size)))
        x = x * torch.sigmoid(self.mlp(x.mean(places, keepdim=True)) + self.mlp(x.amax(places, keepdim=True)))
        summary = torch.cat([x.amax(1, keepdim=True), x.mean(1, keepdim=True)], dim=1)
        return x * torch.sigmoid(self.norm(self.spatial(summary)))
