"""FCOS's targets and losses against torchvision's (improved) and a literal transcription (both variants)."""

import math
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any

import pytest
import torch
import torch.distributed as td
from detection_scene import CLASSES, STRIDES, drawn, scene, shares
from torch import Tensor
from torchvision.models.detection._utils import BoxLinearCoder
from torchvision.ops import generalized_box_iou_loss
from torchvision_fcos import images, objects, pair, run_theirs

from tasks.detection.fcos import (
    BACKGROUND,
    VARIANTS,
    FcosNetwork,
    assign,
    centreness,
    flat,
    giou_loss,
    locations,
    losses,
)
from tdaf.engine import dist
from tdaf.model.backbones.resnet import resnet
from tdaf.model.flows import TDAF
from tdaf.model.freeze import fix_batch_norm, freeze_stages
from tdaf.model.normalise import Normalise


def test_locations_and_ranges_are_the_published_ones():
    where = locations(drawn(1, (100, 130)))
    assert len(where.points) == 13 * 17 + 7 * 9 + 4 * 5 + 2 * 3 + 2
    assert where.points[:2].tolist() == [[4, 4], [12, 4]] and where.points[17].tolist() == [4, 12]
    assert where.points[-2:].tolist() == [[64, 64], [192, 64]]
    ranges = {int(stride): tuple(both) for stride, both in zip(where.strides, where.ranges.tolist(), strict=True)}
    assert ranges == {8: (-1, 64), 16: (64, 128), 32: (128, 256), 64: (256, 512), 128: (512, math.inf)}


def test_a_furthest_side_at_the_end_of_a_range_belongs_to_both_levels():
    boxes = [torch.tensor([[12.0 - 8, 8.0, 12.0 + 64, 24.0]])]  # from the cell at (12, 12): 8, 4, 64, 12
    targets = assign(locations(drawn(1)), boxes, [torch.tensor([1])], 0.0)
    where = locations(drawn(1))
    own = targets.labels[0] == 1
    found = {(int(s), *p.tolist()) for s, p in zip(where.strides[own], where.points[own], strict=True)}
    assert (8, 12, 12) in found and (8, 4, 12) not in found  # on the box's side is not inside
    assert (16, 8, 8) not in found and (8, 20, 12) in found


def literal_targets(
    x: float, y: float, stride: int, radius: float, boxes: list, labels: list
) -> tuple[int, list[float]]:
    """The rules for one location, a box at a time."""
    limits = {8: (-1, 64), 16: (64, 128), 32: (128, 256), 64: (256, 512), 128: (512, math.inf)}[stride]
    chosen, smallest = (BACKGROUND, [1.0] * 4), math.inf
    for (x0, y0, x1, y1), label in zip(boxes, labels, strict=True):
        distances = [x - x0, y - y0, x1 - x, y1 - y]
        if radius:
            cx, cy, reach = (x0 + x1) / 2, (y0 + y1) / 2, radius * stride
            left, top = max(x0, cx - reach), max(y0, cy - reach)
            right, bottom = min(x1, cx + reach), min(y1, cy + reach)
        else:
            left, top, right, bottom = x0, y0, x1, y1
        inside = left < x < right and top < y < bottom
        area = (x1 - x0) * (y1 - y0)
        if inside and limits[0] <= max(distances) <= limits[1] and area < smallest:
            chosen, smallest = (label, distances), area
    return chosen


def literal_losses(
    outputs: dict[str, Any], boxes: list[Tensor], labels: list[Tensor], variant: str
) -> dict[str, float]:
    """Both lines in plain Python, location by location."""
    sums, positives, weights = Counter(), 0, 0.0
    for image in range(len(boxes)):
        for level, stride in enumerate(STRIDES):
            maps = {name: outputs[name][level][image].tolist() for name in ("logits", "boxes", "centreness")}
            for i, j in ((i, j) for i in range(len(maps["logits"][0])) for j in range(len(maps["logits"][0][0]))):
                label, target = literal_targets(
                    j * stride + stride // 2,
                    i * stride + stride // 2,
                    stride,
                    1.5 if variant == "improved" else 0.0,
                    boxes[image].tolist(),
                    labels[image].tolist(),
                )
                for k in range(CLASSES):
                    p = 1 / (1 + math.exp(-maps["logits"][k][i][j]))
                    focal = 0.25 * (1 - p) ** 2 * -math.log(p) if k == label else 0.75 * p**2 * -math.log(1 - p)
                    sums["classification"] += focal
                if label == BACKGROUND:
                    continue
                left, top, right, bottom = target
                ratio = min(left, right) / max(left, right) * min(top, bottom) / max(top, bottom)
                weight, z = math.sqrt(ratio), maps["centreness"][0][i][j]
                positives, weights = positives + 1, weights + weight
                sums["centreness"] += weight * math.log(1 + math.exp(-z)) + (1 - weight) * math.log(1 + math.exp(z))
                found = [maps["boxes"][side][i][j] for side in range(4)]
                sums["box"] += weight * literal_box_loss(found, target, variant)
    assert positives > 20
    by = {"classification": positives, "centreness": positives, "box": weights}
    return {name: sums[name] / by[name] for name in by}


