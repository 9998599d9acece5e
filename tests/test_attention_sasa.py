"""Stand-alone self-attention: a literal transcription of its equation, the published counts, its place."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tdaf.measure import gflops, saved_bytes
from tdaf.model.attention.sasa import LocalAttention
from tdaf.model.backbones.resnet import resnet

torch.set_num_threads(1)


def literal(x: Tensor, module: LocalAttention) -> Tensor:
    """Ramachandran et al. 2019, Eq. 3, one sample, head, query and key at a time."""
    w_q, w_k, w_v = module.qkv.weight.flatten(1).chunk(3)
    heads, depth = len(module.rows), len(w_q) // len(module.rows)
    height, width = x.shape[2:]
    y = torch.zeros(len(x), len(w_q), height, width)
    for b in range(len(x)):
        for h in range(heads):
            own = slice(h * depth, (h + 1) * depth)
            for i in range(height):
                for j in range(width):
                    q = (w_q @ x[b, :, i, j])[own]
                    near = [(a, c) for a in range(i - 3, i + 4) for c in range(j - 3, j + 4)]
                    near = [(a, c) for a, c in near if 0 <= a < height and 0 <= c < width]
                    logits = []
                    for a, c in near:
                        r = torch.cat([module.rows[h, a - i + 3], module.columns[h, c - j + 3]])
                        logits.append(q @ (w_k @ x[b, :, a, c])[own] + q @ r)
                    weights = torch.stack(logits).softmax(0)
                    y[b, own, i, j] = sum(w * (w_v @ x[b, :, a, c])[own] for w, (a, c) in zip(weights, near))
    return y


@pytest.mark.parametrize("size", [(9, 6), (1, 1), (2, 5)])
@torch.no_grad()
def test_equation_3(size):
    torch.manual_seed(0)
    module = LocalAttention(6, 16)
    assert module.heads == 2
    x = torch.randn(2 if size[0] < 9 else 1, 6, *size)
    torch.testing.assert_close(module(x), literal(x, module), rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_stride_is_an_average_pool_after_the_attention():
    module = LocalAttention(8, 16, stride=2)
    x = torch.randn(1, 8, 7, 10)
    whole = copy.deepcopy(module)
    whole.pool = nn.Identity()
    y = module(x)
    assert y.shape == (1, 16, 4, 5)
    torch.testing.assert_close(y[:, :, :3], F.avg_pool2d(whole(x)[:, :, :6], 2))
    torch.testing.assert_close(y[:, :, 3:], F.avg_pool2d(whole(x)[:, :, 6:], (1, 2)))


@torch.no_grad()
def test_what_is_four_places_away_is_not_seen():
    torch.manual_seed(0)
    module = LocalAttention(8, 8)
    x = torch.randn(1, 8, 11, 11)
    y = module(x)
    x[:, :, 2, 5] += 1
    changed = (module(x) != y).any(1)[0]
    assert changed[0:6, 2:9].all() and changed.sum() == 42


def test_parameters_by_hand_and_as_published():
    """3 w^2 + 7 w, the transforms and embeddings, for the 9 w^2 of a 3x3 convolution."""
    widths = [64] * 3 + [128] * 4 + [256] * 6 + [512] * 3
    with torch.device("meta"):
        count = sum(p.numel() for p in resnet(50, attention="sasa").parameters()) + 2049 * 1000
    assert count == 25_557_032 + sum(7 * w - 6 * w**2 for w in widths) == 18_038_632
    assert count == pytest.approx(18.0e6, abs=0.05e6)


def test_published_gflops():
    """The definition has 49 products with keys, embeddings and values for a query: 7.0 GFLOPs as published. What runs
    has 100 with keys and values, and less with embeddings."""
    with torch.device("meta"):
        x = torch.zeros(1, 3, 224, 224)
        counted, plain = (2 * gflops(resnet(50, attention=name), x).total for name in ("sasa", "none"))
    defined = plain * 1e9
    for width, side, blocks in ((64, 56, 3), (128, 28, 4), (256, 14, 6), (512, 7, 3)):
        for block in range(blocks):
            read = side * 2 if block == 0 and width > 64 else side  # attention before the pool
            defined += 2 * ((3 * width**2 + 3 * 49 * width) * read**2 - 9 * width**2 * side**2)
    assert defined / 1e9 == pytest.approx(7.0, abs=0.05)
    assert counted == pytest.approx(7.26, abs=0.01)
    assert counted / plain - 1 == pytest.approx(-0.112, abs=0.002)  # published -14.6%, TDAF's Table 3b +34.5%


def test_every_3x3_of_the_residual_blocks_and_nothing_else():
    with torch.device("meta"):
        for depth, count in ((18, 16), (50, 16), (101, 33)):
            staged = resnet(depth, attention="sasa")
            assert sum(isinstance(m, LocalAttention) for m in staged.modules()) == count
            spatial = [n for n, m in staged.named_modules() if isinstance(m, nn.Conv2d) and m.kernel_size != (1, 1)]
            assert spatial == ["stages.0.conv1"]
            heads = {m.heads for m in staged.modules() if isinstance(m, LocalAttention)}
            assert heads == {8}


def test_memory_is_far_from_49_copies_of_keys_and_values():
    with torch.device("meta"):
        module = LocalAttention(64, 64)
        kept = saved_bytes(module, torch.zeros(8, 64, 56, 56))
    assert kept < 300e6  # 49 copies of keys and values alone would be 629 MB


@pytest.mark.parametrize(("width", "heads"), [(8, 1), (16, 2), (64, 8), (72, 6), (512, 8)])
def test_narrow_layers_have_fewer_heads(width, heads):
    assert LocalAttention(width, width).heads == heads
