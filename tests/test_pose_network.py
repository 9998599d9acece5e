"""SimplePose's network: its size, its start, TDAF through the deconvolutions, and weights by name."""

import copy
import re

import pytest
import torch
import torchvision
from literal import assert_near, literal
from tiny import tiny
from torch import nn

from tasks.pose.simplepose import PoseNetwork, deconvolved
from tdaf.errors import UserError
from tdaf.model.backbones.resnet import resnet
from tdaf.model.flows import TDAF, MultiScale
from tdaf.model.normalise import Normalise
from tdaf.model.pretrained import load
from tdaf.model.staged import Staged

ATTENDED = dict(flows=3, gated="appended", anar_width=32)


def pose(body: Staged | TDAF | MultiScale, key_points: int = 17) -> PoseNetwork:
    return PoseNetwork(body, key_points, Normalise([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]))


def count(network: nn.Module) -> int:
    return sum(p.numel() for p in network.parameters())


def test_published_parameters():
    with torch.device("meta"):
        plain = pose(deconvolved(resnet(50), [256] * 3))
        assert count(plain) == 33_999_697
        # Table 1 with c = 512 on two maps of 256 channels
        gate = (256 * 64 + 128) + (64 * 16 * 16 + 32) + (16 + 1)
        assert count(pose(TDAF(deconvolved(resnet(50), [256] * 3), gated="appended"))) == 33_999_697 + 2 * gate
        # and on all maps below the last: 164,371 is that of the first three (design of ANAR)
        more = 2048 * 64 + 128 + 64 * 16 * 16 + 32 + 17
        everywhere = pose(TDAF(deconvolved(resnet(50), [256] * 3), gated="all"))
        assert count(everywhere) == 33_999_697 + 164_371 + more + 2 * gate


@pytest.mark.parametrize(("size", "maps"), [((256, 192), (64, 48)), ((384, 288), (96, 72))])
def test_maps_are_a_quarter_of_the_input(size, maps):
    with torch.device("meta"):
        network = pose(TDAF(deconvolved(resnet(18), [256] * 3), **ATTENDED)).to("meta")
    assert (network.body.strides, network.stride) == ([4, 8, 16, 32, 16, 8, 4], 4)
    assert network.body.widths == [64, 128, 256, 512, 256, 256, 256]
    assert network(torch.empty(2, 3, *size, dtype=torch.uint8, device="meta")).shape == (2, 17, *maps)
    assert network(torch.empty(2, 2, 3, *size, dtype=torch.uint8, device="meta")).shape == (2, 2, 17, *maps)


def test_first_weights():
    network = pose(TDAF(deconvolved(resnet(18), [256, 128]), **ATTENDED))
    assert isinstance(network.head, nn.Conv2d) and network.head.bias.abs().sum() == 0
    assert network.head.weight.std().item() == pytest.approx(0.001, rel=0.1)
    for stage in network.body.stages[4:]:
        assert stage.deconv.weight.std().item() == pytest.approx(0.001, rel=0.02) and stage.deconv.bias is None
        assert (stage.norm.weight == 1).all() and (stage.norm.bias == 0).all() and stage.norm.momentum == 0.1
        assert type(stage[-1]) is nn.ReLU


def test_views_are_evaluated_each_by_itself():
    network = pose(TDAF(deconvolved(tiny(), [32] * 2), **ATTENDED), key_points=5).eval()
    x = torch.randint(0, 256, (2, 2, 3, 64, 48), dtype=torch.uint8)
    together = network(x)
    for view in range(2):
        torch.testing.assert_close(together[:, view], network(x[:, view]))


@pytest.mark.parametrize(("gated", "numbers"), [("appended", [5, 6]), ("all", [1, 2, 3, 4, 5, 6]), ([2, 6], [2, 6])])
def test_tdaf_with_appended_stages_equals_the_equations(gated, numbers):
    plain = deconvolved(tiny(), [32, 64, 32]).double()
    tdaf = TDAF(copy.deepcopy(plain), flows=3, gated=gated, anar_width=32).double()
    assert sorted(map(int, tdaf.gates)) == numbers
    x = torch.randn(2, 3, 64, 48, dtype=torch.float64)
    expected, masks, _ = literal(plain, tdaf, x, 3, "area", numbers, 0.5, True)
    # a gate at a stage of flow n where flow n-1 has it too: flows 2 and 3, which follow 5 and 6 stages
    assert len(masks) == sum(n <= 5 for n in numbers) + sum(n <= 6 for n in numbers)
    for ours, theirs in zip(tdaf(x), expected, strict=True):
        assert_near(ours, theirs)


