"""Annotations as people have them: names, lists and numbers that COCO's own files do not show."""

from __future__ import annotations

from typing import Any

import people
import pytest
from people import annotation

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
