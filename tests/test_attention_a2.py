"""Double attention: a literal transcription of its equations, the published counts, its places."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from tdaf.measure import gflops
from tdaf.model.attention import a2
from tdaf.model.attention.a2 import DoubleAttention
from tdaf.model.backbones.resnet import resnet
from tdaf.model.inflate import inflate
from tdaf.model.staged import Staged

torch.set_num_threads(1)

RES50, RES152 = 25_557_032, 60_192_808


def count(depth: int, name: str) -> int:
    with torch.device("meta"):
        return sum(p.numel() for p in resnet(depth, attention=name).parameters())


def gigas(name: str) -> float:
    with torch.device("meta"):
        return gflops(resnet(50, attention=name), torch.zeros(1, 3, 224, 224)).total


def module(channels: int, dims: int) -> DoubleAttention:
    torch.manual_seed(0)
    block = DoubleAttention(channels)
    if dims == 3:
        inflate(Staged([nn.Sequential(block)], [channels], [1]))
    for tensor in block.state_dict().values():
        if tensor.is_floating_point():
            tensor.normal_(0, 0.7) if tensor.ndim > 1 else tensor.uniform_(0.5, 1.5)
    return block.eval()


def literal(x: Tensor, state: dict[str, Tensor]) -> Tensor:
    """Chen et al. 2018, Eqs. 4 and 5, one descriptor and one place at a time, then the last convolution and the sum."""
    phi, theta, rho, expand = (state[f"{name}.weight"].flatten(1) for name in ("phi", "theta", "rho", "expand"))
    out = torch.empty_like(x)
    places = [tuple(p) for p in torch.cartesian_prod(*[torch.arange(s) for s in x.shape[2:]]).tolist()]
    for b in range(len(x)):
        at = [x[(b, slice(None), *place)] for place in places]
        descriptors = []
        for row in theta:
            weights = [math.exp(row @ a) for a in at]
            descriptors.append(sum(weight * (phi @ a) for weight, a in zip(weights, at)) / sum(weights))
        for place, a in zip(places, at):
            vector = [math.exp(row @ a) for row in rho]
            z = sum(v * descriptor for v, descriptor in zip(vector, descriptors)) / sum(vector)
            scale = state["norm.weight"] / (state["norm.running_var"] + 1e-5).sqrt()
            normed = (expand @ z - state["norm.running_mean"]) * scale + state["norm.bias"]
            out[(b, slice(None), *place)] = normed + a
    return out


@torch.no_grad()
@pytest.mark.parametrize("size", [(5, 4), (1, 1), (2, 3, 2)])
def test_a_block_is_the_literal_transcription(size: tuple[int, ...]) -> None:
    block = module(8, len(size))
    x = torch.randn(2, 8, *size)
    torch.testing.assert_close(block(x), literal(x, block.state_dict()), rtol=1e-4, atol=1e-5)
    if size == (5, 4):
        assert (block(x) - x).std((2, 3)).min() > 0.01


def test_parameters_are_those_of_the_definition_and_within_the_published_bounds() -> None:
    res3, res4 = 4 * 512 * 256 + 2 * 512, 4 * 1024 * 512 + 2 * 1024
    added = count(50, "a2") - count(50, "none")
    assert added == 2 * res3 + 3 * res4 == 7_348_224
    assert 0.40 < 1 - (RES50 + added) / RES152 < 0.50  # abstract: "over 40%" fewer than ResNet-152


def test_flops_are_those_of_the_definition_and_near_the_published_total() -> None:
    convolutions = 5 * 4 * 512 * 256 * 28**2  # res4 as res3: 4 times the weights, 1/4 the places
    products = 2 * 2 * 256**2 * 28**2 + 3 * 2 * 512**2 * 14**2
    more = gigas("a2") - gigas("none")
    assert more == pytest.approx((convolutions + products) / 1e9, rel=1e-6)
    assert 4.1 + more == pytest.approx(1.585 * 4.1, rel=0.03)  # TDAF's Tables 3a and 3b: 4.1 and +58.5%


def test_the_width_of_the_ablations_is_not_that_of_the_published_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(a2, "REDUCTION", 4)
    assert 1 - (RES50 + count(50, "a2") - count(50, "none")) / RES152 > 0.51
    with torch.device("meta"):
        maps = [torch.zeros(1, 512, 28, 28)] * 2 + [torch.zeros(1, 1024, 14, 14)] * 3
        more = sum(gflops(DoubleAttention(x.shape[1]), x).total for x in maps)
    assert more / 4.1 == pytest.approx(0.28, abs=0.005)


@pytest.mark.parametrize(("depth", "res3", "res4"), [(18, [0], [0]), (50, [0, 2], [0, 2, 4])])
def test_res3_has_two_and_res4_three(depth: int, res3: list[int], res4: list[int]) -> None:
    with torch.device("meta"):
        names = [name for name, m in resnet(depth, attention="a2").named_modules() if isinstance(m, DoubleAttention)]
    assert names == [f"stages.1.layer2.{i}.after" for i in res3] + [f"stages.2.layer3.{i}.after" for i in res4]
