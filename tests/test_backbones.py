"""The backbones against published counts, torchvision's own networks and the tables of their publications; how new
parameters start."""

from collections import OrderedDict
from functools import partial

import pytest
import torch
import torchvision
from torch import nn

from tdaf.errors import UserError
from tdaf.model.attention.se_cbam import squeeze_excitation
from tdaf.model.backbones.mobilenet import mobilenet
from tdaf.model.backbones.resnet import resnet
from tdaf.model.backbones.vgg import vgg
from tdaf.model.pretrained import load
from tdaf.model.staged import Staged, initialise


class Network(nn.Module):
    """A backbone with the classifier of its publication, or pooling and one linear layer."""

    def __init__(self, body: Staged, classes: int = 1000) -> None:
        super().__init__()
        self.body = body
        pool = nn.AdaptiveAvgPool2d(1) if body.dims == 2 else nn.AdaptiveAvgPool3d(1)
        layers = OrderedDict(avgpool=pool, flatten=nn.Flatten(), fc=nn.Linear(body.widths[-1], classes))
        self.head = body.classifier(body.widths[-1], classes) if body.classifier else nn.Sequential(layers)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.body(x)[-1])


def parameters(network: nn.Module) -> int:
    return sum(p.numel() for p in network.parameters())


def drawn(network: nn.Module) -> nn.Module:
    """The network from the meta device with all values drawn: the defaults 1 and 0 would hide a tensor not copied."""
    for tensor in network.to_empty(device="cpu").state_dict().values():
        if tensor.ndim > 1:
            bound = (6 / tensor[0].numel()) ** 0.5
            tensor.uniform_(-bound, bound)
        elif tensor.ndim == 1:
            tensor.uniform_(0.5, 1.5)
        else:
            tensor.fill_(7)
    return network


@pytest.mark.parametrize(
    ("build", "classes", "count"),
    [
        (partial(resnet, 50), 1000, 25_557_032),
        (partial(resnet, 101), 1000, 44_549_160),
        (partial(resnet, 152), 1000, 60_192_808),
        (partial(resnet, 50, groups=32, width_per_group=4), 1000, 25_028_904),
        (partial(resnet, 101, groups=32, width_per_group=8), 1000, 88_791_336),
        (partial(vgg, 16), 1000, 138_357_544),
        (partial(vgg, 19), 1000, 143_667_240),
        (mobilenet, 1000, 4_231_976),
        (partial(resnet, 50, dims=3), 400, 47_018_576),
        (partial(resnet, 101, dims=3), 400, 86_064_720),
    ],
)
def test_published_parameter_counts(build, classes, count):
    with torch.device("meta"):
        assert parameters(Network(build(), classes)) == count


@pytest.mark.parametrize(
    ("build", "theirs"),
    [
        (partial(resnet, 18), torchvision.models.resnet18),
        (partial(resnet, 34), torchvision.models.resnet34),
        (partial(resnet, 50), torchvision.models.resnet50),
        (partial(resnet, 152), torchvision.models.resnet152),
        (partial(resnet, 50, groups=32, width_per_group=4), torchvision.models.resnext50_32x4d),
        (partial(resnet, 101, groups=32, width_per_group=8), torchvision.models.resnext101_32x8d),
        (partial(vgg, 11), torchvision.models.vgg11),
        (partial(vgg, 13, batch_norm=True), torchvision.models.vgg13_bn),
        (partial(vgg, 16), torchvision.models.vgg16),
        (partial(vgg, 19), torchvision.models.vgg19),
    ],
)
def test_names_and_shapes_are_torchvisions(build, theirs):
    with torch.device("meta"):
        ours, theirs = Network(build()).state_dict(), theirs().state_dict()
    names = [name.split(".", 3)[3] if name.startswith("body.") else name.split(".", 1)[1] for name in ours]
    shapes = {name: t.shape for name, t in theirs.items()}
    assert dict(zip(names, (t.shape for t in ours.values()), strict=True)) == shapes


