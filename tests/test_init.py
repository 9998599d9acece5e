"""How new parameters start."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from tdaf.model.staged import initialise


def test_initialise_is_kaiming_fan_out():
    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.BatchNorm2d(4)

        def reset_parameters(self) -> None:
            nn.init.zeros_(self.norm.weight)

    conv, deconv = nn.Conv2d(64, 128, 3, groups=2), nn.ConvTranspose2d(256, 64, 4)
    linear, norm, own = nn.Linear(2000, 10), nn.BatchNorm2d(8), Own()
    for module in (conv, deconv, linear, norm, own.norm):
        for parameter in module.parameters():
            nn.init.constant_(parameter, 5)
    norm.running_var.fill_(9)
    torch.manual_seed(0)
    initialise(nn.Sequential(conv, nn.Sequential(deconv), linear, norm, own))
    assert conv.weight.std().item() == pytest.approx((2 / (128 * 9)) ** 0.5, rel=0.02)
    assert deconv.weight.std().item() == pytest.approx((2 / (64 * 16)) ** 0.5, rel=0.02)
    assert linear.weight.std().item() == pytest.approx(0.01, rel=0.02)
    assert not any(layer.bias.any() for layer in (conv, deconv, linear, norm))
    assert torch.equal(norm.weight, torch.ones(8)) and torch.equal(norm.running_var, torch.ones(8))
    assert not own.norm.weight.any()
