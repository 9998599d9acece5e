"""FCOS as the engine sees it: settings, what is frozen, and answers in the pixels of the pictures."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from detection_scene import drawn, scene

from tasks.detection.fcos import VARIANTS, losses
from tasks.detection.task import Fcos
from tdaf.errors import UserError
from tdaf.measure import parameters
from tdaf.model.backbones.resnet import resnet
from tdaf.model.flows import TDAF
from tdaf.model.freeze import FixedBatchNorm2d, FrozenBatchNorm2d
from tdaf.task import Batch

torch.set_num_threads(1)
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
