"""The flows share every weight and keep their own statistics, whatever is done to the network."""

from __future__ import annotations

import copy
import io

import pytest
import torch
from tiny import settle, tiny
from torch import nn

from tdaf.model.flows import TDAF, MultiScale

torch.set_num_threads(1)


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
