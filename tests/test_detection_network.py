"""FCOS's network: the published counts, any backbone and any size, and torchvision's outputs with its weights."""

import pytest
import torch
from torch import nn
from torchvision_fcos import CLASSES, MEAN, STD, images, objects, pair, run_theirs

from tasks.detection.fcos import VARIANTS, FcosNetwork, Head
from tdaf.errors import UserError
from tdaf.measure import gflops, parameters
from tdaf.model.backbones.mobilenet import mobilenet
from tdaf.model.backbones.resnet import resnet
from tdaf.model.backbones.vgg import vgg
from tdaf.model.flows import TDAF, MultiScale
from tdaf.model.freeze import fix_batch_norm, freeze_stages
from tdaf.model.normalise import Normalise
from tdaf.model.staged import Staged


def small(body: Staged | None = None, variant: str = "improved", classes: int = 3) -> FcosNetwork:
    body = TDAF(resnet(18, width=8), flows=3, anar_width=32) if body is None else body
    return FcosNetwork(body, classes, VARIANTS[variant], Normalise(MEAN, STD), channels=16, convs=1)


def published(depth: int, flows: int, anar: int = 3, variant: str = "original") -> FcosNetwork:
    """As the paper's Table 4 counts them: batch norm frozen without attention, its affine part trained with it."""
    with torch.device("meta"):
        body = TDAF(resnet(depth), flows=flows, anar=anar)
        fix_batch_norm(body, "frozen" if flows == 1 else "affine")
        freeze_stages(body, 1)
        return FcosNetwork(body, 80, VARIANTS[variant], Normalise(MEAN, STD)).to("meta")


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize(("depth", "expected"), [(50, 32_244_250), (101, 51_184_154)])
def test_parameters_of_the_plain_detectors(depth, expected, variant):
    count = parameters(published(depth, 1, variant=variant))
    assert count.total == expected
    assert count.frozen == 9_408 + 212_992  # convolutions of the stem and of res2


@pytest.mark.parametrize(
    ("depth", "flows", "anar", "millions"),
    [(50, 3, 3, 32.462), (50, 3, 5, 32.885), (101, 3, 3, 51.454), (101, 4, 3, 51.454), (101, 3, 5, 51.877)],
)
def test_parameters_with_attention(depth, flows, anar, millions):
    assert round(parameters(published(depth, flows, anar)).total / 1e6, 3) == millions


def test_gflops_of_tdaf_over_plain():
    x = torch.empty(1, 3, 800, 1344, device="meta")
    plain, tdaf = gflops(published(50, 1), x), gflops(published(50, 3), x)
    assert tdaf.rest == pytest.approx(plain.rest)
    assert tdaf.total / plain.total == pytest.approx(1.096, abs=0.005)


BACKBONES = {
    "res": (lambda: resnet(18, width=8), [8, 16, 32, 64, 128]),
    "small stem": (lambda: resnet(18, width=8, stem="small"), [4, 8, 16, 32, 64]),
    "cifar stem": (lambda: resnet(18, width=8, stem="cifar"), [2, 4, 8, 16, 32]),
    "vgg": (lambda: vgg(11), [8, 16, 32, 64, 128]),
    "mobile": (lambda: mobilenet(), [8, 16, 32, 64, 128]),
    "tdaf": (lambda: TDAF(resnet(18, width=8), flows=4, anar=5, anar_width=32), [8, 16, 32, 64, 128]),
    "multiscale": (lambda: MultiScale(resnet(18, width=8), flows=3), [8, 16, 32, 64, 128]),
}


