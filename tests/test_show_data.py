"""show_data: training samples with what is to be learnt of them."""

from pathlib import Path
from typing import Any

import people
import pytest
import torch
from coco_files import document, save, save_images
from commands import script
from PIL import Image
from tiny_run import DrawingTask, trainer

from scripts.show_data import show_data
from tasks.classification.task import Classification
from tasks.coco.source import CocoFiles
from tasks.detection.task import Fcos
from tasks.pose.augment import Augmentation
from tasks.pose.source import CocoKeypoints
from tasks.pose.task import Pose
from tdaf.engine.visualize import targets
from tdaf.errors import UserError


def test_originals_and_counts(tmp_path: Path) -> None:
    content = document()
    for split in ("train2017", "val2017"):
        save(tmp_path / "annotations" / f"instances_{split}.json", content)
        save_images(tmp_path / split, content)
    detection = Fcos(CocoFiles(str(tmp_path)), lambda image, boxes: None, None, [0.5] * 3, [0.5] * 3)
    dataset = detection.dataset("train")
    assert len(dataset) == 2 and detection.original(dataset, 1).shape == (3, 40, 60)  # 20 has no object, 10 a crowd too
    by_category, by_size = detection.counts(dataset).values()
    assert by_category == {"dog": 0, "cup": 2, "book": 1}
    assert {name: count for name, count in by_size.items() if count} == {"below 8": 1, "8 to 16": 1, "16 to 32": 1}

    for split in ("train", "val"):
        people.write(tmp_path, [[people.annotation((2.0, 2.0, 40.0, 90.0))]], split=split)
    pose = Pose(CocoKeypoints(str(tmp_path)), Augmentation(), [0.5] * 3, [0.5] * 3)
    dataset = pose.dataset("train")
    assert pose.original(dataset, 0).shape[1] >= people.HEIGHT
    points, sizes = pose.counts(dataset).values()
    assert points["nose"] == 1 and sum(points.values()) == 17 and sizes["32 to 64"] == 1


def test_the_sheet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    monkeypatch.chdir(tmp_path)
    words = "recipe=check task.train_transform.size=40 task.mixup=0.5 samples=3 draws=2 out=deep/sheet.png"
    assert script(show_data, ["task=imagenet", *words.split()]) == 0
    said = capsys.readouterr().out
    assert "3 of 20 training samples, 2 draws each" in said and "deep/sheet-counts.png: images by class" in said
    with Image.open("deep/sheet.png") as sheet, Image.open("deep/sheet-counts.png") as counts:
        assert sheet.size[1] > sheet.size[0] * 3 / 4 and counts.size == (640, 12 * 20)
    monkeypatch.delattr(Classification, "original")
    assert script(show_data, ["task=imagenet", *words.split()]) == 0  # a task need not have one
    with Image.open("deep/sheet.png") as sheet:
        assert sheet.size[1] == pytest.approx(sheet.size[0] * 3 / 2, abs=4)
    monkeypatch.delattr(Classification, "draw_targets")
    with pytest.raises(UserError, match="has no method draw_targets"):
        script(show_data, ["task=imagenet", "recipe=check"])


def test_a_training_shows_its_targets_and_is_the_same(tmp_path: Path) -> None:
    class Showing(DrawingTask):
        def draw_targets(self, batch: dict[str, Any]) -> list[torch.Tensor]:
            shown.append(batch["input"])
            return [torch.zeros(3, 8, 8, dtype=torch.uint8)] * len(batch["input"])

    shown: list[torch.Tensor] = []
    made = [trainer(tmp_path / kind.__name__, task=kind(), pictures=2, max_steps=4) for kind in (Showing, DrawingTask)]
    pictures: list[str] = []
    made[0].folder.picture = lambda name, image, step: pictures.append(name)
    for each in made:
        each.fit()
    assert [name for name in pictures if name.startswith("target")] == ["target/0", "target/1"] and len(shown[0]) == 2
    one, other = (each.network.state_dict() for each in made)
    assert all(torch.equal(value, other[name]) for name, value in one.items())
    task = Showing()
    before = torch.get_rng_state()
    targets(task, task.dataset("train"), [0, 1], 3)
    targets(task, task.dataset("train"), [0, 1], 3)
    assert torch.equal(shown[-1], shown[-2]) and torch.equal(before, torch.get_rng_state())