@pytest.mark.parametrize(
    ("staged", "gated", "message"),
    [
        (tiny(), "appended", "gated=appended: this network has no appended stages; give all or a list of stages"),
        (deconvolved(tiny(), [32]), "appended", "gated=appended: .* only one appended stage, the last, which has no"),
        (deconvolved(tiny(), [32, 32]), "some", "gated=some: must be all, appended or a list of stages between 1"),
        (deconvolved(tiny(), [32, 32]), [6], "between 1 and 5; the last stage has no gate"),
    ],
)
def test_gates_that_cannot_be(staged, gated, message):
    with pytest.raises(UserError, match=message) as caught:
        TDAF(staged, flows=2, gated=gated)
    assert "\n" not in str(caught.value)


def test_backbones_that_deconvolutions_do_not_fit():
    with pytest.raises(UserError, match="deconvolutions=.*: give the channels of each deconvolution"):
        deconvolved(tiny(), [256, 0])
    with pytest.raises(UserError, match=r"deconvolutions=\[8, 8, 8, 8, 8\]: .* of stride 16, there can be 4"):
        deconvolved(tiny(), [8] * 5)
    with pytest.raises(UserError, match="dims=3: key points are found in images"):
        deconvolved(tiny(3), [8])


def drawn(network: nn.Module) -> dict[str, torch.Tensor]:
    for tensor in network.state_dict().values():
        tensor.uniform_(0.5, 1.5) if tensor.is_floating_point() else tensor.fill_(7)
    return {name: tensor.clone() for name, tensor in network.state_dict().items()}


@pytest.fixture(scope="module")
def plain18() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return drawn(torchvision.models.resnet18(num_classes=10))


def test_weights_of_torchvision(plain18):
    network = pose(TDAF(deconvolved(resnet(18), [32] * 3), **ATTENDED))
    head = network.head.weight.clone()
    report = load(network, plain18)
    own = ("body.stages.4.", "body.stages.5.", "body.stages.6.", "body.gates.", "head.")
    statistics = {f"body.earlier.{flow}.{part}" for flow in (0, 1) for part in ("stages.4.", "stages.5.", "gates.")}
    assert all(name.startswith((*own, *statistics)) for name in report.missing)
    assert report.unexpected == ["fc.weight", "fc.bias"] and report.mismatched == []
    body = network.body
    assert torch.equal(body.stages[3].layer4[1].conv2.weight, plain18["layer4.1.conv2.weight"])
    for stages in (body.earlier[0]["stages"], body.earlier[1]["stages"], body.stages):  # all flows have all four stages
        assert torch.equal(stages[3].layer4[1].bn2.running_var, plain18["layer4.1.bn2.running_var"])
        assert (stages[4].norm.running_var == 1).all()
    assert torch.equal(network.head.weight, head)


class Classifier(nn.Module):
    """As task=imagenet has it."""

    def __init__(self, body: TDAF) -> None:
        super().__init__()
        self.body, self.head = body, nn.Sequential()
        self.head.fc = nn.Linear(body.widths[-1], 10)


@pytest.mark.parametrize("gated", ["appended", "all"])
def test_our_own_checkpoint_of_classification_with_tdaf(gated):
    """Its earlier flows lack the backbone's last stages. Those of pose have them, with the last flow's statistics."""
    theirs = drawn(Classifier(TDAF(resnet(18), flows=3, anar_width=32)))
    network = pose(TDAF(deconvolved(resnet(18), [32] * 3), flows=3, gated=gated, anar_width=32))
    report = load(network, theirs)
    state = network.state_dict()
    norm = {1: "layer1.0.bn1", 2: "layer2.0.bn1", 3: "layer3.0.bn1", 4: "layer4.0.bn1"}
    had = {0: 2, 1: 3}  # flow -> stages of it in the checkpoint
    for flow, stages in had.items():
        for stage, layer in norm.items():
            tail = f"stages.{stage - 1}.{layer}.running_mean"
            source = f"body.earlier.{flow}.{tail}" if stage <= stages else f"body.{tail}"
            assert torch.equal(state[f"body.earlier.{flow}.{tail}"], theirs[source])
    assert all(torch.equal(state[n], theirs[n]) for n in state if n.startswith("body.stages.") and int(n[12]) < 4)
    new = r"body\.(earlier\.\d\.)?(stages\.[456]|gates\.(\d))\.|head\.(weight|bias)$"
    matches = [re.match(new, name) for name in report.missing]
    assert all(matches) and report.mismatched == []
    gates = {match[3] for match in matches} - {None}
    others = [name for name in report.unexpected if not name.startswith("head.fc.")]
    if gated == "appended":  # the checkpoint's gates, statistics included, have no place
        assert gates == {"5", "6"} and others and all(".gates." in name for name in others)
    else:
        assert gates == {"4", "5", "6"} and others == []
        assert torch.equal(state["body.gates.3.trans.0.weight"], theirs["body.gates.3.trans.0.weight"])
