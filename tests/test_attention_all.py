"""What holds for every attention mechanism in a backbone, and under TDAF. Each one's equations are in its own file."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from tdaf.errors import UserError
from tdaf.model.attention.placement import BRANCH, IMAGES, NAMES
from tdaf.model.backbones.mobilenet import mobilenet
from tdaf.model.backbones.resnet import resnet
from tdaf.model.backbones.vgg import vgg
from tdaf.model.flows import TDAF
from tdaf.model.fold import fold
from tdaf.model.pretrained import load
from tests.tiny import settle

torch.set_num_threads(1)

MECHANISMS = [name for name in NAMES if name != "none"]
CLIPS = [name for name in MECHANISMS if name not in IMAGES]
DEPTHS = {name: 18 if name == "resatt" else 50 for name in MECHANISMS}  # the larger one has every kind of place
NETWORKS = [(name, depth, 2) for name, depth in DEPTHS.items()] + [("sasa", 18, 2), ("tdam", 18, 2)]
NETWORKS += [(name, 18, 3) for name in CLIPS if name != "resatt"]
# what a mechanism adds to the weights of a plain network, which all of these keep
ADDED = {"se": ".attention.", "cbam": ".attention.", "tdam": ".top_down.", "abn": ".attention."}
ADDED |= {name: ".after." for name in ("nonlocal", "a2", "cgnl")}
# a batch norm of each that folding takes away, if torch.fx can follow the mechanism
FOLDED = {"nonlocal": "stages.2.layer3.0.after.norm", "a2": "stages.2.layer3.0.after.norm"}
FOLDED |= {name: "stages.2.layer3.4.bn3" for name in ("se", "cgnl", "abn")} | {"cbam": "stages.0.layer1.0.attention.norm"}
FOLDED |= {"aa": "stages.1.layer2.0.bn1", "sasa": "stages.1.layer2.0.bn1", "tdam": "stages.2.layer3.0.bn2"}


def tdaf(name: str, depth: int, flows: int, dims: int = 2) -> TDAF:
    torch.manual_seed(0)
    return TDAF(resnet(depth, width=8, attention=name, dims=dims).for_classes(4), flows=flows)


@pytest.mark.parametrize(("name", "depth", "dims"), NETWORKS)
def test_under_tdaf_every_flow_trains_on_odd_sizes(name: str, depth: int, dims: int) -> None:
    network = tdaf(name, depth, flows=3, dims=dims)
    x = torch.rand(2, 3, *[6] * (dims - 2), 65, 71)
    before = {n: b.clone() for n, b in network.named_buffers() if n.endswith("running_mean")}
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    for _ in range(2):  # in the first step of some only a last norm's weight learns, which starts at 0
        optimizer.zero_grad()
        maps = network(x)
        maps[-1].square().mean().backward()
        optimizer.step()
    assert [tuple(m.shape[-2:]) for m in maps] == [(17, 18), (9, 9), (5, 5), (3, 3)]
    silent = [n for n, p in network.named_parameters() if not p.grad.isfinite().all() or not p.grad.any()]
    assert silent == []
    after = dict(network.named_buffers())
    assert any(n.startswith("earlier.1.") for n in before)
    assert [n for n in before if torch.equal(before[n], after[n])] == []  # every flow's own statistics


@torch.no_grad()
@pytest.mark.parametrize("name", MECHANISMS)
def test_copies_states_formats_and_folding_give_the_same(name: str) -> None:
    network = settle(tdaf(name, DEPTHS[name], flows=2), size=64).eval()
    for parameter in (p for n, p in network.named_parameters() if ADDED.get(name, "?") in n):
        nn.init.normal_(parameter, 0.1, 0.3)  # none is the identity as it may start
    network, x = network.double(), torch.rand(1, 3, 45, 38).double()
    expected = network(x)[-1]
    other = tdaf(name, DEPTHS[name], flows=2).eval().double()
    assert not torch.allclose(other(x)[-1], expected)
    other.load_state_dict(network.state_dict())
    folded = fold(network)
    if name in FOLDED:
        assert isinstance(folded.get_submodule(FOLDED[name]), nn.Identity)
    for twin in (copy.deepcopy(network), other, folded):
        torch.testing.assert_close(twin(x)[-1], expected)
    last = network.to(memory_format=torch.channels_last)(x.to(memory_format=torch.channels_last))[-1]
    torch.testing.assert_close(last, expected)


@pytest.mark.parametrize("name", ADDED)
def test_weights_of_the_plain_network_load(name: str) -> None:
    torch.manual_seed(0)
    plain, ours = resnet(18, width=8), resnet(18, width=8, attention=name).for_classes(4)
    report = load(ours, plain.state_dict())
    assert report.missing and all(ADDED[name] in key for key in report.missing)
    assert [key for key in ours.state_dict() if ADDED[name] not in key] == list(plain.state_dict())
    torch.testing.assert_close(ours.stages[3].layer4[0].conv1.weight, plain.stages[3].layer4[0].conv1.weight)


@torch.no_grad()
@pytest.mark.parametrize(("name", "dims"), [("nonlocal", 2), ("nonlocal", 3), ("a2", 2), ("cgnl", 2)])
def test_what_comes_after_a_block_starts_as_the_identity(name: str, dims: int) -> None:
    torch.manual_seed(0)
    plain, ours = resnet(18, width=8, dims=dims), resnet(18, width=8, dims=dims, attention=name)
    load(ours, plain.state_dict())
    x = torch.rand(2, 3, *[9] * (dims - 2), 45, 38)
    for theirs, mine in zip(plain(x), ours(x), strict=True):
        torch.testing.assert_close(theirs, mine)


@pytest.mark.parametrize("name", [name for name in MECHANISMS if name not in BRANCH])
def test_backbones_without_a_mechanism_refuse_it(name: str) -> None:
    with pytest.raises(UserError, match=f"^attention={name}: not defined for MobileNet, which has none, se, cbam$"):
        mobilenet(attention=name)
    if name != "abn":
        with pytest.raises(UserError, match=f"^attention={name}: not defined for VGG, which has no blocks; give none or"):
            vgg(attention=name)


@pytest.mark.parametrize("name", IMAGES)
def test_what_is_defined_for_images_refuses_clips(name: str) -> None:
    with pytest.raises(UserError, match=rf"^attention={name}: defined for images, not for clips \(dims=3\)$"):
        resnet(18, attention=name, dims=3)


@pytest.mark.parametrize("name", ["aa", "sasa"])
def test_what_is_defined_for_plain_convolutions_refuses_groups(name: str) -> None:
    message = rf"^attention={name}: defined for plain convolutions, not for ResNeXt \(groups=32\)$"
    with pytest.raises(UserError, match=message):
        resnet(50, groups=32, width_per_group=4, attention=name)