@pytest.mark.parametrize(
    ("build", "theirs"),
    [
        (partial(resnet, 18), torchvision.models.resnet18),
        (partial(resnet, 50), torchvision.models.resnet50),
        (partial(resnet, 50, groups=32, width_per_group=4), torchvision.models.resnext50_32x4d),
        (partial(vgg, 11), torchvision.models.vgg11),
        (partial(vgg, 16), torchvision.models.vgg16),
    ],
)
def test_cut_network_equals_torchvisions(build, theirs):
    with torch.device("meta"):
        theirs, ours = theirs(num_classes=10), Network(build(), classes=10)
    theirs, ours = drawn(theirs), ours.to_empty(device="cpu")
    report = load(ours, theirs.state_dict())
    assert (report.missing, report.unexpected, report.mismatched) == ([], [], [])
    x = torch.rand(2, 3, 65, 63)
    for training in (False, True):
        outputs, gradients = [], []
        for network in (theirs.train(training), ours.train(training)):
            torch.manual_seed(1)  # VGG's dropout
            outputs.append(network(x))
            gradients.append(torch.autograd.grad(outputs[-1].square().sum(), next(network.parameters()))[0])
        assert torch.equal(*outputs) and outputs[0].std() > 0
        assert torch.equal(*gradients) and gradients[0].std() > 0
    for a, b in zip(ours.buffers(), theirs.buffers(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize(
    ("build", "widths", "first"),
    [
        (partial(resnet, 18), [64, 128, 256, 512], 4),
        (partial(resnet, 50), [256, 512, 1024, 2048], 4),
        (partial(resnet, 18, stem="cifar"), [64, 128, 256, 512], 1),
        (partial(vgg, 11), [64, 128, 256, 512, 512], 2),
        (mobilenet, [64, 128, 256, 512, 1024], 2),
        (partial(mobilenet, stem="cifar"), [64, 128, 256, 512, 1024], 1),
    ],
)
def test_widths_and_strides_are_those_of_the_maps(build, widths, first, dims):
    with torch.device("meta"):
        staged = build(dims=dims)
        x = torch.rand(2, 3, *[16] * (dims - 2), 96, 64)
        maps = staged.eval()(x)
    assert staged.dims == dims and len(maps) == len(staged.stages)
    assert [m.shape[1] for m in maps] == staged.widths
    assert [tuple(m.shape[-2:]) for m in maps] == [(96 // s, 64 // s) for s in staged.strides]
    assert staged.widths == widths and staged.strides[0] == first


@pytest.mark.parametrize("build", [partial(resnet, 18), partial(resnet, 50, attention=squeeze_excitation), mobilenet])
def test_every_stage_ends_in_its_only_last_relu(build):
    staged = build().eval()
    x = torch.rand(1, 3, 64, 64)
    for stage in staged.stages:
        assert type(stage[-1]) is nn.ReLU and stage[-1].inplace
        before = stage[:-1](x)
        assert before.min() < 0
        x = stage[-1](before)


def test_mobilenet_is_table_1():
    """Howard et al. 2017, Table 1: filter shape, input size and stride of each layer."""
    table = [((32, 3, 3, 3), 224, 2)]
    for inputs, outputs, size, stride in [
        (32, 64, 112, 1),
        (64, 128, 112, 2),
        (128, 128, 56, 1),
        (128, 256, 56, 2),
        (256, 256, 28, 1),
        (256, 512, 28, 2),
        *[(512, 512, 14, 1)] * 5,
        (512, 1024, 14, 2),
        (1024, 1024, 7, 1),  # printed as stride 2, which its own output size of 7 contradicts
    ]:
        table += [((inputs, 1, 3, 3), size, stride), ((outputs, inputs, 1, 1), size // stride, 1)]
    with torch.device("meta"):
        staged = mobilenet()
        layers: list[tuple[tuple[int, ...], int, int]] = []
        macs: dict[str, int] = {"full": 0, "depthwise": 0, "pointwise": 0}
        for module in staged.modules():
            if isinstance(module, nn.Conv2d):
                module.register_forward_hook(partial(_record, layers, macs))
        staged(torch.rand(1, 3, 224, 224))
    assert layers == table
    total = sum(macs.values()) + 1024 * 1000
    assert round(total / 1e6) == 569  # Table 4
    shares = {kind: round(100 * count / total, 1) for kind, count in macs.items()}
    assert shares == {"pointwise": 94.9, "depthwise": 3.1, "full": 1.9}  # Table 2 prints 94.86, 3.06 and 1.19


def _record(layers, macs, conv, inputs, output):
    layers.append((tuple(conv.weight.shape), inputs[0].shape[-1], conv.stride[0]))
    kind = "depthwise" if conv.groups > 1 else "pointwise" if conv.kernel_size == (1, 1) else "full"
    macs[kind] += conv.weight.numel() * output.shape[-2] * output.shape[-1]


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: resnet(51), "depth=51: ResNet has the depths 18, 34, 50, 101, 152"),
        (lambda: resnet(18, groups=32, width_per_group=4), "a depth of 50 or more"),
        (lambda: resnet(50, dims=4), "dims=4"),
        (lambda: vgg(12), "depth=12: VGG has the depths 11, 13, 16, 19"),
    ],
)
def test_wrong_settings_are_one_line(build, message):
    with torch.device("meta"), pytest.raises(UserError, match=message) as caught:
        build()
    assert "\n" not in str(caught.value)


def test_initialise_is_kaiming_fan_out():
    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.BatchNorm2d(4)

        def reset_parameters(self) -> None:
            nn.init.zeros_(self.norm.weight)

    conv, deconv = nn.Conv2d(64, 128, 3, groups=2), nn.ConvTranspose2d(256, 64, 4)
    linear, norm, own = nn.Linear(2000, 10), nn.BatchNorm2d(8), Own()
    for module in (conv, deconv, linear, norm, own.norm):
        for parameter in module.parameters():
            nn.init.constant_(parameter, 5)
    norm.running_var.fill_(9)
    torch.manual_seed(0)
    initialise(nn.Sequential(conv, nn.Sequential(deconv), linear, norm, own))
    assert conv.weight.std().item() == pytest.approx((2 / (128 * 9)) ** 0.5, rel=0.02)
    assert deconv.weight.std().item() == pytest.approx((2 / (64 * 16)) ** 0.5, rel=0.02)
    assert linear.weight.std().item() == pytest.approx(0.01, rel=0.02)
    assert not any(layer.bias.any() for layer in (conv, deconv, linear, norm))
    assert torch.equal(norm.weight, torch.ones(8)) and torch.equal(norm.running_var, torch.ones(8))
    assert not own.norm.weight.any()
