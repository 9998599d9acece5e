"""Own data in COCO's format, with categories, key points and names of their own, by docs/extending.md's commands."""

from __future__ import annotations

import json
from pathlib import Path

import pages
import pytest
from coco_files import Document, document, save, save_images
from commands import call, script

from scripts import evaluate, predict
from tdaf.errors import UserError

SMALL = (
    "gpus=0 loader.workers=0 trainer.max_steps=4 trainer.batch=2 trainer.pictures=0 "
    "schedule.warmup_steps=0 pretrained=null demo=null"
).split()
OBJECTS = [
    *SMALL,
    "task.channels=16",
    "task.convs=1",
    "task.train_transform.short_sides=[48]",
    "task.val_transform.short_side=48",
    "task.score_threshold=0",
]
JOINTS = [*SMALL, "task.size=[64,64]", "task.deconvolutions=[8,8,8]", "task.oks_nms=1"]


def shown(root: Path, name: str = "own coco") -> list[str]:
    """What the page gives to train.py to try own objects."""
    first, _ = pages.commands(name, PATH=root)
    assert "recipe=demo" in first
    return first[1:]


def saved(root: Path, content: Document) -> Path:
    """The layout of the page's example: one folder of images, an annotation file a split."""
    for split in ("train", "val"):
        save(root / f"{split}.json", content)
    save_images(root / "images", content)
    return root


def with_joints() -> Document:
    """An animal with four key points; neither it nor they are called as in COCO."""
    content = document()
    content["categories"] = [{"id": 5, "name": "beetle", "keypoints": ["head", "left_leg", "right_leg", "tail"]}]
    content["categories"][0]["skeleton"] = [[1, 4], [2, 4], [3, 4]]
    for entry in content["annotations"]:
        x, y, width, height = entry["bbox"]
        ends = ((x + 1, y + 1), (x + 1, y + height), (x + width, y + height), (x + width, y + 1))
        entry |= {"category_id": 5, "keypoints": [value for end in ends for value in (*end, 2)], "num_keypoints": 4}
    return content


def used(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, arguments: list[str]) -> tuple[dict, dict]:
    """Trains, evaluates, predicts: summary.json and predictions.json."""
    run, drawn = tmp_path / "run", tmp_path / "drawn"
    assert call(monkeypatch, [*arguments, f"run_dir={run}"]) == 0
    summary = json.loads((run / "summary.json").read_text())
    assert script(evaluate.evaluate, [f"checkpoint={run}"]) == 0
    again = json.loads((run / f"evaluation-{summary['protocol']}.json").read_text())
    assert again["values"] == summary["metrics"] and again["samples"] == summary["samples"]
    images = tmp_path / "data" / "images"
    assert script(predict.predict, [f"checkpoint={run}", f"input={images}", f"out={drawn}"]) == 0
    assert (drawn / "folder" / "bb.jpg.png").is_file()
    return summary, json.loads((drawn / "predictions.json").read_text())


def test_own_objects_train_evaluate_and_predict_as_the_page_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = saved(tmp_path / "data", document())
    summary, predicted = used(monkeypatch, tmp_path, [*shown(root), *OBJECTS])
    assert summary["samples"] == 3 and set(summary["metrics"]) >= {"AP", "AP50", "APs"}
    assert [category["name"] for category in predicted["categories"]] == ["dog", "cup", "book"]
    results = json.loads((tmp_path / "run" / "results" / "detections.json").read_text())
    assert {entry["category_id"] for entry in results} == {3, 7, 90}
    assert {entry["image_id"] for entry in results} == {10, 20, 30}
    table = (tmp_path / "run" / "results" / "categories.md").read_text()
    assert all(name in table for name in ("dog", "cup", "book"))


def test_own_key_points_train_evaluate_and_predict(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = saved(tmp_path / "data", with_joints())
    summary, predicted = used(monkeypatch, tmp_path, [*shown(root, "own persons"), *JOINTS])
    assert summary["samples"] == 3, "three persons that are no crowd"
    assert predicted["categories"][0]["keypoints"] == ["head", "left_leg", "right_leg", "tail"]
    assert all(len(entry["keypoints"]) == 12 for entry in predicted["annotations"])
    results = json.loads((tmp_path / "run" / "results" / "keypoints-gt.json").read_text())
    assert {entry["category_id"] for entry in results} == {5} and {len(e["keypoints"]) for e in results} == {12}
    mistakes_leave_nothing(tmp_path)


def mistakes_leave_nothing(tmp_path: Path) -> None:
    """A run that knows no persons is no detector of them."""
    run, out = tmp_path / "run", tmp_path / "nothing"
    for boxes, said in (
        (str(run), "this run knows no person; give person=NAME, one of head, left_leg"),
        (str(tmp_path), "no checkpoint at"),
    ):
        with pytest.raises(UserError, match=said):
            script(predict.predict, [f"checkpoint={run}", f"input={tmp_path / 'data'}", f"out={out}", f"boxes={boxes}"])
        assert not out.exists()
