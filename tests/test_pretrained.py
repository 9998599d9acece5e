"""Weights by name: torchvision's and ours, into plain, attended, 3D and TDAF networks; and what is refused."""

from __future__ import annotations

from collections import OrderedDict
from functools import partial

import pytest
import torch
import torchvision
from torch import Tensor, nn

from tdaf.errors import UserError
from tdaf.model.attention.se_cbam import squeeze_excitation
from tdaf.model.backbones.mobilenet import mobilenet
from tdaf.model.backbones.resnet import resnet
from tdaf.model.backbones.vgg import vgg
from tdaf.model.flows import TDAF, MultiScale
from tdaf.model.pretrained import load
from tdaf.model.staged import Staged

torch.set_num_threads(1)


class Network(nn.Module):
    """A classifier with torchvision's names for its head."""

    def __init__(self, body: nn.Module, classes: int = 10) -> None:
        super().__init__()
        self.body = body
        layers = OrderedDict(flatten=nn.Flatten(2), fc=nn.Linear(body.widths[-1], classes))
        self.head = body.classifier(body.widths[-1], classes) if body.classifier else nn.Sequential(layers)


def draw(network: nn.Module) -> dict[str, Tensor]:
    """All values drawn, statistics included: the defaults 1 and 0 would hide a tensor that is not copied."""
    for tensor in network.state_dict().values():
        tensor.uniform_(0.5, 1.5) if tensor.is_floating_point() else tensor.fill_(7)
    return {name: tensor.clone() for name, tensor in network.state_dict().items()}


@pytest.fixture(scope="module")
def plain18() -> dict[str, Tensor]:
    torch.manual_seed(0)
    return draw(torchvision.models.resnet18(num_classes=10))


def test_head_of_other_classes_is_reported_and_left_alone(plain18):
    network = Network(resnet(18), classes=7)
    before = network.head.fc.weight.clone()
    report = load(network, plain18)
    assert report.mismatched == [("head.fc.weight", (10, 512), (7, 512)), ("head.fc.bias", (10,), (7,))]
    assert (report.missing, report.unexpected, len(report.loaded)) == ([], [], len(plain18) - 2)
    assert torch.equal(network.head.fc.weight, before)
    assert torch.equal(network.body.stages[2].layer3[1].bn2.running_var, plain18["layer3.1.bn2.running_var"])
    assert str(report).splitlines() == [
        "loaded 120 of 122 tensors",
        "of another shape, left alone (2): head.fc.weight 10x512 for 7x512, head.fc.bias 10 for 7",
    ]


def test_plain_weights_into_tdaf_give_every_flow_the_plain_statistics(plain18):
    network = Network(TDAF(resnet(18), flows=3))
    report = load(network, plain18)
    state = network.state_dict()
    flows = {0: 2, 1: 3}  # the stages that flows 1 and 2 of 3 have
    for flow, stages in flows.items():
        found = {n for n in state if n.startswith(f"body.earlier.{flow}.stages.")}
        names = {n.split(".", 5)[5] for n in found}
        expected = ["bn1.", *[f"layer{i}." for i in range(1, stages + 1)]]
        statistics = [n for n in plain18 if "running" in n or "tracked" in n]
        assert names == {n for n in statistics if n.startswith(tuple(expected))}
        assert all(torch.equal(state[n], plain18[n.split(".", 5)[5]]) for n in found)
    assert report.missing and all(".gates." in n for n in report.missing)
    assert all(".gates." in n for n in state if n not in report.loaded and not n.endswith("tracked"))
    assert report.unexpected == []
    first, last = network.body.earlier[0]["stages"][1].layer2[0].conv1, network.body.stages[1].layer2[0].conv1
    assert first.weight is last.weight and torch.equal(last.weight, plain18["layer2.0.conv1.weight"])


def test_our_checkpoints_between_plain_tdaf_and_multiscale():
    torch.manual_seed(0)
    with_tdaf = draw(Network(TDAF(resnet(18), flows=3)))
    same = Network(TDAF(resnet(18), flows=3))
    report = load(same, with_tdaf)
    assert (report.missing, report.unexpected, report.mismatched) == ([], [], [])
    assert all(torch.equal(tensor, with_tdaf[name]) for name, tensor in same.state_dict().items())

    plain = Network(resnet(18))
    report = load(plain, with_tdaf)
    assert report.missing == [] and report.mismatched == []
    assert report.unexpected and all(".gates." in n or ".earlier." in n for n in report.unexpected)
    assert all(torch.equal(tensor, with_tdaf[name]) for name, tensor in plain.state_dict().items())

    control = Network(MultiScale(resnet(18), flows=2))
    report = load(control, draw(plain))
    assert [name for name, *_ in report.mismatched] == ["head.fc.weight"]  # the concatenated features are wider
    bn = "layer2.1.bn1.running_mean"
    state = control.state_dict()
    assert torch.equal(state[f"body.earlier.0.stages.1.{bn}"], plain.state_dict()[f"body.stages.1.{bn}"])


