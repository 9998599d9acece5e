"""Annotations as people have them: names, lists and numbers that COCO's own files do not show."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import people
import pytest
from coco_files import document, save, save_set
from people import annotation

from tasks.coco.annotations import read
from tasks.coco.source import CocoFiles
from tasks.detection.task import Fcos
from tasks.detection.transforms import val_transform
from tasks.pose import source
from tasks.pose.augment import Augmentation
from tasks.pose.source import CocoKeypoints
from tasks.pose.task import Pose
from tdaf.errors import UserError

BOX = (50.0, 20.0, 40.0, 80.0)


def pose(root: Any, **settings: Any) -> Pose:
    how = {"train_augment": Augmentation(), "mean": [0.5] * 3, "std": [0.5] * 3, "size": (64, 48), **settings}
    return Pose(CocoKeypoints(str(root)), **how)


@pytest.mark.parametrize(
    "left, right",
    [
        ("left_eye", "right_eye"), ("Left Hand", "Right Hand"), ("LEFT_EYE", "RIGHT_EYE"), ("l_eye", "r_eye"),
        ("eye-l", "eye-r"), ("kneeL", "kneeR"), ("LKnee", "RKnee"), ("lKnee", "rKnee"), ("lefteye", "righteye"),
        ("eyeLeft", "eyeRight"), ("thumb.L.2", "thumb.R.2"), ("left_eye_left_corner", "right_eye_right_corner"),
        ("left_eye_right_corner", "right_eye_left_corner"), ("L1", "R1"), ("l_eye", "right eye"), ("左_l", "左_r"),
    ],
)  # fmt: skip
def test_left_and_right_are_understood_however_they_are_spelt(left: str, right: str) -> None:
    for names, pair in (([left, "nose", right], (0, 2)), (["nose", right, left], (2, 1))):
        assert source.flip_pairs(names) == [pair]
        assert source.unpaired(names, [pair]) == []


def test_what_only_looks_like_a_side_stays_where_it_is() -> None:
    joined = ["lknee", "rknee", "lhip", "rhip", "nose"]
    assert source.flip_pairs(joined) == [(0, 1), (2, 3)]
    assert source.flip_pairs(["lamp", "ramp", "roof"]) == []  # one such pair may be two words
    assert source.flip_pairs(["k", "l", "m"]) == [] and source.unpaired(["k", "l", "m"], []) == []
    assert source.flip_pairs(["left_eye", "left eye", "right_eye"]) == []  # which of the two is meant?
    assert source.legs(["Left Knee", "FOOT", "nose"]) == [True, True, False]


@pytest.mark.parametrize("names", [["Left Fin", "tail"], ["l_eye", "r_eye", "l_ear"], ["leftmost", "tail"]])
def test_a_side_without_a_partner_stops_the_run(tmp_path: Any, names: list[str]) -> None:
    person = annotation(BOX, keypoints=[60.0, 40.0, 2.0] * len(names))
    for split in ("train", "val"):
        people.write(tmp_path, [[person]], names, split)
    with pytest.raises(UserError, match="no other one is its left or right partner.*flip_pairs"):
        pose(tmp_path).dataset("train")
    for settings in ({"flip_pairs": []}, {"train_augment": Augmentation(flip=0), "flip_test": False}):
        assert len(pose(tmp_path, **settings).dataset("train")) == 1


def test_pairs_exchange_what_is_mirrored_and_are_said(tmp_path: Any) -> None:
    names = ["Left Hand", "nose", "Right Hand"]
    points = [60.0, 40.0, 2.0, 70.0, 30.0, 2.0, 80.0, 50.0, 2.0]
    for split in ("train", "val"):
        people.write(tmp_path, [[annotation(BOX, keypoints=points)]], names, split)
    still = Augmentation(scale=0, rotated=0, flip=1.0)
    exchanged = pose(tmp_path, train_augment=still).dataset("train")
    assert exchanged.notes["pairs of key points change places in mirror images: Left Hand - Right Hand"] == 1
    alone = pose(tmp_path, train_augment=still, flip_pairs=[]).dataset("train")
    assert alone.notes["pairs of key points change places in mirror images: none"] == 0
    own = pose(tmp_path, train_augment=still, flip_pairs=[[1, 2]])
    assert own.pairs == [(0, 1)]
    there = alone[0]["joints"]
    assert exchanged[0]["joints"].tolist() == there[[2, 1, 0]].tolist()
    assert own.dataset("train")[0]["joints"].tolist() == there[[1, 0, 2]].tolist()


@pytest.mark.parametrize("pairs", [[[0, 1]], [[1, 4]], [[1, 2], [2, 3]], [[1, 1]], [1, 2], [[1, 2, 3]]])
def test_impossible_pairs_are_refused(tmp_path: Any, pairs: Any) -> None:
    people.write(tmp_path, [[annotation(BOX, keypoints=[60.0, 40.0, 2.0] * 3)]], ["a", "b", "c"])
    with pytest.raises(UserError, match="flip_pairs: "):
        pose(tmp_path, flip_pairs=pairs).dataset("val")


def written(path: Path, **changes: Any) -> Any:
    """The notes of the little document with these lists of boxes or entries in place of its own."""
    content = document()
    for place, values in changes.get("annotations", {}).items():
        content["annotations"][place] |= values
    content["images"] += changes.get("images", [])
    return read(save(path / "a.json", content))


def test_an_image_that_is_listed_twice_is_one(tmp_path: Path) -> None:
    found = written(tmp_path, images=[dict(document()["images"][0])])
    assert len(found) == 3 and found.notes["images listed twice with one id, taken once"] == 1
    assert len(found.objects(2)) == 2
    found = written(tmp_path, images=[{**document()["images"][0], "id": 77}])
    assert len(found) == 4 and found.notes["file names under more than one id, each an image of its own"] == 1
    with pytest.raises(UserError, match="image id 30 is used more than once"):
        written(tmp_path, images=[{**document()["images"][0], "file_name": "other.jpg"}])


def test_doubtful_boxes_are_noted(tmp_path: Path) -> None:
    assert not any("boxes" in note for note in written(tmp_path).notes)
    parts = {k: {"bbox": [0.1 * k, 0.2, 0.3, 0.4]} for k in range(4)}
    (note,) = (note for note in written(tmp_path, annotations=parts).notes if "0..1" in note)
    assert "pixels are expected" in note.lower()
    corners = {k: {"bbox": [20 + k, 25, 45 + k, 39]} for k in range(4)}
    notes = written(tmp_path, annotations=corners).notes
    assert notes["boxes look like x1, y1, x2, y2; x, y, width, height are expected"] == 4
    assert written(tmp_path, annotations={1: {"bbox": [5, 5, 0.4, 9]}}).notes["boxes of less than a pixel"] == 1


def test_ids_beyond_what_programs_agree_on_say_so(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="image_id=18446744073709551616: give a whole number of at most 2.53"):
        written(tmp_path, annotations={0: {"image_id": 2**64}})


@pytest.mark.parametrize("name", ["train2017/a.jpg", "a.jpg", "big%20cup.jpg"])
def test_file_names_that_only_read_otherwise_are_found(tmp_path: Path, name: str) -> None:
    root = save_set(tmp_path, document(), document())
    (root / "train2017/a.jpg").rename(root / "train2017/big cup.jpg") if "%" in name else None
    content = document()
    content["images"][1]["file_name"] = name
    save(root / "annotations/instances_train2017.json", content)
    split = CocoFiles(str(root)).split("train")
    assert split.name(0) == f"train2017/{'big cup' if '%' in name else 'a'}.jpg" and split.read(0).shape == (3, 50, 50)
    assert sum("file names" in note for note in split.annotations.notes) == (name != "a.jpg")


def fcos(data: Any) -> Fcos:
    transform = val_transform(short_side=64, max_size=64)
    return Fcos(data, transform, transform, [0.5] * 3, [0.5] * 3)


def test_detection_counts_crowds_and_does_not_look_at_key_points(tmp_path: Path) -> None:
    content = document()
    content["categories"][0]["keypoints"], content["categories"][1]["keypoints"] = ["a"], ["b", "c"]
    content["annotations"][0]["keypoints"] = [1, 2]
    task = fcos(CocoFiles(str(save_set(tmp_path, content, content))))
    assert task.dataset("train").notes["crowds, not learnt"] == 1
    assert len(task.dataset("val")) == 3
    content["annotations"] = []
    save(tmp_path / "annotations/instances_val2017.json", content)
    assert any("nothing to measure" in note for note in task.dataset("val").notes)


def test_persons_of_area_0_are_said_to_be_that(tmp_path: Path) -> None:
    some = [annotation(BOX), annotation(BOX, area=0)]
    people.write(tmp_path, [some], split="val")
    assert pose(tmp_path).dataset("val").notes["persons whose area is 0, left out"] == 1
    people.write(tmp_path, [[annotation(BOX, area=0, num_keypoints=3)]], split="val")
    with pytest.raises(UserError, match="1 persons whose area is 0"):
        pose(tmp_path).dataset("val")
    notes = read(tmp_path / "annotations/person_keypoints_val2017.json").notes
    assert notes["objects whose num_keypoints is not the number of labelled key points"] == 1


def test_predictions_have_the_ids_of_the_annotations(tmp_path: Path) -> None:
    source = CocoFiles(str(save_set(tmp_path, document(), document())))
    assert fcos(source).class_ids == [3, 7, 90]
    answer = {"detections": [{"class": "book", "score": 0.5, "box": [1, 2, 3, 4]}], "width": 9, "height": 9}
    for data, ids in (
        (SimpleNamespace(classes=source.classes, ids=[3, 7, 90]), [3, 7, 90]),
        (SimpleNamespace(classes=source.classes), [1, 2, 3]),
    ):
        written = fcos(data).to_json([(Path("a.jpg"), None, [answer])])
        assert [entry["id"] for entry in written["categories"]] == ids
        assert written["annotations"][0]["category_id"] == ids[2]
