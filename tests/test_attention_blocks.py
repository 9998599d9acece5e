"""Non-local, double attention and CGNL blocks, residual attention and the top-down module: their equations place by
place, counts, and their places in a ResNet."""

import math

import pytest
import torch
from mechanisms import cells, count, drawn, gigas, mechanism, normed, on_meta, places
from torch import Tensor, nn
from torch.nn import functional as F

from tdaf.model.attention.nonlocal_blocks import CGNL, DoubleAttention, NonLocal
from tdaf.model.attention.resatt import Residual, Unit, Widths
from tdaf.model.attention.tdam import TopDown
from tdaf.model.backbones.resnet import resnet
from tests.tiny import settle

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
    block = resnet(50, width=16, attention=mechanism("cgnl")).stages[2].layer3[4].after
    assert block.theta.weight.std().item() == pytest.approx(0.01, rel=0.1)


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


def searchlight(bottom: Tensor, top: Tensor, state: dict[str, Tensor]) -> Tensor:
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
    module = drawn(TopDown(12, 32, {}), 12, len(size))
    bottom, top = torch.randn(2, 12, *size), torch.randn(2, 32, *size[:-1], 2)
    expected = searchlight(bottom, top, module.state_dict())
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
        second = last.bn3(F.conv2d(searchlight(bottom, first, last.state_dict()), block.conv3.weight))
    else:
        first = block.bn2(block.conv2(block.bn1(block.conv1(x)).relu()))
        bottom = searchlight(x, first, last.state_dict())
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
