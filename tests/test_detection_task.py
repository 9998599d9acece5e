"""FCOS as the engine sees it: settings, what is frozen, answers in the pixels of the pictures; and from outputs to
boxes: torchvision's detections, a literal transcription, and each setting on its own."""

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from detection_scene import STRIDES, drawn, scene
from torchvision_fcos import SIZES, images, pair

from tasks.detection.fcos import VARIANTS, Decoder, losses
from tasks.detection.task import Fcos
from tdaf.errors import UserError
from tdaf.measure import parameters
from tdaf.model.backbones.resnet import resnet
from tdaf.model.flows import TDAF
from tdaf.model.freeze import FixedBatchNorm2d, FrozenBatchNorm2d
from tdaf.task import Batch

NAMES = ["cat", "dog", "bird"]


def fcos(**settings: Any) -> Fcos:
    data, unused = SimpleNamespace(classes=NAMES), (lambda *given: given)
    return Fcos(data, unused, unused, **{"mean": [0.5] * 3, "std": [0.2] * 3, "channels": 16, "convs": 1, **settings})


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"head": "better"}, "head=better: give original or improved"),
        ({"batch_norm": "fixed"}, "batch_norm=fixed: give auto, frozen, affine, trained"),
        ({"channels": 20}, "channels=20: give a multiple of 8"),
        ({"frozen_stages": -1}, "frozen_stages=-1: give auto, or 0 or more"),
        ({"std": [0.2, 0.2, 0.0]}, "mean, std: give three numbers each, one a colour, std above 0"),
    ],
)
def test_settings_that_cannot_work_are_refused(settings, said):
    with pytest.raises(UserError, match=said):
        fcos(**settings)


@pytest.mark.parametrize(
    ("mode", "flows", "kind"),
    [
        ("auto", 1, FrozenBatchNorm2d),
        ("auto", 3, FixedBatchNorm2d),
        ("frozen", 3, FrozenBatchNorm2d),
        ("trained", 1, torch.nn.BatchNorm2d),
    ],
)
def test_what_of_the_backbone_trains(mode, flows, kind):
    made = fcos(batch_norm=mode, frozen_stages=2)
    network = made.network(resnet(18, width=8), lambda staged: TDAF(staged, flows=flows, anar_width=32))
    norms = [m for m in network.body.stages.modules() if "BatchNorm" in type(m).__name__]
    assert norms and all(type(norm) is kind for norm in norms)
    still = sum(p.numel() for stage in list(network.body.stages)[:2] for p in stage.parameters())
    assert parameters(network).frozen == still > 0
    plain = made.network(resnet(18, width=8), lambda staged: staged)
    assert type(plain.body.stages[0].bn1) is (FrozenBatchNorm2d if mode == "auto" else kind)
    with pytest.raises(UserError, match="frozen_stages=5: this backbone has 4 stages"):
        fcos(frozen_stages=5).network(resnet(18, width=8), lambda staged: staged)


def test_losses_are_those_of_the_line():
    outputs, (boxes, labels) = drawn(3), scene()
    for variant in VARIANTS:
        found = fcos(head=variant).losses(outputs, {"boxes": boxes, "labels": labels})
        expected = losses(outputs, boxes, labels, VARIANTS[variant])
        assert found.keys() == expected.keys() and all(torch.equal(found[k], expected[k]) for k in found)


def seen() -> tuple[dict[str, Any], Batch]:
    """Two inputs of 96 x 128; the first image had 45 x 120 pixels, now 90 x 120; it shows a dog and a dim cat."""
    outputs = drawn(2)
    for name, value in (("logits", -20.0), ("boxes", 10.0), ("centreness", 20.0)):
        outputs[name] = [torch.full_like(x, value) for x in outputs[name]]
    outputs["logits"][0][0, 1, 5, 6] = 2.0  # a probability of 0.88, at (52, 44)
    outputs["logits"][0][0, 0, 11, 2] = -2.5  # 0.076, a score of 0.28, at (20, 92), which is in the padding
    batch = {
        "input": torch.zeros(2, 3, 96, 128, dtype=torch.uint8),
        "size": torch.tensor([[90, 120], [96, 128]]),
        "scale": torch.tensor([[1.0, 2.0], [1.5, 1.5]]),
    }
    return outputs, batch


