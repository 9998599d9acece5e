"""Residual attention: a literal transcription of a module, the authors' counts, and the network made of a ResNet."""

from __future__ import annotations

import pytest
import torch
from mechanisms import count, gigas, mechanism, on_meta
from torch import Tensor, nn
from torch.nn import functional as F

from tdaf.model.attention.resatt import Residual, Unit, Widths
from tdaf.model.backbones.resnet import resnet
from tests.tiny import settle

torch.set_num_threads(1)

BOTTLENECK, BASIC = Widths(32, 8, 1), Widths(16, None, 1)


def activated(x: Tensor, state: dict[str, Tensor], name: str) -> Tensor:
    mean, var, weight, bias = (state[f"{name}.{k}"] for k in ("running_mean", "running_var", "weight", "bias"))
    y = torch.empty_like(x)
    for c in range(x.shape[1]):
        y[:, c] = torch.clamp((x[:, c] - mean[c]) / (var[c] + 1e-5).sqrt() * weight[c] + bias[c], min=0)
    return y


def unit(x: Tensor, state: dict[str, Tensor], name: str) -> Tensor:
    """Batch norm, ReLU, convolution, as often as the unit has convolutions; then the sum with the input."""
    y, index = x, 0
    while f"{name}.branch.{index}.weight" in state:
        weight = state[f"{name}.branch.{index + 2}.weight"]
        y = F.conv2d(activated(y, state, f"{name}.branch.{index}"), weight, padding=weight.shape[-1] // 2)
        index += 3
    return x + y


def module_of_stage_1(x: Tensor, s: dict[str, Tensor]) -> Tensor:
    """Layer by layer in the order of the authors' Attention-56-deploy.prototxt, AttentionA_1; ours are the names."""

    def halved(y: Tensor) -> Tensor:
        return F.max_pool2d(y, 3, 2, padding=1)

    def resized(y: Tensor, size: torch.Size) -> Tensor:
        return F.interpolate(y, size=size, mode="bilinear")

    res1 = unit(x, s, "before.0")
    trunk = unit(unit(res1, s, "trunk.0"), s, "trunk.1")
    down1 = unit(halved(res1), s, "mask.down.0")
    down2 = unit(halved(down1), s, "mask.inner.down.0")
    down3 = unit(unit(halved(down2), s, "mask.inner.inner.down.0"), s, "mask.inner.inner.up.0")
    up2 = resized(down3, down2.shape[2:]) + unit(down2, s, "mask.inner.skip")
    up1 = resized(unit(up2, s, "mask.inner.up.0"), down1.shape[2:]) + unit(down1, s, "mask.skip")
    up0 = resized(unit(up1, s, "mask.up.0"), x.shape[2:])
    linear1 = F.conv2d(activated(up0, s, "linear.0"), s["linear.2.weight"])
    linear2 = F.conv2d(activated(linear1, s, "linear.3"), s["linear.5.weight"])
    mask = 1 / (1 + torch.exp(-linear2))
    return unit(mask * trunk + trunk, s, "after.0")


@torch.no_grad()
@pytest.mark.parametrize("widths", [BOTTLENECK, BASIC])
def test_a_module_is_its_literal_transcription(widths: Widths) -> None:
    torch.manual_seed(0)
    module = Residual(lambda: Unit(widths), widths.outside, levels=3, p=1, t=2).eval()
    for name, tensor in module.state_dict().items():
        if tensor.is_floating_point() and "weight" not in name:
            tensor.uniform_(0.5, 1.5) if name.endswith("var") else tensor.uniform_(-0.3, 0.3)
    x = torch.randn(2, widths.outside, 13, 9)
    torch.testing.assert_close(module(x), module_of_stage_1(x, module.state_dict()), rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_a_mask_of_any_size() -> None:
    module = Residual(lambda: Unit(BASIC), 16, levels=3, p=0, t=1).eval()
    for size in ((1, 1), (2, 1), (3, 5), (8, 8)):
        x = torch.randn(1, 16, *size)
        assert module(x).shape == x.shape and module(x).isfinite().all()
        low, high = module.trunk(x), 2 * module.trunk(x)
        assert ((module(x) - low) * (module(x) - high) <= 0).all()  # 1 + M is between 1 and 2


def test_resnet_50_becomes_attention_56() -> None:
    """31,810,728 is the number of weights that the authors' Attention-56-deploy.prototxt adds up to."""
    staged = on_meta(50, "resatt")
    flops, plain = gigas(staged) + 2048 * 1000 / 1e9, gigas(on_meta()) + 2048 * 1000 / 1e9
    bottleneck = lambda c: 2 * c * c // 4 + 9 * (c // 4) ** 2 + 2 * (c + c // 4 + c // 4)  # noqa: E731
    first = lambda i, c: i * c + i * c // 4 + 9 * (c // 4) ** 2 + c * c // 4 + 2 * (c // 4 + c // 4)  # noqa: E731
    total = 3 * 49 * 64 + 2 * 64 + 2 * 64
    # units beside the first: before, two of the trunk, after, and 2, 2 + 3 or 2 + 6 of the mask; norms at the ends
    for inputs, width, units in ((64, 256, 4 + 8), (256, 512, 4 + 5), (512, 1024, 4 + 2)):
        total += first(inputs, width) + units * bottleneck(width) + 2 * width * width + 4 * width + 2 * width
    total += first(1024, 2048) + 2 * bottleneck(2048) + 2 * 2048 + 2048 * 1000 + 1000
    assert count(staged) + 2048 * 1000 + 1000 == total == 31_810_728
    assert total == pytest.approx(31.9e6, rel=0.003)  # Table 2
    assert flops == pytest.approx(6.2, abs=0.1)  # Table 2
    assert flops / plain - 1 == pytest.approx(0.536, abs=0.005)  # TDAF's Table 3b


def test_the_depth_of_the_trunk() -> None:
    """The convolutions one after the other: Attention-56 and Attention-92 by their names, ResNet-18's own 18."""
    for depth, expected in ((18, 18), (34, 2 + 18 * 2), (50, 56), (101, 92)):
        with torch.device("meta"):
            modules = resnet(depth, attention=mechanism("resatt")).named_modules()
        names = [name for name, m in modules if isinstance(m, nn.Conv2d) and ".branch." in name]
        assert len([name for name in names if ".mask." not in name]) + 2 == expected


def test_resnext_becomes_attentionnext() -> None:
    with torch.device("meta"):
        staged = resnet(50, groups=32, width_per_group=4, attention=mechanism("resatt"))
    grouped = [m for m in staged.modules() if isinstance(m, nn.Conv2d) and m.groups == 32]
    assert len(grouped) == sum(1 for m in staged.modules() if isinstance(m, Unit)) == 18 + 15


@torch.no_grad()
def test_a_stage_ends_activated_and_the_next_begins_with_it() -> None:
    staged = settle(resnet(18, width=8, attention=mechanism("resatt"))).eval()
    stage = staged.stages[1]
    assert list(dict(stage.named_children())) == ["layer2", "bn_out", "relu_out"]
    x = torch.rand(1, 8, 9, 9)
    first = stage.layer2[0]
    y = first.branch[3](first.branch[2](first.branch[1](first.branch[0](x))))
    torch.testing.assert_close(first(x), first.shortcut(x) + y)
    assert all(m.min() == 0 for m in staged(torch.rand(1, 3, 64, 64)))