@pytest.mark.parametrize("name", BACKBONES)
def test_any_backbone_and_odd_sizes(name):
    build, strides = BACKBONES[name]
    torch.manual_seed(0)
    network = small(build()).eval()
    for size in ((128, 160), (75, 133)):
        with torch.no_grad():
            outputs = network(torch.randint(0, 256, (2, 3, *size), dtype=torch.uint8))
        assert outputs["strides"] == strides
        for key, channels in (("logits", 3), ("boxes", 4), ("centreness", 1)):
            shapes = [tuple(x.shape) for x in outputs[key]]
            # a max-pool of VGG loses an odd last row, which a strided convolution keeps
            smallest = [tuple(side // s if name == "vgg" else -(-side // s) for side in size) for s in strides[:3]]
            for _ in range(2):
                smallest.append(tuple(-(-side // 2) for side in smallest[-1]))
            assert shapes == [(2, channels, *side) for side in smallest]
        assert all(x.isfinite().all() for key in ("logits", "boxes", "centreness") for x in outputs[key])


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (Staged([nn.Identity()] * 2, [3, 3], [8, 16]), r"this one has dims=2 and strides 8, 16$"),
        (Staged([nn.Identity()] * 3, [3] * 3, [8, 16, 16]), r"this one has dims=2 and strides 8, 16, 16$"),
        (Staged([nn.Identity()] * 3, [3] * 3, [8, 16, 32], dims=3), r"this one has dims=3 and strides 8, 16, 32$"),
    ],
)
def test_backbones_without_a_pyramid_are_refused(body, said):
    with pytest.raises(UserError, match=said):
        small(body)


def test_names_in_the_state_dict():
    network = small()
    names = list(network.state_dict())
    plain = [f"body.{name}" for name in resnet(18, width=8).state_dict()]
    assert names[: len(plain)] == plain
    assert {name.split(".")[0] for name in names} == {"body", "neck", "head"}


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_start_is_the_published_one(variant):
    head = Head(80, [8, 16, 32, 64, 128], VARIANTS[variant])
    with torch.no_grad():
        outputs = head([torch.randn(1, 256, side, side) for side in (8, 4, 2, 1, 1)])
    probability = torch.cat([x.sigmoid().flatten() for x in outputs["logits"]])
    assert probability.mean() == pytest.approx(0.01, rel=0.2) and probability.max() < 0.1
    for name, part in head.named_modules():
        if isinstance(part, nn.Conv2d):
            assert part.weight.std().item() == pytest.approx(0.01, rel=0.1)
            assert part.bias is not None and (name == "logits" or not part.bias.any())
        if isinstance(part, nn.GroupNorm):
            assert part.num_groups == 32
    assert torch.equal(head.scales, torch.ones(5))


def test_outputs_are_those_of_torchvision_with_its_weights():
    """Backbone, pyramid and head; distances there are in strides, here in pixels."""
    theirs, ours = pair()
    given = run_theirs(theirs, *objects())[1]["outputs"]
    outputs = ours.train()(images()[1])
    per_level = [x[0, 0].numel() for x in outputs["logits"]]
    for key, name in (("logits", "cls_logits"), ("boxes", "bbox_regression"), ("centreness", "bbox_ctrness")):
        for x, expected, stride in zip(outputs[key], given[name].split(per_level, 1), outputs["strides"], strict=True):
            x = x.flatten(2).transpose(1, 2) / (stride if key == "boxes" else 1)
            assert expected.std() > 0.01
            torch.testing.assert_close(x, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("variant", VARIANTS)
def test_each_level_has_a_scale_of_its_own_before_the_activation(variant):
    head = Head(CLASSES, [8, 16, 32], VARIANTS[variant], 16, 1)
    levels = [torch.randn(2, 16, 6, 6) for _ in range(3)]
    before = head(levels)
    with torch.no_grad():
        head.scales.copy_(torch.tensor([1.0, 2.0, 3.0]))
    after = head(levels)
    for scale, stride, one, other in zip((1, 2, 3), (8, 16, 32), before["boxes"], after["boxes"], strict=True):
        if VARIANTS[variant].normalised_targets:
            torch.testing.assert_close(other, one * scale)
            assert one.min() == 0 and 0 < one.max() < 2 * stride
        else:
            torch.testing.assert_close(other, one**scale)
            assert one.min() > 0 and one.log().abs().max() < 2
    assert all(torch.equal(a, b) for a, b in zip(before["logits"], after["logits"], strict=True))


def test_the_centreness_stands_on_the_tower_of_its_line():
    for variant, tower in (("original", "class_tower"), ("improved", "box_tower")):
        head = Head(CLASSES, [8], VARIANTS[variant], 16, 1)
        head([torch.randn(1, 16, 4, 4)])["centreness"][0].sum().backward()
        with_gradient = {name for name, p in head.named_parameters() if p.grad is not None}
        assert {name.split(".")[0] for name in with_gradient} == {tower, "centreness"}


@pytest.mark.parametrize("variant", VARIANTS)
def test_boxes_are_in_full_precision_under_autocast(variant):
    network = small(variant=variant).eval()
    nn.init.constant_(network.head.boxes.bias, 5.0)  # e^5 = 148 pixels, or 5 strides
    x = torch.randint(0, 256, (1, 3, 64, 96), dtype=torch.uint8)
    with torch.no_grad():
        exact = network(x)
        with torch.autocast("cpu", torch.bfloat16):
            short = network(x)
    assert all(x.dtype == torch.bfloat16 for x in short["logits"])
    for a, b in zip(short["boxes"], exact["boxes"], strict=True):
        assert a.dtype == torch.float32
        assert ((a - b) / b).abs().max() < 0.008  # bfloat16 steps by 1/32 around 5: up to 1.6 % off