def literal_box_loss(found: list[float], target: list[float], variant: str) -> float:
    def area(sides: list[float]) -> float:
        return (sides[0] + sides[2]) * (sides[1] + sides[3])

    common = area([min(pair) for pair in zip(found, target, strict=True)])
    union = area(found) + area(target) - common
    if variant == "original":
        return -math.log((common + 1) / (union + 1))
    hull = area([max(pair) for pair in zip(found, target, strict=True)])
    return 1 - common / union + (hull - union) / hull


@pytest.mark.parametrize("variant", VARIANTS)
def test_losses_are_those_of_the_publication_by_hand(variant):
    outputs, (boxes, labels) = drawn(3), scene()
    found = losses(outputs, boxes, labels, VARIANTS[variant])
    expected = literal_losses(outputs, boxes, labels, variant)
    assert list(found) == ["classification", "box", "centreness"]
    for name, value in expected.items():
        assert found[name].item() == pytest.approx(value, rel=1e-5), name


def test_targets_and_losses_are_those_of_torchvision():
    """The same weights and images through both. What torchvision does otherwise is said in torchvision_fcos.py; and
    its box loss is a plain sum over the positive locations divided by their number, ours is weighted by centre-ness and
    divided by the weights' sum, so GIoU is compared location by location and in our sum."""
    theirs, ours = pair()
    boxes, labels = objects()
    expected, given = run_theirs(theirs, boxes, labels)
    outputs = ours.train()(images()[1])
    where = locations(outputs)
    anchors, matched = torch.stack(given["anchors"]), torch.stack(given["matched"])
    assert torch.equal((anchors[0, :, :2] + anchors[0, :, 2:]) / 2, where.points)

    targets = assign(where, boxes, labels, 1.5)
    positive = matched >= 0
    assert 40 < positive.sum() < positive.numel() / 2
    assert {int(s) for s in where.strides.expand_as(positive)[positive]} == {8, 16, 32}
    assert torch.equal(targets.labels != BACKGROUND, positive)
    own = torch.stack([b[m.clamp(min=0)] for b, m in zip(boxes, matched, strict=True)])[positive]
    kinds = torch.stack([k[m.clamp(min=0)] for k, m in zip(labels, matched, strict=True)])[positive]
    assert torch.equal(targets.labels[positive], kinds)
    coder = BoxLinearCoder(normalize_by_size=False)
    distances = targets.distances.transpose(1, 2)[positive]
    torch.testing.assert_close(distances, coder.encode(anchors[positive], own))

    decoded = BoxLinearCoder(normalize_by_size=True).decode(given["outputs"]["bbox_regression"], anchors)[positive]
    giou = generalized_box_iou_loss(decoded, own)
    mine = giou_loss(flat(outputs["boxes"]), targets.distances)[positive]
    torch.testing.assert_close(mine, giou, rtol=1e-4, atol=1e-5)
    assert giou.std() > 0.05

    found = losses(outputs, boxes, labels, VARIANTS["improved"])
    weight = centreness(targets.distances)[positive]
    torch.testing.assert_close(found["classification"], expected["classification"], rtol=1e-5, atol=0)
    torch.testing.assert_close(found["centreness"], expected["bbox_ctrness"], rtol=1e-5, atol=0)
    torch.testing.assert_close(found["box"], (giou * weight).sum() / weight.sum(), rtol=1e-4, atol=0)
    torch.testing.assert_close(giou.mean(), expected["bbox_regression"], rtol=1e-5, atol=0)


def detector(variant: str) -> FcosNetwork:
    torch.manual_seed(0)
    body = TDAF(resnet(18, width=8), flows=3, anar_width=32)
    fix_batch_norm(body, "affine")
    freeze_stages(body, 1)
    return FcosNetwork(body, CLASSES, VARIANTS[variant], Normalise([0.5] * 3, [0.2] * 3), channels=16, convs=1).train()


