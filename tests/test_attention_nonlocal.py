"""Non-local, double attention and CGNL blocks: their equations place by place, counts, places."""

from __future__ import annotations

import math

import pytest
import torch
from mechanisms import cells, count, drawn, gigas, mechanism, normed, on_meta, places
from torch import Tensor

from tdaf.model.attention.nonlocal_blocks import CGNL, DoubleAttention, NonLocal
from tdaf.model.backbones.resnet import resnet

torch.set_num_threads(1)

RES50, RES152 = 25_557_032, 60_192_808
BLOCKS = {"nonlocal": NonLocal, "a2": DoubleAttention, "cgnl": CGNL}


def nonlocal_(x: Tensor, state: dict[str, Tensor]) -> Tensor:
    """Wang et al. 2018, Eqs. 1, 4 and 6, one pair of places at a time; the pool of Sec. 3.3 one window at a time."""
    theta, phi, g, w = (state[f"{name}.weight"].flatten(1) for name in ("theta", "phi", "g", "w"))
    z = torch.empty_like(x)
    for b in range(len(x)):
        pooled = []
        for *frame, i, j in cells(x):
            if i % 2 == 0 and j % 2 == 0:
                window = x[(b, slice(None), *frame)][:, i : i + 2, j : j + 2]
                pooled.append(window.flatten(1).max(1).values)
        for place in cells(x):
            at = x[(b, slice(None), *place)]
            f = [math.exp((theta @ at) @ (phi @ other) / math.sqrt(len(theta))) for other in pooled]
            y = sum(weight * (g @ other) for weight, other in zip(f, pooled, strict=True)) / sum(f)
            z[(b, slice(None), *place)] = normed(w @ y, state) + at
    return z


def double_attention(x: Tensor, state: dict[str, Tensor]) -> Tensor:
    """Chen et al. 2018, Eqs. 4 and 5, one descriptor and one place at a time, then the last convolution and the sum."""
    phi, theta, rho, expand = (state[f"{name}.weight"].flatten(1) for name in ("phi", "theta", "rho", "expand"))
    out = torch.empty_like(x)
    for b in range(len(x)):
        at = {place: x[(b, slice(None), *place)] for place in cells(x)}
        descriptors = []
        for row in theta:
            weights = {place: math.exp(row @ a) for place, a in at.items()}
            total = sum(weights[place] * (phi @ a) for place, a in at.items())
            descriptors.append(total / sum(weights.values()))
        for place, a in at.items():
            vector = [math.exp(row @ a) for row in rho]
            z = sum(v * descriptor for v, descriptor in zip(vector, descriptors, strict=True)) / sum(vector)
            out[(b, slice(None), *place)] = normed(expand @ z, state) + a
    return out


def cgnl(x: Tensor, state: dict[str, Tensor]) -> Tensor:
    """Yue et al. 2018: the full affinity matrix of a group's C' N values, which the block never builds, times g."""
    theta, phi, g = (state[f"{name}.weight"].flatten(1) for name in ("theta", "phi", "g"))
    inner, outer = len(theta) // 8, x.shape[1] // 8
    out = torch.empty_like(x)
    for b in range(len(x)):
        values = x[b].flatten(1)
        for group in range(8):
            rows = slice(group * inner, (group + 1) * inner)
            affinity = torch.outer((theta[rows] @ values).flatten(), (phi[rows] @ values).flatten())
            y = (affinity @ (g[rows] @ values).flatten()).reshape(inner, -1)
            channels = slice(group * outer, (group + 1) * outer)
            z = state["z.weight"].flatten(1)[channels] @ y
            z = (z - z.mean()) / (z.var(unbiased=False) + 1e-5).sqrt()
            added = z * state["norm.weight"][channels, None] + state["norm.bias"][channels, None]
            out[b, channels] = x[b, channels] + added.reshape(outer, *x.shape[2:])
    return out


@torch.no_grad()
@pytest.mark.parametrize("size", [(5, 6), (1, 1), (2, 3, 4)])
@pytest.mark.parametrize(
    ("kind", "literal", "channels"),
    [(NonLocal, nonlocal_, 8), (DoubleAttention, double_attention, 8), (CGNL, cgnl, 32)],
)
def test_a_block_is_the_literal_transcription(kind, literal, channels, size) -> None:
    torch.manual_seed(0)
    block, x = drawn(kind(channels), channels, len(size)), torch.randn(2, channels, *size)
    torch.testing.assert_close(block(x), literal(x, block.state_dict()), rtol=1e-4, atol=1e-4)
    if size == (5, 6):  # what is added is not the same everywhere
        assert (block(x) - x).std((2, 3)).min() > 0.01


