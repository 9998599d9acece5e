"""Weights by name: torchvision's and ours, into plain, attended, 3D and TDAF networks; what is refused; and 2D made
3D."""

import copy
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
from tdaf.model.inflate import inflate, inflate_weight
from tdaf.model.pretrained import load
from tdaf.model.staged import Staged


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


def small() -> Staged:
    """Two stages with every kind of layer whose output at the middle frame does not depend on the clip's ends."""
    first = nn.Sequential(
        OrderedDict(
            conv=nn.Conv2d(3, 8, 7, stride=2, padding=3, bias=False),
            bn=nn.BatchNorm2d(8, eps=1e-3, momentum=0.2),
            relu=nn.ReLU(inplace=True),
            maxpool=nn.MaxPool2d(3, stride=2, padding=1),
        )
    )
    second = nn.Sequential(
        nn.Conv2d(8, 12, 3, padding="same", groups=2),
        nn.Sequential(nn.BatchNorm2d(12), nn.Dropout2d(0.3)),
        nn.AvgPool2d(2, stride=1, ceil_mode=True, count_include_pad=False),
        nn.Conv2d(12, 4, 1),
    )
    staged = Staged([first, second], [8, 4], [4, 4])
    for tensor in staged.state_dict().values():
        if tensor.is_floating_point():
            tensor.uniform_(-1, 1) if tensor.ndim > 1 else tensor.uniform_(0.5, 1.5)
    return staged.eval()


def test_still_clip_gives_the_images_maps():
    flat = small()
    solid = inflate(copy.deepcopy(flat), stem=None)
    solid.stages[0].conv.stride = (1, 2, 2)
    x = torch.rand(2, 3, 37, 41)
    clip = x.unsqueeze(2).expand(-1, -1, 31, -1, -1)
    for ours, theirs in zip(solid(clip), flat(x), strict=True):
        torch.testing.assert_close(ours[:, :, ours.shape[2] // 2], theirs, rtol=1e-5, atol=1e-4)
        assert ours.shape[3:] == theirs.shape[2:]
    assert solid.dims == 3 and flat.dims == 2


def test_inflate_weight_is_a_literal_repetition():
    weight = torch.rand(5, 4, 3, 2)
    solid = inflate_weight(weight, (5, 4, 7, 3, 2))
    assert solid.shape == (5, 4, 7, 3, 2)
    for t in range(7):
        torch.testing.assert_close(solid[:, :, t], weight / 7, rtol=0, atol=0)
    solid[:, :, 0] = 0  # memory of its own, not one frame seen seven times
    assert solid[:, :, 1].any()


def test_batch_norm_and_settings_are_kept():
    flat = small()
    for parameter in flat.stages[0].parameters():
        parameter.requires_grad_(False)
    flat.stages[1].train()
    reference = copy.deepcopy(flat)
    solid = inflate(flat)
    bn, old = solid.stages[0].bn, reference.stages[0].bn
    assert type(bn) is nn.BatchNorm3d and (bn.eps, bn.momentum) == (1e-3, 0.2)
    for name, tensor in old.state_dict().items():
        assert torch.equal(bn.state_dict()[name], tensor)
    assert not any(p.requires_grad for p in solid.stages[0].parameters())
    assert all(p.requires_grad for p in solid.stages[1].parameters())
    assert not solid.stages[0].conv.training and solid.stages[1][0].training and solid.stages[1][1][1].training
    assert solid.stages[1][1][1].p == 0.3 and type(solid.stages[1][1][1]) is nn.Dropout3d
    assert solid.stages[1][0].groups == 2
    assert torch.equal(solid.stages[1][0].bias, reference.stages[1][0].bias)
    pool = solid.stages[1][2]
    assert pool.ceil_mode and not pool.count_include_pad


def test_resnet_has_haras_layout():
    """Hara et al. 2018, Table 1: all kernels cubes, conv1 7x7x7 with stride (1, 2, 2), the pool strides in time."""
    with torch.device("meta"):
        stages = resnet(50, dims=3).stages
        maps = resnet(50, dims=3)(torch.rand(2, 3, 16, 112, 112))
    assert stages[0].conv1.kernel_size == (7, 7, 7) and stages[0].conv1.stride == (1, 2, 2)
    assert stages[0].conv1.padding == (3, 3, 3)
    assert stages[0].maxpool.kernel_size == (3, 3, 3) and stages[0].maxpool.stride == (2, 2, 2)
    assert stages[1].layer2[0].conv2.stride == (2, 2, 2)
    assert stages[1].layer2[0].downsample[0].stride == (2, 2, 2)
    assert [tuple(m.shape[2:]) for m in maps] == [(8, 28, 28), (4, 14, 14), (2, 7, 7), (1, 4, 4)]


def test_vgg_has_c3ds_first_pool_and_mobilenet_spares_time_first():
    with torch.device("meta"):
        clip = torch.rand(2, 3, 16, 64, 64)
        assert [m.shape[2] for m in vgg(11, dims=3)(clip)] == [16, 8, 4, 2, 1]
        assert [m.shape[2] for m in mobilenet(dims=3)(clip)] == [16, 8, 4, 2, 1]
        assert [m.shape[2] for m in resnet(18, stem="cifar", dims=3)(clip)] == [16, 8, 4, 2]


def test_a_layer_without_twin_is_named():
    staged = Staged([nn.Sequential(nn.Conv2d(3, 4, 1), nn.InstanceNorm2d(4))], [4], [1])
    with pytest.raises(UserError, match="dims=3: InstanceNorm2d"):
        inflate(staged)


def test_new_3d_network_starts_at_3d_scale():
    """From scratch the 3D kernels are drawn as such, and differ from frame to frame."""
    weight = resnet(18, dims=3).stages[3].layer4[1].conv2.weight
    assert weight.std().item() == pytest.approx((2 / (512 * 27)) ** 0.5, rel=0.02)
    assert not torch.equal(weight[:, :, 0], weight[:, :, 1])
