"""What is done to a network with flows: they share every weight and keep their own statistics, and batch norm folds
into convolutions, with the same outputs to rounding and no norm left where one can go."""

import copy
import io

import pytest
import torch
from tiny import settle, tiny
from torch import Tensor, nn
from torchvision.models import mobilenet_v2, resnet18, resnext50_32x4d
from torchvision.ops import FrozenBatchNorm2d

from tdaf.model.attention.se_cbam import squeeze_excitation
from tdaf.model.backbones.mobilenet import mobilenet
from tdaf.model.backbones.resnet import resnet
from tdaf.model.flows import TDAF, MultiScale
from tdaf.model.fold import fold


def build(kind: type = TDAF) -> nn.Module:
    torch.manual_seed(0)
    return TDAF(tiny(), flows=3, anar=5, anar_width=64) if kind is TDAF else MultiScale(tiny(), flows=3)


def assert_shared(network: nn.Module) -> None:
    """Every Parameter of an earlier flow is the last flow's own, and none of its buffers is."""
    buffers = {id(b) for b in [*network.stages.buffers(), *network.gates.buffers()]}
    checked = 0
    for flow in network.earlier:
        for name, parameter in flow.named_parameters(remove_duplicate=False):
            assert parameter is network.get_parameter(name), name
            checked += 1
        assert buffers.isdisjoint(id(b) for b in flow.buffers())
    assert checked > 10


def assert_trains(network: nn.Module) -> None:
    """A step moves what the earlier flows compute: the first flow's stem is the network's stem."""
    network.train()
    x = torch.randn(2, 3, 33, 33, dtype=next(network.parameters()).dtype)
    before = network.earlier[0]["stages"][0].conv.weight.detach().clone()
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    network(x)[-1].square().mean().backward()
    optimizer.step()
    assert not torch.equal(network.earlier[0]["stages"][0].conv.weight, before)
    assert_shared(network)


def flows_differ(network: nn.Module) -> bool:
    return not torch.equal(network.stages[0].norm.running_mean, network.earlier[0]["stages"][0].norm.running_mean)


def replaced(network: nn.Module) -> nn.Module:
    """Converted in the way that gives a module new Parameters."""
    torch.__future__.set_overwrite_module_params_on_conversion(True)
    try:
        return nn.Sequential(network).to(torch.float64)[0]
    finally:
        torch.__future__.set_overwrite_module_params_on_conversion(False)


@pytest.mark.parametrize("kind", [TDAF, MultiScale])
@pytest.mark.parametrize(
    "change",
    [
        lambda n: n,
        lambda n: n.to(torch.float64),
        lambda n: n.double().float(),
        copy.deepcopy,
        lambda n: copy.deepcopy(nn.Sequential(n))[0],
        lambda n: nn.Sequential(n).double()[0],
        nn.SyncBatchNorm.convert_sync_batchnorm,
        lambda n: n.to(memory_format=torch.channels_last),
        lambda n: replaced(n),
    ],
    ids=["none", "double", "double-float", "deepcopy", "deepcopy-outside", "outside", "syncbn", "last", "replaced"],
)
def test_sharing_survives(kind, change):
    network = change(settle(build(kind)))
    assert_shared(network)
    assert flows_differ(network)
    if not any(isinstance(m, nn.SyncBatchNorm) for m in network.modules()):
        assert_trains(network)


@pytest.mark.parametrize("kind", [TDAF, MultiScale])
@pytest.mark.parametrize("assign", [False, True])
@pytest.mark.parametrize("outside", [False, True])
def test_load_state_dict(kind, assign, outside):
    source, target = settle(build(kind)), build(kind)
    wrap = nn.Sequential if outside else (lambda n: n)
    file = io.BytesIO()
    torch.save(wrap(source).state_dict(), file)
    file.seek(0)
    state = torch.load(file, weights_only=True)
    keys = list(state)
    result = wrap(target).load_state_dict(state, assign=assign)
    assert not result.missing_keys and not result.unexpected_keys
    assert list(state) == keys
    assert_shared(target)
    x = torch.randn(2, 3, 40, 33)
    for ours, theirs in zip(target.eval()(x), source.eval()(x), strict=True):
        assert torch.equal(ours, theirs)
    assert_trains(target)


def test_load_state_dict_reports_each_fault_once():
    state = build().state_dict()
    del state["stages.0.conv.weight"]
    del state["earlier.0.stages.0.norm.running_mean"]
    state["stages.0.spare"] = torch.zeros(1)
    result = build().load_state_dict(state, strict=False)
    assert result.missing_keys == ["stages.0.conv.weight", "earlier.0.stages.0.norm.running_mean"]
    assert result.unexpected_keys == ["stages.0.spare"]
    state = build().state_dict()
    state["stages.1.conv.weight"] = torch.zeros(1)
    with pytest.raises(RuntimeError, match="size mismatch") as caught:
        build().load_state_dict(state)
    assert str(caught.value).count("size mismatch") == 1


@pytest.mark.parametrize("assign", [False, True])
def test_meta_device(assign):
    source = settle(build())
    with torch.device("meta"):
        target = TDAF(tiny(), flows=3, anar=5, anar_width=64)
    assert_shared(target)
    if not assign:
        target = nn.Sequential(target).to_empty(device="cpu")[0]
        assert_shared(target)
    target.load_state_dict(source.state_dict(), assign=assign)
    assert_shared(target)
    x = torch.randn(2, 3, 40, 33)
    assert torch.equal(target.eval()(x)[-1], source.eval()(x)[-1])


def test_state_dict_is_clean():
    plain, network = tiny(), build()
    keys = list(network.state_dict())
    assert keys[: len(plain.state_dict())] == list(plain.state_dict())
    assert len(keys) == len(set(keys))
    buffers = {name for name, _ in network.named_buffers()}
    assert {key for key in keys if key.startswith("earlier.")} == {b for b in buffers if b.startswith("earlier.")}
    assert any(key.startswith("earlier.1.gates.2.") for key in keys)
    names = [name for name, _ in network.named_parameters()]
    assert not any(name.startswith("earlier.") for name in names)
    gates = sum(p.numel() for p in network.gates.parameters())
    assert sum(p.numel() for p in network.parameters()) == sum(p.numel() for p in plain.parameters()) + gates


def test_shapes_of_flows():
    network = TDAF(tiny(), flows=4, gated=[1, 3], anar_width=64)
    assert [len(flow["stages"]) for flow in network.earlier] == [1, 2, 3]
    assert [list(flow["gates"]) for flow in network.earlier] == [[], ["1"], ["1"]]
    assert list(network.gates) == ["1", "3"]
    shared = TDAF(tiny(), flows=4, norm="shared")
    assert len(shared.earlier) == 0 and not any(key.startswith("earlier") for key in shared.state_dict())


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


def test_memory_format_and_type_stay():
    network = shake(TDAF(resnet(18), flows=2, anar_width=64)).to(memory_format=torch.channels_last).double()
    folded = fold(network)
    weight = folded.earlier[0]["stages"][0].layer1[0].conv1.weight
    assert weight.dtype == torch.float64 and weight.is_contiguous(memory_format=torch.channels_last)