def test_parameters_and_flops_are_those_of_the_definitions() -> None:
    plain = on_meta()
    parameters = {name: count(on_meta(50, name)) - count(plain) for name in BLOCKS}
    flops = {name: gigas(on_meta(50, name)) - gigas(plain) for name in BLOCKS}
    res3, res4 = 4 * 512 * 256 + 2 * 512, 4 * 1024 * 512 + 2 * 1024
    weights = 3 * 1024 * 512 + 1024 * 512 // 8
    five = 2 * res3 + 3 * res4
    assert parameters == {"nonlocal": five, "a2": five, "cgnl": weights + 2 * 1024}
    assert parameters == {"nonlocal": 7_348_224, "a2": 7_348_224, "cgnl": 1_640_448}
    # a block in res4 has as many operations: 4 times the weights, a quarter of the places
    full, quarter = 2 * 512 * 256 * 28**2, 2 * 512 * 256 * 14**2
    pairs = 2 * 2 * 256 * 28**2 * 14**2 + 3 * 2 * 512 * 14**2 * 7**2
    products = 2 * 2 * 256**2 * 28**2 + 3 * 2 * 512**2 * 14**2
    assert flops["nonlocal"] == pytest.approx((5 * (full + quarter) + pairs) / 1e9, rel=1e-6)
    assert flops["a2"] == pytest.approx((5 * 2 * full + products) / 1e9, rel=1e-6)
    assert flops["cgnl"] == pytest.approx(weights * 14**2 / 1e9, rel=1e-6)
    # of ResNet-50's 4.1 and ResNeXt-101's 16.5 GFLOPs; TDAF's Table 3b has 12.5% and 9.9%, and +58.5% for A2
    assert flops["nonlocal"] / 4.1 == pytest.approx(0.36, abs=0.005)
    assert flops["nonlocal"] / 16.5 == pytest.approx(0.09, abs=0.005)
    assert 4.1 + flops["a2"] == pytest.approx(1.585 * 4.1, rel=0.03)
    assert 0.40 < 1 - (RES50 + parameters["a2"]) / RES152 < 0.50  # abstract: "over 40%" fewer than ResNet-152


def test_published_increments_of_resnet_101_on_clips() -> None:
    """Wang et al. 2018, Table 2e: 1.2 times the parameters (43.2M) and the FLOPs (34.2B) of the baseline."""
    maps = {512: (4, 28, 28), 1024: (4, 14, 14)}  # of res3 and res4 of a clip of 32 frames (Table 1)
    blocks = {channels: drawn(NonLocal(channels), channels, dims=3) for channels in maps}
    flops = {channels: gigas(blocks[channels], channels, *maps[channels]) for channels in maps}
    assert round(1 + (2 * count(blocks[512]) + 3 * count(blocks[1024])) / 43.2e6, 1) == 1.2
    assert round(1 + (2 * flops[512] + 3 * flops[1024]) / 34.2, 1) == 1.2


@pytest.mark.parametrize(
    ("depth", "res3", "res4", "last"),
    [(18, [0], [0], 0), (50, [0, 2], [0, 2, 4], 4), (101, [0, 2], [6, 13, 20], 21), (152, [2, 6], [10, 22, 34], 34)],
)
def test_places(depth: int, res3: list[int], res4: list[int], last: int) -> None:
    five = [f"stages.1.layer2.{i}.after" for i in res3] + [f"stages.2.layer3.{i}.after" for i in res4]
    assert places(on_meta(depth, "nonlocal"), NonLocal) == places(on_meta(depth, "a2"), DoubleAttention) == five
    assert places(on_meta(depth, "cgnl"), CGNL) == [f"stages.2.layer3.{last}.after"]


@torch.no_grad()
def test_cgnls_convolutions_start_small() -> None:
    torch.manual_seed(0)
    block = resnet(50, width=16, attention=mechanism("cgnl")).stages[2].layer3[4].after
    assert block.theta.weight.std().item() == pytest.approx(0.01, rel=0.1)
