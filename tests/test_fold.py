"""Batch norm folding: the same outputs to rounding, and no norm left where one can go."""

from __future__ import annotations

import copy

import pytest
import torch
from tiny import settle, tiny
from torch import Tensor, nn
from torch.nn import functional
from torchvision.models import mobilenet_v2, resnet18, resnext50_32x4d
from torchvision.ops import FrozenBatchNorm2d

from tdaf.model.anar import ANAR
from tdaf.model.attention.se_cbam import squeeze_excitation
from tdaf.model.backbones.mobilenet import mobilenet
from tdaf.model.backbones.resnet import resnet
from tdaf.model.flows import TDAF, MultiScale
from tdaf.model.fold import fold

torch.set_num_threads(1)
NORMS = (nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm, FrozenBatchNorm2d)


def norms(network: nn.Module) -> int:
    return sum(isinstance(m, NORMS) for m in network.modules())


def assert_folds(network: nn.Module, x: Tensor, left: int = 0) -> nn.Module:
    had = norms(network)
    state = copy.deepcopy(network.state_dict())
    folded = fold(network)
    assert norms(folded) == left < had == norms(network)
    for key, value in network.state_dict().items():
        assert torch.equal(value, state[key])
    network.eval()
    with torch.no_grad():
        ours, theirs = folded(x), network(x)
    ours, theirs = (o if isinstance(o, list) else [o] for o in (ours, theirs))
    for a, b in zip(ours, theirs, strict=True):
        assert b.abs().max() > 1e-3
        assert (a - b).abs().max() <= 1e-5 * b.abs().max()
    assert not folded.training and not any(p.requires_grad for p in folded.parameters())
    return folded


def shake(network: nn.Module, size: int = 64, dims: int = 2) -> nn.Module:
    torch.manual_seed(0)
    return settle(network, dims, size)


@pytest.mark.parametrize("build", [resnet18, resnext50_32x4d, mobilenet_v2])
def test_torchvision(build):
    torch.manual_seed(0)
    assert_folds(shake(build(num_classes=10)), torch.randn(2, 3, 64, 64))


@pytest.mark.parametrize(
    "settings", [{}, {"norm": "shared"}, {"flows": 1}, {"anar": 7}, {"anar": 5, "depthwise": True}]
)
@pytest.mark.parametrize("dims", [2, 3])
def test_tdaf(settings, dims):
    network = shake(TDAF(tiny(dims), **{"flows": 4, "anar_width": 64, **settings}), 36, dims)
    folded = assert_folds(network, torch.randn(2, 3, *[37, 30, 33][:dims]))
    if settings != {"norm": "shared"} and settings != {"flows": 1}:
        weights = [flow["stages"][0].conv.weight for flow in folded.earlier] + [folded.stages[0].conv.weight]
        assert len({w.data_ptr() for w in weights}) == 4
        assert not torch.equal(weights[0], weights[-1])
        # Moving the copy must not make its flows alike again.
        x = torch.randn(2, 3, *[37, 30, 33][:dims])
        before = folded(x)[-1]
        assert torch.allclose(copy.deepcopy(folded).double().float()(x)[-1], before)
        again = copy.deepcopy(folded)
        again.load_state_dict(folded.state_dict(), assign=True)
        assert torch.equal(again(x)[-1], before)


def test_backbones():
    assert_folds(shake(TDAF(resnet(18), flows=3, anar_width=64)), torch.randn(2, 3, 64, 64))
    network = TDAF(mobilenet(attention=squeeze_excitation), flows=3, anar=5, depthwise=True, anar_width=64)
    assert_folds(shake(network), torch.randn(2, 3, 64, 64))
    assert_folds(shake(MultiScale(resnet(18, attention=squeeze_excitation), flows=3)), torch.randn(2, 3, 64, 64))


