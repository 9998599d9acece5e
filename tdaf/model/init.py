"""How everything new starts (paper, Sec. 4: Kaiming initialisation)."""

from __future__ import annotations

import math

from torch import nn

_CONVOLUTIONS = (nn.Conv2d, nn.Conv3d, nn.ConvTranspose2d, nn.ConvTranspose3d)


def initialise(module: nn.Module) -> nn.Module:
    """The module itself, with every parameter drawn again.

    Convolutions and deconvolutions: normal, standard deviation sqrt(2 / fan_out), fan_out = output channels x kernel
    cells with groups not counted (He et al. 2015; torchvision's ResNet and MobileNet v2 count alike), bias 0. Batch
    norm: weight 1, bias 0, fresh statistics. Linear layers: N(0, 0.01), bias 0 (torchvision's VGG; sqrt(2 / fan_out)
    would be 0.45 for ten classes, which starts with saturated logits). A module with a `reset_parameters` of its own
    has the last word over its parts.
    """
    for part in reversed(list(module.modules())):
        if isinstance(part, _CONVOLUTIONS):
            nn.init.normal_(part.weight, 0, math.sqrt(2 / (part.out_channels * math.prod(part.kernel_size))))
        elif isinstance(part, nn.Linear):
            nn.init.normal_(part.weight, 0, 0.01)
        elif hasattr(part, "reset_parameters"):
            part.reset_parameters()
            continue
        else:
            continue
        if part.bias is not None:
            nn.init.zeros_(part.bias)
    return module
