"""Attention augmented convolution: a literal transcription of its equations, the published counts, its place."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tdaf.measure import gflops
from tdaf.model.attention import aa
from tdaf.model.attention.aa import HEADS, AugmentedConv
from tdaf.model.backbones.resnet import resnet

torch.set_num_threads(1)


def parameters(depth: int) -> int:
    features = 512 if depth < 50 else 2048
    with torch.device("meta"):
        staged = resnet(depth, attention="aa")
    return sum(p.numel() for p in staged.parameters()) + (features + 1) * 1000


def layer(inputs: int = 12, outputs: int = 48, stride: int = 1, halved: int = 0, side: int = 3) -> AugmentedConv:
    torch.manual_seed(0)
    plain = nn.Conv2d(inputs, outputs, 3, stride, padding=1)
    return AugmentedConv(plain, 0.2, 0.4, halved, side)


def literal(x: Tensor, module: AugmentedConv) -> Tensor:
    """Bello et al. 2019, Eqs. 1-4 and the concatenation of Sec. 3.2, one sample, head, query and key at a time."""
    side = (len(module.rows) + 1) // 2
    kernel = module.qkv.weight.flatten(1)
    key, value = module.keys // HEADS, module.values // HEADS
    height, width = x.shape[2:]
    places = [(i, j) for i in range(height) for j in range(width)]
    attended = torch.zeros(len(x), module.values, height, width)
    for b in range(len(x)):
        projected = {place: kernel @ x[b, :, *place] for place in places}
        for head in range(HEADS):
            for q_place in places:
                q = projected[q_place][head * key :][:key]
                logits = []
                for place in places:
                    k = projected[place][module.keys + head * key :][:key]
                    down, right = (max(1 - side, min(side - 1, t - s)) for s, t in zip(q_place, place))
                    logits.append(q @ (k + module.rows[down + side - 1] + module.columns[right + side - 1]))
                weights = (torch.stack(logits) / math.sqrt(key)).softmax(0)
                values = [projected[place][2 * module.keys + head * value :][:value] for place in places]
                total = sum(w * v for w, v in zip(weights, values))
                attended[b, head * value : (head + 1) * value, *q_place] = total
    mixed = torch.einsum("oi,bihw->bohw", module.mix.weight.flatten(1), attended)
    return torch.cat([F.conv2d(x, module.conv.weight, padding=1), mixed], dim=1)


@torch.no_grad()
def test_equations_on_a_map_larger_than_the_tables():
    module = layer()
    x = torch.randn(2, 12, 4, 5)
    attended = module(x)[:, -module.values :]
    assert attended.std((2, 3)).min() > 0.01
    torch.testing.assert_close(module(x), literal(x, module), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("stride", "halved"), [(2, 0), (1, 1), (2, 1)])
@torch.no_grad()
def test_the_attention_reads_a_halved_map_and_has_the_size_of_the_convolution(stride, halved):
    module = layer(stride=stride, halved=halved)
    x = torch.randn(1, 12, 9, 6)
    small = x
    for _ in range((stride > 1) + halved):
        cells = F.pad(torch.ones(1, 1, *small.shape[2:]), (1, 1, 1, 1)).unfold(2, 3, 2).unfold(3, 3, 2).sum((4, 5))
        total = F.pad(small, (1, 1, 1, 1)).unfold(2, 3, 2).unfold(3, 3, 2).sum((4, 5))
        small = total / cells
    seen = literal(small, module)[:, -module.values :]
    local = F.conv2d(x, module.conv.weight, stride=stride, padding=1)
    assert local.shape[2:] == (-(-9 // stride), -(-6 // stride))
    expected = torch.cat([local, F.interpolate(seen, size=local.shape[2:], mode="bilinear") if halved else seen], dim=1)
    torch.testing.assert_close(module(x), expected, rtol=1e-4, atol=1e-5)


def added(width: int, inputs: int, values: int, side: int, keys: int = 160) -> int:
    """Parameters of an augmented 3x3 less those of the plain one (Sec. 3.2)."""
    attention = inputs * (2 * keys + values) + values**2 + 2 * (2 * side - 1) * keys // 8
    return attention - 9 * inputs * values


def test_parameters_by_hand_and_as_published():
    fifty = 25_557_032 + 4 * added(128, 128, 16, 14) + 6 * added(256, 256, 24, 14) + 3 * added(512, 512, 48, 7)
    assert parameters(50) == fifty == pytest.approx(25.8e6, abs=0.05e6)
    first = added(128, 64, 32, 14) + added(256, 128, 64, 14) + added(512, 256, 128, 7)
    rest = 3 * added(128, 128, 32, 14) + 5 * added(256, 256, 64, 14) + 2 * added(512, 512, 128, 7)
    assert parameters(34) == 21_797_672 + first + rest == pytest.approx(20.7e6, abs=0.05e6)
    assert parameters(101) == pytest.approx(45.4e6, abs=0.05e6)


@pytest.mark.parametrize(("ratio", "published"), [(0.25, 24.3e6), (0.5, 22.3e6), (0.75, 20.7e6)])
def test_published_parameters_of_other_ratios(monkeypatch, ratio, published):
    monkeypatch.setattr(aa, "BOTTLENECK", (ratio, ratio))
    assert parameters(50) == pytest.approx(published, abs=0.05e6)


@pytest.mark.parametrize(("depth", "published"), [(34, 7.1), (50, 8.3)])
def test_published_gflops(depth, published):
    with torch.device("meta"):
        x, staged = torch.zeros(1, 3, 224, 224), resnet(depth, attention="aa")
        counted = 2 * gflops(staged, x).total
        plain = 2 * gflops(resnet(depth), x).total
    assert counted == pytest.approx(published, rel=0.015)
    if depth == 50:
        assert counted / plain - 1 == pytest.approx(0.022, abs=0.001)  # TDAF's Table 3b: +1.3%


def test_one_convolution_of_every_block_in_the_last_three_stages():
    with torch.device("meta"):
        for depth, name, blocks in ((18, "conv1", [2, 2, 2]), (50, "conv2", [4, 6, 3]), (152, "conv2", [8, 36, 3])):
            found = [n for n, m in resnet(depth, attention="aa").named_modules() if isinstance(m, AugmentedConv)]
            counts = zip((1, 2, 3), blocks)
            assert found == [f"stages.{s}.layer{s + 1}.{b}.{name}" for s, n in counts for b in range(n)]


@torch.no_grad()
def test_embeddings_start_small():
    tables = [m.rows for m in resnet(50, attention="aa").modules() if isinstance(m, AugmentedConv)]
    assert torch.cat(tables).std().item() == pytest.approx(20**-0.5, rel=0.1)