class Untraceable(nn.Module):
    """Branches on values, and has parts which can be traced."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU())
        self.conv, self.norm = nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        return self.norm(self.conv(x)) if x.sum() > -1e9 else x


class Branching(nn.Module):
    """Convolutions and norms that must not be folded: read twice, in the wrong order, shared by two norms."""

    def __init__(self) -> None:
        super().__init__()
        self.twice, self.after = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)
        self.before, self.late = nn.BatchNorm2d(8), nn.Conv2d(8, 8, 3)
        self.shared, self.one, self.two = nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8), nn.BatchNorm2d(8)
        self.moment, self.batch = nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8, track_running_stats=False)
        self.weighted = nn.utils.parametrizations.weight_norm(nn.Conv2d(8, 8, 1))
        self.last = nn.BatchNorm2d(8)

    def forward(self, x: Tensor) -> Tensor:
        x = self.twice(x)
        x = self.after(x) + x
        x = self.late(self.before(x))
        x = self.one(self.shared(x)) + self.two(self.shared(x.flip(3)))
        return self.last(self.weighted(self.batch(self.moment(x))))


class Repeated(nn.Module):
    """One pair, run twice."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(torch.relu(self.norm(self.conv(x)))))


def test_a_users_own_modules():
    x = torch.randn(2, 3, 20, 20)
    assert_folds(shake(Untraceable()), x, left=1)
    assert_folds(shake(Repeated()), x)
    deconv = nn.Sequential(nn.Conv2d(3, 8, 1), nn.ConvTranspose2d(8, 12, 4, 2, 1, groups=4), nn.BatchNorm2d(12))
    assert_folds(shake(deconv), x)
    frozen = FrozenBatchNorm2d(8)
    frozen.running_mean.uniform_(-1, 1)
    frozen.weight.uniform_(0.5, 2)
    assert_folds(nn.Sequential(nn.Conv2d(3, 8, 3), frozen), x)
    assert_folds(shake(nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8, affine=False), nn.Conv2d(8, 2, 1))), x)
    assert_folds(nn.SyncBatchNorm.convert_sync_batchnorm(shake(resnet18(num_classes=5))), torch.randn(2, 3, 64, 64))


def test_what_must_stay():
    network = shake(Branching())
    x = torch.randn(2, 3, 20, 20)
    folded = fold(network)
    assert norms(folded) == norms(network)
    with torch.no_grad():
        assert torch.equal(folded(x), network.eval()(x))


@pytest.mark.parametrize(
    ("layers", "upsample"), [(2, "deconv"), (3, "resize"), (3, "deconv"), (5, "resize"), (7, "deconv")]
)
def test_anar_alone(layers, upsample):
    torch.manual_seed(0)
    anar = ANAR(32, layers, 64, depthwise=layers == 7, upsample=upsample)
    for _ in range(3):
        anar(torch.randn(4, 32, 9, 9), (17, 17))
    folded, x = fold(anar), torch.randn(2, 32, 9, 9)
    assert norms(folded) == 0
    with torch.no_grad():
        assert torch.allclose(folded(x, (17, 17)), anar.eval()(x, (17, 17)), atol=1e-5)


def test_memory_format_and_type_stay():
    network = shake(TDAF(resnet(18), flows=2, anar_width=64)).to(memory_format=torch.channels_last).double()
    folded = fold(network)
    weight = folded.earlier[0]["stages"][0].layer1[0].conv1.weight
    assert weight.dtype == torch.float64 and weight.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_a_kernel_that_onednn_has_ordered_follows_its_weight(layout):
    network = shake(nn.Sequential(nn.Conv2d(3, 16, 1), nn.Conv2d(16, 32, 3, 2, 1, groups=2), nn.BatchNorm2d(32)))
    conv = fold(network)[1].to(memory_format=layout)
    x = torch.randn(2, 16, 9, 9)

    def check(conv: nn.Module) -> None:
        y, expected = conv(x), functional.conv2d(x, conv.weight, conv.bias, 2, 1, groups=2)
        torch.testing.assert_close(y, expected)
        assert y.stride() == expected.stride()

    check(conv)
    kernel = conv.packed
    assert (kernel is None) == (layout is torch.contiguous_format)
    check(conv)
    assert conv.packed is kernel
    conv.weight.mul_(2)
    check(conv)
    conv.load_state_dict({name: torch.randn_like(value) for name, value in conv.state_dict().items()}, assign=True)
    check(conv)
    check(copy.deepcopy(conv))
    check(torch.compile(conv, backend="eager", fullgraph=True))
    z = x.clone().requires_grad_()
    conv(z).sum().backward()
    assert z.grad is not None
    assert conv.double()(x.double()).dtype == torch.float64
    check(conv.float())
