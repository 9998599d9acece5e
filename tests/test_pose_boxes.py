"""Where boxes of persons come from: a detector's file, our detectors, and what predict is given."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.error import URLError

import people
import pytest
import torch
from commands import script
from people import annotation
from PIL import Image

from scripts.detect_people import detect
from tasks.pose.augment import Augmentation
from tasks.pose.data import detected
from tasks.pose.source import COCO, CocoKeypoints
from tasks.pose.task import Pose
from tdaf.errors import RunError, UserError

BOX = (30.0, 10.0, 60.0, 100.0)
MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]


def result(image: int = 139, box: tuple[Any, ...] = BOX, score: float = 0.9, category: int = 1) -> dict[str, Any]:
    return {"image_id": image, "category_id": category, "bbox": list(box), "score": score}


def wrote(path: Path, content: Any) -> Path:
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


@pytest.fixture
def root(tmp_path: Path) -> Path:
    people.write(tmp_path, [[annotation(BOX)], [annotation(BOX)], []])
    return tmp_path


def found(root: Path, content: Any, least: float = 0.0):
    return detected(wrote(root / "yolo.json", content), CocoKeypoints(str(root)).split("val"), least)


def test_boxes_are_taken_as_the_detector_gives_them(root):
    boxes = found(root, [result(239), result(139, (-5.5, 3.0, 300.0, 20.25), 0.25), result(239, score=0.1)])
    assert boxes.persons["image"].tolist() == [0, 1, 1]
    assert boxes.persons["box"].tolist() == [[-5.5, 3, 294.5, 23.25], [30, 10, 90, 110], [30, 10, 90, 110]]
    assert boxes.persons["score"].tolist() == pytest.approx([0.25, 0.9, 0.1])
    assert boxes.persons["row"].tolist() == [-1] * 3 and boxes.notes == {}
    assert len(found(root, [{**result(), "image_id": "139"}]).persons) == 1


def test_what_is_left_out_is_counted(root):
    bad = [result(category=3), result(category=2), result(image=7), result(score=0.19)]
    bad += [result(box=(1.0, 1.0, 0.0, 5.0)), result(box=(1.0, 1.0, 5.0, -1.0))]
    boxes = found(root, [*bad, result(score=0.2)], 0.2)
    assert len(boxes.persons) == 1
    assert boxes.notes == {
        "boxes of other categories than 1 (person), left out (yolo.json)": 2,
        "boxes in images that the annotations do not have, left out (yolo.json)": 1,
        "boxes without area, left out (yolo.json)": 2,
        "boxes with a score below 0.2, left out (yolo.json)": 1,
    }


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('[{"image_id": 139, "categ', "yolo.json is damaged or no JSON .*; unpack or copy it again"),
        ({"annotations": []}, "yolo.json holds an object with annotations; expected COCO detection results"),
        ([3], "box number 1 of the file is no JSON object"),
        ([result(), {"image_id": 9, "category_id": 1, "bbox": [1, 2, 3, 4]}], "box number 2 of the file has no score"),
        (json.dumps([result(box=(1.0, 2.0, 3.0, 4.0))]).replace("2.0", "NaN"), "bbox=.*: give 4 finite numbers"),
        ([result(7), result(8)], "no box of a person in these images: 2 boxes in images that the annotations do not"),
    ],
)
def test_files_that_cannot_be_used_are_named_in_one_line(root, content, message):
    with pytest.raises(UserError, match=message) as refused:
        found(root, content)
    assert "yolo.json" in str(refused.value) and "\n" not in str(refused.value)


def pose(**settings: Any) -> Pose:
    data = settings.pop("data", SimpleNamespace(classes=list(COCO)))
    return Pose(data, Augmentation(), MEAN, STD, **{"size": [64, 64], **settings})


def pictures(folder: Path) -> list[Path]:
    paths = [folder / "a" / "one.png", folder / "b" / "one.png", folder / "000000000139.jpg"]
    for k, path in enumerate(paths):
        path.parent.mkdir(exist_ok=True)
        Image.new("RGB", (50 + k, 40), (200, 30 * k, 0)).save(path)
    return paths


def test_predict_takes_whole_pictures(tmp_path):
    inputs = pose().predict_dataset(pictures(tmp_path))
    assert len(inputs) == 3 and [list(inputs.shown(k)) for k in range(3)] == [[0], [1], [2]]
    sample = inputs[1]
    assert sample["input"].shape == (2, 3, 64, 64) and sample["box"].tolist() == [0, 0, 51, 40]
    assert pose(flip_test=False).predict_dataset(pictures(tmp_path), boxes="image")[0]["input"].shape == (3, 64, 64)


def test_predict_takes_the_boxes_that_predict_writes(tmp_path):
    paths = pictures(tmp_path)
    document = {
        "images": [{"id": 5, "file_name": str(paths[1])}, {"id": 6, "file_name": "elsewhere/000000000139.jpg"}],
        "annotations": [
            {**result(6, (1.0, 2.0, 10.0, 20.0), 0.8, 4)},
            {**result(5, (3.0, 4.0, 10.0, 20.0), 0.7, 4)},
            {**result(5, category=1)},
            {**result(5, score=0.2, category=4)},
        ],
        "categories": [{"id": 4, "name": "person"}, {"id": 1, "name": "dog"}],
    }
    path = str(wrote(tmp_path / "found.json", document))
    inputs = pose().predict_dataset(paths, boxes=path)
    assert [list(inputs.shown(k)) for k in range(len(inputs))] == [[1], [2]]
    assert inputs[0]["box"].tolist() == [3, 4, 13, 24] and inputs[0]["box_score"] == 0.7
    assert "one.png" in inputs.name(0)
    assert len(pose().predict_dataset(paths, boxes=path, box_score=0.1)) == 3
    assert len(pose().predict_dataset(paths, boxes=path, person="dog")) == 1
    for choice in ({"person": "dog"}, {"box_score": 0.5}):
        for boxes in (None, "image"):
            with pytest.raises(UserError, match="chooses among boxes, so give boxes=FILE.json or a detector's run too"):
                pose().predict_dataset(paths, boxes=boxes, **choice)
    with pytest.raises(UserError, match="no category is called cat; give person=NAME, one of person, dog"):
        pose().predict_dataset(paths, boxes=path, person="cat")


def test_files_of_one_name_are_told_apart_by_their_paths_only(tmp_path):
    paths = pictures(tmp_path)
    images = [{"id": 1, "file_name": "x/one.png"}, {"id": 2, "file_name": "y/one.png"}]
    content = {"images": images, "annotations": [result(1)], "categories": [{"id": 1, "name": "person"}]}
    with pytest.raises(UserError, match="it has no box of these pictures, of the 1 in it"):
        pose().predict_dataset(paths, boxes=str(wrote(tmp_path / "x.json", content)))
    images[0]["file_name"] = str(paths[0])
    inputs = pose().predict_dataset(paths, boxes=str(wrote(tmp_path / "x.json", content)))
    assert [list(inputs.shown(k)) for k in range(len(inputs))] == [[0]]


def test_predict_takes_cocos_results_by_the_numbers_of_the_files(tmp_path):
    path = str(wrote(tmp_path / "x.json", [result(139), result(12)]))
    inputs = pose().predict_dataset(pictures(tmp_path), boxes=path)
    assert [list(inputs.shown(k)) for k in range(len(inputs))] == [[2]]


class Detector(torch.nn.Module):
    """What torchvision's detectors say, of anything: labels 1 (person) and 3."""

    def forward(self, images: list[torch.Tensor]) -> list[dict[str, torch.Tensor]]:
        assert images[0].dtype == torch.float32 and 0.2 < images[0].mean() < 0.8
        boxes = torch.tensor([[30.0, 10, 90, 110], [0, 0, 10, 10], [1, 2, 4, 8], [5, 5, 9, 9]])
        return [{"boxes": boxes, "labels": torch.tensor([1, 3, 1, 1]), "scores": torch.tensor([0.9, 0.8, 0.5, 0.01])}]


