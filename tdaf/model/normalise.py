"""Pixels as they are stored to what a network was trained on, on the device."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Normalise(nn.Module):
    """Pixels 0..255, uint8 or float, (B, 3, ...) to (pixel / 255 - mean) / std a colour, in the module's own precision.

    mean, std: in units of 0..1. Holds no parameter and adds nothing to the state dict.
    """

    def __init__(self, mean: list[float], std: list[float], dims: int = 2) -> None:
        super().__init__()
        shape = (1, len(mean)) + (1,) * dims
        mean_, std_ = torch.tensor(mean, device="cpu"), torch.tensor(std, device="cpu")
        self.register_buffer("factor", (1 / (255 * std_)).view(shape), persistent=False)
        self.register_buffer("offset", (-mean_ / std_).view(shape), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return torch.addcmul(self.offset, x.to(self.factor.dtype), self.factor)
