"""Squeeze-and-excitation (Hu et al. 2018)."""

from __future__ import annotations

from torch import nn

REDUCTION = 16  # the publication's default, Sec. 6.1


def squeeze_excitation(channels: int) -> nn.Module:
    """SE (Hu et al. 2018, Eqs. 2-4) for a map of `channels`, both layers with bias; torchvision's module."""
    from torchvision.ops import SqueezeExcitation  # torchvision takes as long to import as torch

    return SqueezeExcitation(channels, max(1, channels // REDUCTION))