def test_flows_are_matched_by_their_size():
    """Flow N-1 reads half the image whatever N is, so its statistics come from the checkpoint's flow N-1."""
    torch.manual_seed(0)
    three = draw(Network(TDAF(resnet(18), flows=3)))
    two = Network(TDAF(resnet(18), flows=2))
    load(two, three)
    key = "stages.1.layer2.0.bn1.running_mean"
    assert torch.equal(two.state_dict()[f"body.earlier.0.{key}"], three[f"body.earlier.1.{key}"])
    four = Network(TDAF(resnet(18), flows=4))
    load(four, three)
    state = four.state_dict()
    assert torch.equal(state[f"body.earlier.2.{key}"], three[f"body.earlier.1.{key}"])
    first = "stages.0.bn1.running_mean"
    assert torch.equal(state[f"body.earlier.0.{first}"], three[f"body.{first}"])


def test_new_attention_and_a_new_stem_may_differ(plain18):
    report = load(Network(resnet(18, attention=squeeze_excitation)), plain18)
    assert len(report.missing) == 8 * 4 and all(".attention." in name for name in report.missing)
    report = load(Network(resnet(18, stem="cifar")), plain18)
    assert report.mismatched == [("body.stages.0.conv1.weight", (64, 3, 7, 7), (64, 3, 3, 3))]


@pytest.mark.parametrize("prefix", ["module.", "network.", "model.module._orig_mod.backbone."])
def test_wrappers_prefixes_in_any_order_and_depth(plain18, prefix):
    """Of a Lightning module too, whose own parts stand beside the network."""
    network = Network(resnet(18))
    report = load(network, {"loss.weight": torch.ones(3), **{f"{prefix}{name}": t for name, t in plain18.items()}})
    assert (report.missing, report.mismatched, report.unexpected) == ([], [], ["loss.weight"])
    assert torch.equal(network.body.stages[3].layer4[1].bn2.running_var, plain18["layer4.1.bn2.running_var"])


def test_prefixes_of_our_own_checkpoints_and_of_parts_that_are_compiled():
    torch.manual_seed(0)
    state = draw(Network(TDAF(resnet(18), flows=3)))
    same = Network(TDAF(resnet(18), flows=3))
    report = load(same, {f"model.module.{n.replace('layer2.', 'layer2._orig_mod.')}": t for n, t in state.items()})
    assert (report.missing, report.unexpected, report.mismatched) == ([], [], [])
    assert all(torch.equal(tensor, state[name]) for name, tensor in same.state_dict().items())


def test_a_wrapped_checkpoint_of_another_architecture_is_refused(plain18):
    for build in (resnet(34), resnet(50)):
        with pytest.raises(UserError, match="another architecture"):
            load(Network(build), {f"module.{name}": tensor for name, tensor in plain18.items()})
    twice = {f"{student}.{name}": t for student in ("model", "backbone") for name, t in plain18.items()}
    with pytest.raises(UserError, match="checkpoint's backbone.* has no place"):  # which of the two is not guessed
        load(Network(resnet(18)), twice)


def test_old_checkpoints_without_batch_counters(plain18):
    network = Network(resnet(18))
    report = load(network, {name: t for name, t in plain18.items() if "tracked" not in name})
    assert report.missing == [] and network.body.stages[0].bn1.num_batches_tracked == 0


def test_equal_names_in_two_stages_are_never_mixed_up():
    stages = [nn.Sequential(nn.Conv2d(3, 3, 1)), nn.Sequential(nn.Conv2d(3, 3, 1))]
    body = Staged(stages, [3, 3], [1, 1])
    with pytest.raises(UserError, match="another architecture"):
        load(body, {"0.weight": torch.ones(3, 3, 1, 1), "0.bias": torch.ones(3)})
    report = load(body, {"stages.1.0.weight": torch.ones(3, 3, 1, 1), "stages.1.0.bias": torch.ones(3)})
    assert report.missing == ["stages.0.0.weight", "stages.0.0.bias"]
    assert stages[1][0].bias.sum() == 3 and stages[0][0].bias.sum() != 3


@pytest.mark.parametrize(
    ("build", "theirs", "message"),
    [
        (partial(resnet, 50), torchvision.models.resnet18, "layer1.0.conv1.weight is 64x64x3x3 in the checkpoint"),
        (partial(resnet, 50), torchvision.models.resnet101, "checkpoint's layer3.6.conv1.weight has no place"),
        (partial(resnet, 101), torchvision.models.resnet50, "network's layer3.6.conv1.weight is not in the ch"),
        (partial(resnet, 50), torchvision.models.vgg16, "begins with features.0.weight 64x3x3x3, the network"),
        (partial(vgg, 16), torchvision.models.vgg19, "features.19.weight is 512x256x3x3"),
        (mobilenet, torchvision.models.mobilenet_v2, "nothing of the backbone fits"),
        (
            partial(resnet, 50),
            lambda: Network(resnet(50, attention=squeeze_excitation)),
            r"0\.attention.* has no place",
        ),
    ],
)
def test_another_architecture_is_refused_whole(build, theirs, message):
    with torch.device("meta"):
        state = theirs().state_dict()
        network = Network(build())
    with pytest.raises(UserError, match="wrong checkpoint, or one of another architecture: .*" + message) as caught:
        load(network, state)
    assert "\n" not in str(caught.value)


def test_a_refused_checkpoint_changes_nothing():
    network = Network(resnet(18))
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    with pytest.raises(UserError):
        load(network, draw(torchvision.models.resnet34()))
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