def test_torchvisions_detectors_write_a_file_for_evaluation(root, monkeypatch, capsys):
    monkeypatch.setattr("torchvision.models.get_model", lambda name, weights: Detector())
    out = root / "deep" / "frcnn.json"
    settings = ["detector=fasterrcnn_resnet50_fpn_v2", f"data.root={root}", f"out={out}"]
    (root / "val2017/000000000339.jpg").write_bytes(b"no image")
    assert script(detect, settings) == 1
    said = capsys.readouterr()
    assert "left out val2017/000000000339.jpg: not an image" in said.err
    assert "4 boxes of person with a score of 0.05 or more, 2 images" in said.out
    written = json.loads(out.read_text())
    assert written[:2] == [result(139, BOX, 0.9), result(139, (1.0, 2.0, 3.0, 6.0), 0.5)]
    assert [entry["image_id"] for entry in written] == [139, 139, 239, 239]
    assert len(detected(out, CocoKeypoints(str(root)).split("val"), 0.6).persons) == 2


class Ours:
    """A run of our detector, as far as the script looks at it: its answers by image, and what it cannot read."""

    def __init__(self, answers: dict[int, list], unreadable: dict[int, str]) -> None:
        self.answers, self.unreadable = answers, unreadable
        self.task = self
        self.classes = ["dog", "person"]

    def predict_dataset(self, paths: list[Path]) -> SimpleNamespace:
        assert [path.name for path in paths] == ["000000000139.jpg", "000000000239.jpg", "000000000339.jpg"]
        return SimpleNamespace(pictures=SimpleNamespace())

    def predict(self, dataset: SimpleNamespace, title: str) -> Ours:
        assert dataset.pictures.reading == {"exif": True, "background": None}
        return self

    def name(self, image: int) -> str:
        return f"image {image}"


