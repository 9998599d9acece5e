"""SE and CBAM: literal transcriptions of their equations, published counts, and their place in a backbone."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tdaf.cli.compose import ATTENTION
from tdaf.errors import UserError
from tdaf.model.attention.cbam import CBAM
from tdaf.model.attention.placement import NAMES, branch
from tdaf.model.backbones.mobilenet import mobilenet
from tdaf.model.backbones.resnet import resnet
from tdaf.model.flows import TDAF
from tdaf.model.staged import initialise

torch.set_num_threads(1)


def parameters(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


@pytest.mark.parametrize(
    ("build", "name", "features", "count", "published"),
    [
        (resnet, "se", 2048, 28_088_024, 28.1e6),  # Hu et al. 2018, table of reduction ratios, r = 16
        (resnet, "cbam", 2048, 28_089_624, 28.09e6),  # Woo et al. 2018, Table 4
        (mobilenet, "se", 1024, 4_718_044, 4.7e6),  # Hu et al. 2018, Table 3
    ],
)
def test_published_parameter_counts(build, name, features, count, published):
    with torch.device("meta"):
        total = parameters(build(attention=name)) + parameters(nn.Linear(features, 1000))
    assert total == count
    assert total == pytest.approx(published, rel=0.005)


def se(x: Tensor, state: dict[str, Tensor]) -> Tensor:
    """Hu et al. 2018, Eqs. 2-4, one sample and one channel at a time."""
    y = torch.empty_like(x)
    for b in range(len(x)):
        z = torch.stack([x[b, c].sum() / x[b, c].numel() for c in range(x.shape[1])])
        hidden = torch.clamp(state["fc1.weight"].flatten(1) @ z + state["fc1.bias"], min=0)
        s = 1 / (1 + torch.exp(-(state["fc2.weight"].flatten(1) @ hidden + state["fc2.bias"])))
        for c in range(x.shape[1]):
            y[b, c] = s[c] * x[b, c]
    return y


def cbam(x: Tensor, state: dict[str, Tensor]) -> Tensor:
    """Woo et al. 2018, Eqs. 2 and 3, with the batch norm of the authors' code in evaluation."""
    first, second = (state[f"mlp.{i}.weight"].flatten(1) for i in (0, 2))
    masked = torch.empty_like(x)
    for b in range(len(x)):
        total = torch.zeros(x.shape[1])
        for pooled in (x[b].flatten(1).mean(1), x[b].flatten(1).max(1).values):
            total += second @ torch.clamp(first @ pooled + state["mlp.0.bias"], min=0) + state["mlp.2.bias"]
        for c in range(x.shape[1]):
            masked[b, c] = torch.sigmoid(total)[c] * x[b, c]
    both = torch.stack([masked.max(1).values, masked.mean(1)], dim=1)
    convolve = F.conv2d if x.ndim == 4 else F.conv3d
    places = convolve(both, state["spatial.weight"], padding=3)
    scale = state["norm.weight"] / (state["norm.running_var"] + 1e-5).sqrt()
    places = (places - state["norm.running_mean"]) * scale + state["norm.bias"]
    return masked * torch.sigmoid(places)


@pytest.mark.parametrize(("name", "literal"), [("se", se), ("cbam", cbam)])
def test_equations(name, literal):
    torch.manual_seed(0)
    block = branch(name, 48, "a test").eval()
    for tensor in block.state_dict().values():
        if tensor.is_floating_point():
            tensor.uniform_(-0.6, 0.6) if tensor.ndim > 1 else tensor.uniform_(0.3, 0.9)
    x = torch.randn(3, 48, 9, 6)
    mask = block(x) / x
    assert mask.std() > 0.01
    torch.testing.assert_close(block(x), literal(x, block.state_dict()), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("name", "literal"), [("se", se), ("cbam", cbam)])
def test_equations_for_clips(name, literal):
    torch.manual_seed(0)
    block = resnet(18, attention=name, dims=3).stages[0].layer1[0].attention.eval()
    for tensor in block.state_dict().values():
        if tensor.is_floating_point():
            tensor.uniform_(-0.3, 0.3) if tensor.ndim > 1 else tensor.uniform_(0.3, 0.9)
    x = torch.randn(2, 64, 4, 5, 6)
    torch.testing.assert_close(block(x), literal(x, block.state_dict()), rtol=1e-5, atol=1e-6)


def test_cbam_starts_with_an_even_spatial_mask():
    """The authors' code starts that batch norm's weight at 0; the backbone's Kaiming start must not undo it."""
    x = torch.randn(2, 32, 5, 5)
    block = initialise(CBAM(32))
    places = (2, 3)
    channels = torch.sigmoid(block.mlp(x.mean(places, keepdim=True)) + block.mlp(x.amax(places, keepdim=True)))
    torch.testing.assert_close(block(x), x * channels / 2)
    weights = [m.norm.weight for m in resnet(18, attention="cbam").modules() if isinstance(m, CBAM)]
    assert len(weights) == 8 and not any(w.any() for w in weights)


@pytest.mark.parametrize("depth", [18, 50])
def test_mechanism_ends_the_residual_branch(depth):
    """Before the sum with the shortcut (Hu et al. 2018, Fig. 3): a mechanism that gives 0 leaves the shortcut alone."""
    staged = resnet(depth, attention="se").eval()
    for block in [*staged.stages[0].layer1, *staged.stages[2].layer3]:
        nn.init.constant_(block.attention.fc2.bias, -200)
        x = torch.rand(1, block.conv1.in_channels, 8, 8)
        shortcut = x if block.downsample is None else block.downsample(x)
        torch.testing.assert_close(block(x), shortcut.relu() if block.activate else shortcut)


def test_every_block_has_one():
    with torch.device("meta"):
        for depth, blocks in ((34, 16), (50, 16)):
            names = [name for name, _ in resnet(depth, attention="cbam").named_modules() if name.endswith(".attention")]
            assert len(names) == blocks
        separable = [m for name, m in mobilenet(attention="se").named_modules() if "block" in name.split(".")[-1]]
        assert [list(dict(m.named_children())).index("attention") for m in separable] == [5] * 13  # after the second bn
        plain = resnet(50)
        assert not [name for name, _ in plain.named_modules() if name.endswith(".attention")]


@pytest.mark.parametrize("name", ["se", "cbam"])
@pytest.mark.parametrize(("build", "width"), [(lambda **kw: resnet(18, **kw), 64), (mobilenet, 64)])
def test_under_tdaf_every_flow_trains(build, width, name):
    torch.manual_seed(0)
    network = TDAF(build(attention=name), flows=2)
    maps = network(torch.rand(2, 3, 64, 64))
    assert maps[0].shape[1] == width
    maps[-1].square().mean().backward()
    silent = [n for n, p in network.named_parameters() if p.grad is None or not p.grad.isfinite().all()]
    assert silent == []


def test_narrow_maps_keep_one_hidden_channel():
    assert branch("se", 8, "a test")(torch.rand(2, 8, 4, 4)).shape == (2, 8, 4, 4)
    assert branch("cbam", 8, "a test")(torch.rand(2, 8, 4, 4)).shape == (2, 8, 4, 4)


def test_names():
    assert branch("none", 64, "MobileNet") is None
    with pytest.raises(UserError, match="attention=cbm: not defined for MobileNet, which has none, se, cbam"):
        mobilenet(attention="cbm")
    with pytest.raises(UserError, match="attention=cbm: not defined for ResNet, which has none, se, cbam"):
        resnet(18, attention="cbm")
    assert NAMES == ATTENTION