PIXELS = torch.randint(0, 256, (3, 3, 96, 128), dtype=torch.uint8, generator=torch.Generator().manual_seed(5))
EMPTY = [torch.zeros(0, 4)] * 3, [torch.zeros(0, dtype=torch.int64)] * 3


@pytest.mark.parametrize("variant", VARIANTS)
def test_images_without_a_box_give_every_parameter_a_gradient(variant):
    network = detector(variant)
    found = losses(network(PIXELS), *EMPTY, VARIANTS[variant])
    assert found["classification"] > 0 and found["box"] == found["centreness"] == 0
    for name, parameter in (("box", network.head.scales), ("centreness", network.head.centreness.weight)):
        assert not torch.autograd.grad(found[name], parameter, retain_graph=True)[0].any()
    sum(found.values()).backward()
    for name, parameter in network.named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad, name
        assert parameter.grad is None or parameter.grad.isfinite().all()
    assert not network.head.boxes.weight.grad.any() and network.head.logits.weight.grad.any()


def operations(loss: Tensor) -> Counter:
    """How often each operation stands in the graph behind a loss."""
    found, ahead, seen = Counter(), [loss.grad_fn], set()
    while ahead:
        node = ahead.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        found[node.name()] += 1
        ahead += [before for before, _ in node.next_functions]
    return found


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_graph_is_the_same_whatever_the_annotations_hold(variant):
    network = detector(variant)
    full, empty = (sum(losses(network(PIXELS), *given, VARIANTS[variant]).values()) for given in (scene(), EMPTY))
    assert operations(full) == operations(empty)
    assert sum(operations(full).values()) > 100


def test_boxes_that_hold_no_location_and_whole_images_are_handled():
    outputs = drawn(1)
    where = locations(outputs)
    odd = torch.tensor([[1.0, 1.0, 3.0, 3.0], [50.0, 50.0, 50.0, 60.0], [-900.0, -700.0, 1000.0, 900.0]])
    for radius in (0.0, 1.5):
        targets = assign(where, [odd], [torch.tensor([0, 1, 2])], radius)
        assert set(targets.labels.unique().tolist()) == {BACKGROUND, 2}  # the box that reaches far outside
        assert {int(s) for s in where.strides[targets.labels[0] == 2]} == {128}
    found = losses(outputs, [odd], [torch.tensor([0, 1, 2])], VARIANTS["improved"])
    assert all(value.isfinite() for value in found.values())


def test_an_infinite_box_in_the_background_counts_nothing():
    """exp overflows where nothing holds it back."""
    outputs, (boxes, labels) = drawn(3), scene()
    outputs["boxes"][0].data[1] = float("inf")  # of the image without a box
    for variant in VARIANTS.values():
        found = losses(outputs, boxes, labels, variant)["box"]
        assert found.isfinite()
        found.backward()
    assert not outputs["boxes"][0].grad[1].any() and outputs["boxes"][0].grad[0].any()


def test_positives_are_counted_over_all_ranks(monkeypatch: pytest.MonkeyPatch):
    """One rank has five objects and the other none; their mean is what one rank with both images finds. The ranks are
    two threads, each with a gloo group of its own: a process would import torch for longer than the test lasts."""
    outputs, boxes, labels = shares(1)[0]
    whole = losses(outputs, boxes, labels, VARIANTS["improved"])
    sum(whole.values()).backward()
    expected = [x.grad for name in ("logits", "boxes", "centreness") for x in outputs[name]]

    store, mine = td.HashStore(), threading.local()
    monkeypatch.setattr(dist, "world", lambda: 2)
    monkeypatch.setattr(td, "all_reduce", lambda x: mine.group.allreduce([x]).wait())

    def rank(number: int) -> tuple[dict[str, Tensor], list[Tensor]]:
        mine.group = td.ProcessGroupGloo(store, number, 2, timedelta(seconds=60))
        outputs, boxes, labels = shares(2)[number]
        found = losses(outputs, boxes, labels, VARIANTS["improved"])
        sum(found.values()).backward()
        return found, [x.grad for name in ("logits", "boxes", "centreness") for x in outputs[name]]

    with ThreadPoolExecutor(2) as threads:
        first, second = threads.map(rank, range(2))
    for name, value in whole.items():
        assert value > 0
        torch.testing.assert_close((first[0][name] + second[0][name]) / 2, value)
    assert second[0]["box"] == second[0]["centreness"] == 0 < second[0]["classification"]
    for one, other, both in zip(first[1], second[1], expected, strict=True):
        torch.testing.assert_close(torch.cat([one, other]) / 2, both)
