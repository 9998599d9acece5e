"""Compact generalised non-local: a literal transcription of its definition, counts, its place."""

from __future__ import annotations


import pytest
import torch
from torch import Tensor, nn

from tdaf.measure import gflops
from tdaf.model.attention.cgnl import CGNL, GROUPS
from tdaf.model.backbones.resnet import resnet
from tdaf.model.inflate import inflate
from tdaf.model.staged import Staged

torch.set_num_threads(1)


def count(depth: int, name: str) -> int:
    with torch.device("meta"):
        return sum(p.numel() for p in resnet(depth, attention=name).parameters())


def gigas(name: str) -> float:
    with torch.device("meta"):
        return gflops(resnet(50, attention=name), torch.zeros(1, 3, 224, 224)).total


def module(channels: int, dims: int = 2) -> CGNL:
    torch.manual_seed(0)
    block = CGNL(channels)
    if dims == 3:
        inflate(Staged([nn.Sequential(block)], [channels], [1]))
    for p in block.parameters():
        nn.init.normal_(p, 0.2, 0.5)
    return block


def literal(x: Tensor, state: dict[str, Tensor]) -> Tensor:
    """Yue et al. 2018: the full affinity matrix of a group's C' N values, which the block never builds, times g."""
    theta, phi, g = (state[f"{name}.weight"].flatten(1) for name in ("theta", "phi", "g"))
    weight, bias = state["norm.weight"], state["norm.bias"]
    inner, outer = len(theta) // GROUPS, x.shape[1] // GROUPS
    out = torch.empty_like(x)
    for b in range(len(x)):
        values = x[b].flatten(1)
        for group in range(GROUPS):
            rows = slice(group * inner, (group + 1) * inner)
            affinity = torch.outer((theta[rows] @ values).flatten(), (phi[rows] @ values).flatten())
            y = (affinity @ (g[rows] @ values).flatten()).reshape(inner, -1)
            channels = slice(group * outer, (group + 1) * outer)
            z = state["z.weight"].flatten(1)[channels] @ y
            normed = (z - z.mean()) / (z.var(unbiased=False) + 1e-5).sqrt()
            added = normed * weight[channels, None] + bias[channels, None]
            out[b, channels] = x[b, channels] + added.reshape(outer, *x.shape[2:])
    return out


@torch.no_grad()
@pytest.mark.parametrize("size", [(5, 4), (2, 3, 2)])
def test_a_block_is_the_literal_transcription(size: tuple[int, ...]) -> None:
    block = module(32, len(size))
    x = torch.randn(2, 32, *size)
    torch.testing.assert_close(block(x), literal(x, block.state_dict()), rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_of_the_product_only_the_sign_is_left() -> None:
    block = module(32)
    x = torch.randn(2, 32, 5, 4)
    expected = block(x)
    block.g.weight.mul_(3)
    torch.testing.assert_close(block(x), expected, rtol=1e-4, atol=1e-4)
    block.g.weight.neg_()
    assert (block(x) - expected).abs().max() > 0.1


def test_parameters_and_flops_are_those_of_the_definition() -> None:
    weights = 3 * 1024 * 512 + 1024 * 512 // 8
    assert count(50, "cgnl") - count(50, "none") == weights + 2 * 1024 == 1_640_448
    assert gigas("cgnl") - gigas("none") == pytest.approx(weights * 14**2 / 1e9, rel=1e-6)


def test_tdafs_parameters_are_those_of_five_blocks() -> None:
    """TDAF, Sec. 4.1: ">20%". The authors' ImageNet networks have one block."""
    added = sum(sum(p.numel() for p in CGNL(channels).parameters()) for channels in (512, 512, 1024, 1024, 1024))
    assert added / 25_557_032 == pytest.approx(0.22, abs=0.005)


@pytest.mark.parametrize(("depth", "index"), [(18, 0), (50, 4), (101, 21), (152, 34)])
def test_the_block_comes_right_before_the_last_one_of_res4(depth: int, index: int) -> None:
    with torch.device("meta"):
        names = [name for name, m in resnet(depth, attention="cgnl").named_modules() if isinstance(m, CGNL)]
    assert names == [f"stages.2.layer3.{index}.after"]


@torch.no_grad()
def test_convolutions_start_small() -> None:
    torch.manual_seed(0)
    block = resnet(50, width=16, attention="cgnl").stages[2].layer3[4].after
    assert block.theta.weight.std().item() == pytest.approx(0.01, rel=0.1)
