"""The non-local block: a literal transcription of its equations, the published counts, its places."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from tdaf.measure import gflops
from tdaf.model.attention.nonlocal_block import NonLocal
from tdaf.model.backbones.resnet import resnet
from tdaf.model.inflate import inflate
from tdaf.model.staged import Staged

torch.set_num_threads(1)

FOUR_FRAMES = {512: (4, 28, 28), 1024: (4, 14, 14)}  # maps of res3 and res4 of a clip of 32 frames (Table 1)


def count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def gigas(name: str) -> float:
    with torch.device("meta"):
        return gflops(resnet(50, attention=name), torch.zeros(1, 3, 224, 224)).total


def module(channels: int, dims: int = 2) -> NonLocal:
    torch.manual_seed(0)
    block = NonLocal(channels)
    if dims == 3:
        inflate(Staged([nn.Sequential(block)], [channels], [1]))
    for name, tensor in block.state_dict().items():
        if tensor.is_floating_point():
            tensor.normal_(0, 0.7) if tensor.ndim > 1 else tensor.uniform_(0.5, 1.5)
    return block.eval()


def places(x: Tensor) -> list[tuple[int, ...]]:
    return [tuple(p) for p in torch.cartesian_prod(*[torch.arange(s) for s in x.shape[2:]]).tolist()]


def literal(x: Tensor, state: dict[str, Tensor]) -> Tensor:
    """Eqs. 1, 4 and 6, one sample and one pair of places at a time; the pool of Sec. 3.3 one window at a time."""
    theta, phi, g, w = (state[f"{name}.weight"].flatten(1) for name in ("theta", "phi", "g", "w"))
    z = torch.empty_like(x)
    for b in range(len(x)):
        pooled = []
        for *frame, i, j in places(x):
            if i % 2 == 0 and j % 2 == 0:
                window = x[(b, slice(None), *frame)][:, i : i + 2, j : j + 2]
                pooled.append(window.flatten(1).max(1).values)
        for place in places(x):
            at = x[(b, slice(None), *place)]
            f = [math.exp((theta @ at) @ (phi @ other) / math.sqrt(len(theta))) for other in pooled]
            y = sum(weight * (g @ other) for weight, other in zip(f, pooled)) / sum(f)
            scale = state["norm.weight"] / (state["norm.running_var"] + 1e-5).sqrt()
            z[(b, slice(None), *place)] = (w @ y - state["norm.running_mean"]) * scale + state["norm.bias"] + at
    return z


@torch.no_grad()
@pytest.mark.parametrize("size", [(5, 6), (1, 1), (2, 3, 4)])
def test_a_block_is_the_literal_transcription(size: tuple[int, ...]) -> None:
    block = module(8, len(size))
    x = torch.randn(2, 8, *size)
    torch.testing.assert_close(block(x), literal(x, block.state_dict()), rtol=1e-4, atol=1e-5)
    if size == (5, 6):  # what is added is not the same everywhere
        assert (block(x) - x).std((2, 3)).min() > 0.01


@torch.no_grad()
def test_time_is_not_subsampled() -> None:
    block = module(8, dims=3)
    x = torch.randn(1, 8, 2, 2, 2)
    assert block._pooled(x).shape == (1, 8, 2, 1, 1)


def test_parameters_and_flops_are_those_of_the_definition() -> None:
    with torch.device("meta"):
        added = count(resnet(50, attention="nonlocal")) - count(resnet(50))
    res3, res4 = 4 * 512 * 256 + 2 * 512, 4 * 1024 * 512 + 2 * 1024
    assert added == 2 * res3 + 3 * res4 == 7_348_224
    # a block in res4 has as many: 4 times the weights, a quarter of the places
    full, quarter = 2 * 512 * 256 * 28**2, 2 * 512 * 256 * 14**2
    pairs = 2 * 2 * 256 * 28**2 * 14**2 + 3 * 2 * 512 * 14**2 * 7**2
    more = gigas("nonlocal") - gigas("none")
    assert more == pytest.approx((5 * (full + quarter) + pairs) / 1e9, rel=1e-6)
    # of ResNet-50's 4.1 and ResNeXt-101's 16.5 GFLOPs; TDAF's Table 3b has 12.5% and 9.9%
    assert (more / 4.1, more / 16.5) == (pytest.approx(0.36, abs=0.005), pytest.approx(0.09, abs=0.005))


def test_published_increments_of_resnet_101_on_clips() -> None:
    """Wang et al. 2018, Table 2e: 1.2 times the parameters (43.2M) and the FLOPs (34.2B) of the baseline."""
    with torch.device("meta"):
        blocks = {channels: module(channels, dims=3) for channels in FOUR_FRAMES}
        flops = {c: gflops(blocks[c], torch.zeros(1, c, *FOUR_FRAMES[c])).total for c in FOUR_FRAMES}
    assert round(1 + (2 * count(blocks[512]) + 3 * count(blocks[1024])) / 43.2e6, 1) == 1.2
    assert round(1 + (2 * flops[512] + 3 * flops[1024]) / 34.2, 1) == 1.2


@pytest.mark.parametrize(
    ("depth", "res3", "res4"),
    [(18, [0], [0]), (50, [0, 2], [0, 2, 4]), (101, [0, 2], [6, 13, 20]), (152, [2, 6], [10, 22, 34])],
)
def test_every_other_block_has_one(depth: int, res3: list[int], res4: list[int]) -> None:
    with torch.device("meta"):
        names = [name for name, m in resnet(depth, attention="nonlocal").named_modules() if isinstance(m, NonLocal)]
    expected = [f"stages.1.layer2.{i}.after" for i in res3] + [f"stages.2.layer3.{i}.after" for i in res4]
    assert names == expected