def test_answers_are_in_pixels_of_the_picture():
    first, second = fcos().postprocess(*seen())
    assert (first["width"], first["height"]) == (120, 45)
    dog, cat = first["detections"]
    assert (dog["class"], cat["class"]) == ("dog", "cat")
    assert dog["box"] == [42, 17, 20, 10] and dog["score"] == pytest.approx(0.938, abs=1e-3)
    assert cat["box"] == [10, 41, 20, 4] and cat["score"] == pytest.approx(0.275, abs=1e-3)
    assert first["text"] == "dog 0.94"
    assert second["detections"] == [] and second["text"] == "nothing"


def test_the_document_is_in_the_format_of_coco():
    made = fcos()
    first, second = made.postprocess(*seen())
    found = [(Path("a/b.jpg"), None, [first]), (Path("c.mp4"), 7, [second]), (Path("d.jpg"), None, [])]
    document = made.to_json(found)
    assert document["categories"] == [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}, {"id": 3, "name": "bird"}]
    assert document["images"] == [
        {"id": 1, "file_name": "a/b.jpg", "width": 120, "height": 45},
        {"id": 2, "file_name": "c.mp4", "frame": 7, "width": 85, "height": 64},
        {"id": 3, "file_name": "d.jpg"},
    ]
    assert [entry["category_id"] for entry in document["annotations"]] == [2, 1]
    dog = document["annotations"][0]
    assert (dog["id"], dog["image_id"], dog["bbox"]) == (1, 1, [42, 17, 20, 10]) and 0.9 < dog["score"] < 1


SIZE = torch.tensor([[90, 120]])


@pytest.mark.parametrize("settings", [{}, {"top": 20, "nms": 0.3, "per_image": 7}])
def test_detections_are_those_of_torchvision(settings):
    """torchvision's threshold is on the root of class probability times centre-ness, ours (the publication's) on the
    class probability alone, so both are 0 here; our own threshold is tested below. It also keeps boxes without an area,
    which suppress no other, but count among the best of an image: they are taken out here before the best are."""
    theirs, ours = pair(**{**settings, "per_image": 10_000})
    with torch.no_grad():
        expected = theirs.eval()(images()[0])
        outputs = ours.eval()(images()[1])
    found = Decoder(score_threshold=0.0, **settings)(outputs, torch.tensor(SIZES))
    for mine, other in zip(found, expected, strict=True):
        sides = other["boxes"][:, 2:] - other["boxes"][:, :2]
        best = (sides > 0).all(1).nonzero()[: settings.get("per_image", 100), 0]
        assert len(best) == settings.get("per_image", 100) and len(other["labels"][best].unique()) > 1
        assert torch.equal(mine.labels, other["labels"][best])
        torch.testing.assert_close(mine.scores, other["scores"][best], rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(mine.boxes, other["boxes"][best], rtol=1e-4, atol=1e-2)


def literal(outputs: dict[str, Any], image: int, size: tuple[int, int], settings: Decoder) -> list[tuple]:
    """The publication's steps, a candidate at a time: (score, label, box)."""
    kept = []
    for level, stride in enumerate(STRIDES):
        logits, boxes, centre = (outputs[name][level][image] for name in ("logits", "boxes", "centreness"))
        candidates = []
        for k, i, j in torch.ones_like(logits).nonzero().tolist():
            p = 1 / (1 + math.exp(-logits[k, i, j].item()))
            x, y = j * stride + stride // 2, i * stride + stride // 2
            left, top, right, bottom = boxes[:, i, j].tolist()
            limits = (size[1], size[0]) * 2
            box = [
                min(max(0, side), end)
                for side, end in zip((x - left, y - top, x + right, y + bottom), limits, strict=True)
            ]
            if p <= settings.score_threshold:
                continue
            candidates.append((math.sqrt(p / (1 + math.exp(-centre[0, i, j].item()))), k, box))
        best = sorted(candidates, reverse=True)[: settings.top]
        kept += [c for c in best if c[2][2] > c[2][0] and c[2][3] > c[2][1]]
    found: list[tuple] = []
    for candidate in sorted(kept, reverse=True):
        if all(other[1] != candidate[1] or overlap(other[2], candidate[2]) <= settings.nms for other in found):
            found.append(candidate)
    return found[: settings.per_image]


def overlap(one: list[float], other: list[float]) -> float:
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    common = max(width, 0) * max(height, 0)
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (one, other)]
    return common / (sum(areas) - common)