def test_our_own_detector_writes_a_file_for_evaluation(root, monkeypatch, capsys):
    found = [{"class": "person", "score": 0.7, "box": list(BOX)}, {"class": "dog", "score": 0.9, "box": [0, 0, 1, 1]}]
    out = root / "ours.json"
    words = ["checkpoint=run", f"data.root={root}", f"out={out}", "batch=3"]

    def detector(answers: dict[int, list], unreadable: dict[int, str]) -> None:
        monkeypatch.setattr("scripts.detect_people.open_run", lambda *given: given)
        made = Ours(answers, unreadable)
        monkeypatch.setattr("tdaf.engine.predict.Predictor", lambda run, batch: made if batch == 3 else None)

    detector({2: [{"detections": found}], 0: [{"detections": found}]}, {1: "cut off"})
    assert script(detect, words) == 1
    assert json.loads(out.read_text()) == [result(139, BOX, 0.7), result(339, BOX, 0.7)]
    assert "left out image 1: cut off" in capsys.readouterr().err
    with pytest.raises(UserError, match="class=cat: this detector knows dog, person"):
        script(detect, [*words, "class=cat"])
    detector({0: [{"top5": []}]}, {})
    with pytest.raises(UserError, match="checkpoint=run: this run's task finds no boxes"):
        script(detect, words)
    detector({}, dict.fromkeys(range(3), "cut off"))
    with pytest.raises(RunError, match="not one of 3 images could be read"):
        script(detect, words)


TORCHVISION = "detector=fasterrcnn_resnet50_fpn_v2"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("", "give checkpoint=RUN_FOLDER or detector="),
        ("detector=fasterrcnn_resnet50_fpn_v3", "did you mean fasterrcnn_resnet50_fpn_v2?"),
        (f"{TORCHVISION} score=2", "score=2: give a number from 0 to 1"),
        (f"{TORCHVISION} class=man", "class=man: this detector knows __background__, person"),
        (f"{TORCHVISION} out=/proc/x.json", "/proc/x.json cannot be written"),
    ],
)
def test_mistakes_are_one_line(root, arguments, message, monkeypatch):
    monkeypatch.chdir(root)
    with pytest.raises(UserError, match=message) as refused:
        script(detect, [f"data.root={root}", *arguments.split()])
    assert "\n" not in str(refused.value)


def test_no_network_is_one_line(root, monkeypatch):
    def unreachable(name: str, weights: Any) -> None:
        raise URLError("Name or service not known")

    monkeypatch.setattr("torchvision.models.get_model", unreachable)
    with pytest.raises(UserError, match="weights cannot be had from https://download.*not known") as refused:
        script(detect, ["detector=fasterrcnn_resnet50_fpn_v2", f"data.root={root}", f"out={root}/x.json"])
    assert "\n" not in str(refused.value)
