"""attention_maps gives the masks of Eq. 5."""

from __future__ import annotations

import copy

import pytest
import torch
from literal import assert_near, literal
from tiny import tiny
from torch import nn

from tdaf.model.flows import TDAF
from tdaf.model.maps import attention_maps

torch.set_num_threads(1)


@pytest.mark.parametrize("norm", ["mfbn", "shared"])
def test_attention_maps_are_the_masks(norm):
    torch.manual_seed(0)
    plain = tiny()
    tdaf = TDAF(copy.deepcopy(plain), flows=3, gated=[1, 3], anar_width=64, norm=norm).train()
    network = nn.Sequential(tdaf)
    before = copy.deepcopy(tdaf.state_dict())
    x = torch.randn(2, 3, 43, 37)
    found = attention_maps(network, x)
    for key, value in tdaf.state_dict().items():
        assert torch.equal(value, before[key])
    assert tdaf.training and tdaf.stages[0].training
    _, masks, _ = literal(plain.eval(), tdaf.eval(), x, 3, "area", [1, 3], 0.5, norm == "mfbn")
    assert list(found) == sorted(masks) == [(2, 1), (3, 1), (3, 3)]
    for key, mask in masks.items():
        assert mask.shape[1] == 1
        assert_near(found[key], mask, 1e-5)
    assert attention_maps(tiny(), x) == {}
    with pytest.raises(ValueError, match="has 2"):
        attention_maps(nn.Sequential(tdaf, TDAF(tiny())), x)