@pytest.mark.parametrize("settings", [Decoder(0.3), Decoder(0.5, 0.4, 30, 20), Decoder(0.05, 0.9, 1000, 50)])
def test_detections_are_those_of_the_publication_by_hand(settings):
    outputs, sizes = drawn(2), torch.tensor([[90, 120], [96, 128]])
    found = settings(outputs, sizes)
    for image, mine in enumerate(found):
        expected = literal(outputs, image, tuple(sizes[image].tolist()), settings)
        assert len(expected) > 15
        assert mine.labels.tolist() == [label for _, label, _ in expected]
        torch.testing.assert_close(mine.scores, torch.tensor([score for score, _, _ in expected]))
        torch.testing.assert_close(mine.boxes, torch.tensor([box for _, _, box in expected]), rtol=1e-4, atol=1e-3)


def still(logit: float = -20.0) -> dict[str, Any]:
    """Outputs without a detection: every class improbable, boxes of 5 pixels to each side."""
    outputs = drawn(1)
    for name, value in (("logits", logit), ("boxes", 5.0), ("centreness", 0.0)):
        outputs[name] = [torch.full_like(x, value) for x in outputs[name]]
    return outputs


def place(outputs: dict[str, Any], label: int, i: int, j: int, probability: float, centre: float) -> None:
    """One detection at row i, column j of the first level."""
    outputs["logits"][0][0, label, i, j] = math.log(probability / (1 - probability))
    outputs["centreness"][0][0, 0, i, j] = math.log(centre / (1 - centre))


def test_nothing_found_is_an_empty_result():
    found = Decoder()(still(), SIZE)
    assert [tuple(part.shape) for part in found[0]] == [(0, 4), (0,), (0,)]
    assert found[0].labels.dtype == torch.int64


def test_the_threshold_is_on_the_class_alone_and_the_score_is_the_root_with_centreness():
    outputs = still()
    place(outputs, 1, 2, 3, 0.06, 0.01)  # a score of 0.024
    place(outputs, 1, 8, 9, 0.04, 0.99)  # a score of 0.2, from a class probability below 0.05
    (found,) = Decoder()(outputs, SIZE)
    assert found.labels.tolist() == [1]
    assert found.scores.item() == pytest.approx(math.sqrt(0.06 * 0.01), rel=1e-4)
    assert found.boxes.tolist() == [[23.0, 15.0, 33.0, 25.0]]  # 5 pixels around (3 * 8 + 4, 2 * 8 + 4)


def test_boxes_end_where_the_image_does_and_not_its_padding():
    outputs = still()
    for i, j in ((0, 0), (11, 14)):
        place(outputs, 0, i, j, 0.9, 0.9)
        outputs["boxes"][0][0, :, i, j] = 30.0
    place(outputs, 0, 4, 15, 0.9, 0.9)  # from 119 to 129 pixels where its sides are 5 away, and from 121 below
    outputs["boxes"][0][0, 0, 4, 15] = 3.0
    (found,) = Decoder()(outputs, SIZE)
    assert sorted(found.boxes.tolist()) == [[0.0, 0.0, 34.0, 34.0], [86.0, 62.0, 120.0, 90.0]]


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"nms": 1.5}, r"nms=1\.5: give at most 1"),
        ({"top": 0}, r"top=0: give 1 or more"),
    ],
)
def test_settings_out_of_range_are_refused(settings, said):
    with pytest.raises(UserError, match=said):
        Decoder(**settings)
