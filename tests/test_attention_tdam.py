"""The top-down attention module: a literal transcription, the authors' counts, and its place in a ResNet."""

from __future__ import annotations

import pytest
import torch
from mechanisms import count, drawn, gigas, mechanism, on_meta
from torch import Tensor
from torch.nn import functional as F

from tdaf.model.attention.tdam import TopDown
from tdaf.model.backbones.resnet import resnet
from tests.tiny import settle

torch.set_num_threads(1)


def literal(bottom: Tensor, top: Tensor, state: dict[str, Tensor]) -> Tensor:
    """The module, one sample, one channel and one place at a time."""
    weights = {name: state[f"{name}.weight"].flatten(1) for name in ("reduce_top", "reduce_bottom", "expand")}
    y = torch.empty_like(bottom)
    for n in range(len(bottom)):
        above = torch.tensor([top[n, c].sum() / top[n, c].numel() for c in range(top.shape[1])])
        below = torch.tensor([bottom[n, c].sum() / bottom[n, c].numel() for c in range(bottom.shape[1])])
        joint = [max(float(v), 0.0) for v in weights["reduce_top"] @ above]
        joint += [max(float(v), 0.0) for v in weights["reduce_bottom"] @ below]
        s = weights["expand"] @ torch.tensor(joint)
        channels = torch.stack([bottom[n, c] / (1 + torch.exp(-s[c])) for c in range(len(s))])
        for place in torch.cartesian_prod(*[torch.arange(size) for size in bottom.shape[2:]]).tolist():
            at = (slice(None), *place)
            total = sum(s[c] * channels[(c, *place)] for c in range(len(s)))
            y[(n, *at)] = channels[at] / (1 + torch.exp(-total))
    return y


@torch.no_grad()
@pytest.mark.parametrize("size", [(5, 3), (2, 3, 4)])
def test_a_searchlight_is_that_of_the_literal_transcription(size: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    module = drawn(TopDown(12, 32, {}), 12, len(size))
    bottom, top = torch.randn(2, 12, *size), torch.randn(2, 32, *size[:-1], 2)
    expected = literal(bottom, top, module.state_dict())
    assert (module(bottom, top) / bottom).std() > 0.03
    torch.testing.assert_close(module(bottom, top), expected, rtol=1e-4, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize(("depth", "layer"), [(50, 3), (18, 2)])
def test_the_end_of_a_block_is_computed_twice(depth: int, layer: int) -> None:
    """Bottleneck: conv3 again on the modulated map; basic block: both convolutions again, on the modulated input."""
    torch.manual_seed(1)
    stage = settle(resnet(depth, width=8, attention=mechanism("tdam"))).eval().stages[layer]
    x = torch.rand(2, stage.layer4[0].conv1.in_channels, 5, 7) if layer == 3 else torch.rand(2, 16, 5, 7)
    block = stage[0][0]
    last = block.top_down
    if depth == 50:
        bottom = block.bn2(block.conv2(block.bn1(block.conv1(x)).relu())).relu()
        first = block.bn3(F.conv2d(bottom, block.conv3.weight))
        second = last.bn3(F.conv2d(literal(bottom, first, last.state_dict()), block.conv3.weight))
    else:
        first = block.bn2(block.conv2(block.bn1(block.conv1(x)).relu()))
        bottom = literal(x, first, last.state_dict())
        second = last.bn2(block.conv2(last.bn1(block.conv1(bottom)).relu()))
    torch.testing.assert_close(block(x), (second + block.downsample(x)).relu(), rtol=1e-4, atol=1e-4)


def test_parameters_are_those_of_the_definition_and_of_the_authors_networks() -> None:
    plain, ours, narrow, wide = (count(on_meta(d, name)) for d in (50, 34) for name in ("none", "tdam"))
    three = 1024 * 64 + 256 * 64 + 128 * 256 + 2 * 1024
    four = 2048 * 128 + 512 * 128 + 256 * 512 + 2 * 2048
    assert ours - plain == 6 * three + 3 * four == 2_088_960
    first = 256 * 16 + 128 * 16 + 32 * 128 + 512 * 32 + 256 * 32 + 64 * 256 + 2 * 2 * (256 + 512)
    others = 5 * (256 * 16 * 2 + 32 * 256 + 4 * 256) + 2 * (512 * 32 * 2 + 64 * 512 + 4 * 512)
    assert wide - narrow == first + others
    # TDAM_usage_and_visualization.ipynb of the authors' repository prints 22.07 M and 5.64 GMac for ResNet-34
    assert wide + 513_000 == pytest.approx(22.07e6, abs=0.005e6)
    assert gigas(on_meta(34, "tdam")) == pytest.approx(5.64, rel=0.005)


def test_flops_are_those_of_the_layers_that_run_again() -> None:
    again = 6 * 256 * 1024 * 14**2 + 3 * 512 * 2048 * 7**2
    searchlights = 6 * (1024 * 64 + 256 * 64 + 128 * 256) + 3 * (2048 * 128 + 512 * 128 + 256 * 512)
    assert gigas(on_meta(50, "tdam")) - gigas(on_meta()) == pytest.approx((again + searchlights) / 1e9, rel=1e-6)


@pytest.mark.parametrize(("depth", "three"), [(18, 2), (34, 6), (50, 6), (101, 7), (152, 14)])
def test_layer3_and_layer4_have_the_module_as_published(depth: int, three: int) -> None:
    stages = on_meta(depth, "tdam").stages
    layers = [stage.get_submodule(f"layer{i}") for i, stage in enumerate(stages, start=1)]
    blocks = [[hasattr(block, "top_down") for block in layer] for layer in layers]
    assert not any(blocks[0] + blocks[1]) and sum(blocks[2]) == three and all(blocks[3])
