"""Annotations as people have them: names, lists and numbers that COCO's own files do not show; and data that are not
those of the run: other class names, another order, other samples, another place."""

import hashlib
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import people
import pytest
from coco_files import document, save, save_set
from commands import call, tiny
from people import annotation
from PIL import Image
from tiny_run import ColourTask, Pictures, run, trainer

from tasks.coco import scoring
from tasks.coco.annotations import read
from tasks.coco.source import CocoFiles
from tasks.detection.task import Fcos
from tasks.detection.transforms import val_transform
from tasks.pose import source
from tasks.pose.augment import Augmentation
from tasks.pose.source import CocoKeypoints
from tasks.pose.task import Pose
from tdaf.cli.compose import compose, differences
from tdaf.engine import checkpoint
from tdaf.engine.trained import Run
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


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("begun") / "run"
    run(trainer(folder, max_steps=6))
    return folder


class Renamed(Pictures):
    def name(self, index: int) -> str:
        return f"other-{index}.jpg"


@pytest.mark.parametrize(
    "classes, train, message",
    [
        (["black", "red", "green", "amber"], None, "other classes.*checkpoint: yellow; only in the data: amber"),
        (["red", "black", "green", "yellow"], None, "same classes in another order .number 1 was black and is red"),
        (None, Pictures(45), "44 samples in train then, 45 now"),
        (None, Renamed(44), "as many samples in train, but other files"),
    ],
)
def test_a_run_does_not_go_on_with_other_data(
    begun: Path, tmp_path: Path, classes: list[str] | None, train: Pictures | None, message: str
) -> None:
    shutil.copytree(begun, tmp_path / "run")
    (tmp_path / "run" / "summary.json").unlink()
    task = ColourTask(train)
    task.classes = tuple(classes or task.classes)

    def going_on() -> Any:
        return trainer(tmp_path / "run", task=task, max_steps=12)

    with pytest.raises(UserError, match=message) as raised:
        going_on().fit()
    assert "data.changed=true" in str(raised.value)
    accepted = going_on()
    accepted.changed_data = True
    assert run(accepted).step == 12
    about = checkpoint.load(tmp_path / "run/checkpoints/last.pt")["about"]
    assert about["classes"] == list(task.classes) and about["samples"]["train"]["count"] == len(task.dataset("train"))
    run(going_on())  # they are now the run's own


def test_a_checkpoint_that_does_not_say_its_samples_goes_on(begun: Path, tmp_path: Path) -> None:
    shutil.copytree(begun, tmp_path / "run")
    (tmp_path / "run/summary.json").unlink()
    state = checkpoint.load(tmp_path / "run/checkpoints/last.pt")
    del state["about"]["samples"]
    checkpoint.save(state, tmp_path / "run/checkpoints/last.pt")
    assert run(trainer(tmp_path / "run", train=Pictures(45), max_steps=12)).step == 12


def folders(root: Path, names: list[str], colours: dict[str, int]) -> Path:
    for split in ("train", "val"):
        for name in names:
            (root / split / name).mkdir(parents=True)
            Image.new("RGB", (30, 30), (colours[name],) * 3).save(root / split / name / "1.png")
    return root


def opened(root: Path, classes: list[str], **data: Any) -> Run:
    """As load_checkpoint opens the checkpoint of an ImageNet run."""
    settings = compose(
        ["task=imagenet", "recipe=demo", f"data.root={root}", *(f"data.{k}={v}" for k, v in data.items())]
    )
    return Run(Path("best.pt"), settings, classes, {})


def test_a_checkpoint_meets_a_folder_of_other_classes(tmp_path: Path) -> None:
    root = folders(tmp_path, ["cat", "dog"], {"cat": 10, "dog": 200})
    assert opened(root, ["cat", "dog"]).task(data=True).classes == ["cat", "dog"]
    mapped = opened(root, ["dog", "cat"]).task(data=True)
    assert mapped.classes == ["dog", "cat"]
    images = mapped.dataset("val").images
    grey = {images.read(k)[1]: int(images.read(k)[0].float().mean()) for k in range(2)}
    assert grey == {0: 200, 1: 10} and images.name(0) == "val/dog/1.png"
    with pytest.raises(
        UserError, match="trained for other classes.*only in the checkpoint: cow; only in the data: dog"
    ):
        opened(root, ["cat", "cow"]).task(data=True)
    assert opened(root, ["cat", "cow"], changed="true").task(data=True).classes == ["cat", "dog"]
    with pytest.raises(UserError, match="trained for 3 classes, and the data have 2.*only in the checkpoint: cow"):
        opened(root, ["cat", "dog", "cow"], changed="true").task(data=True)


def test_categories_in_another_order_are_scored_by_their_names(tmp_path: Path) -> None:
    save_set(tmp_path, document(), document())
    results = [
        {"image_id": a["image_id"], "category_id": a["category_id"], "score": 0.9, "bbox": a["bbox"]}
        for a in document()["annotations"][::3]
    ]
    plain, mapped = CocoFiles(str(tmp_path)), CocoFiles(str(tmp_path))
    own = ["book", "dog", "cup"]
    mapped.reorder(own)
    assert plain.classes == ["dog", "cup", "book"] and mapped.classes == own
    one, other = plain.split("val").annotations, mapped.split("val").annotations
    assert mapped.split("val").annotations is other
    for index in range(len(one)):
        labels = [
            [source.classes[k] for k in source.split("train").annotations.usable(index)[1]]
            for source in (plain, mapped)
        ]
        assert labels[0] == labels[1]
    first, second = scoring.score(one, results, "bbox"), scoring.score(other, results, "bbox")
    assert first.values == second.values and first.categories == second.categories


def test_key_points_in_another_order_are_taken_by_their_names(tmp_path: Path) -> None:
    points = [60.0, 40.0, 2.0, 70.0, 30.0, 2.0, 80.0, 50.0, 1.0]
    people.write(tmp_path, [[annotation((50, 20, 40, 80), keypoints=points)]], ["a", "b", "c"])
    source = CocoKeypoints(str(tmp_path))
    source.reorder(["c", "a", "b"])
    annotations = source.split("val").annotations
    assert source.classes == annotations.keypoint_names == ["c", "a", "b"]
    assert annotations.objects(0)["keypoints"][0].tolist() == np.reshape(points, (3, 3))[[2, 0, 1]].tolist()


def test_a_data_set_that_lies_elsewhere_is_the_same_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    here, there, other = (compose([f"data.root={root}"]) for root in ("/x/set", "/y/z/set/", "/x/fold2"))
    assert differences(here, other) == []
    assert here["run_dir"] == there["run_dir"] != other["run_dir"]
    assert here["run_dir"].endswith("-data.root=set")
    # as version 0.1.0 named it: the whole path, and a checksum as it has slashes
    exact = hashlib.sha256(b"data.root=/x/set").hexdigest()[:8]
    named = here["run_dir"].replace("-data.root=set", f"-data.root=_x_set-{exact}")
    save(tmp_path / named / "config.yaml", "")
    assert compose(["data.root=/x/set"])["run_dir"] == named
    assert compose(["data.root=/y/set"])["run_dir"] == here["run_dir"]


def test_a_run_goes_on_with_data_that_moved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.chdir(tmp_path)
    demo = tiny(tmp_path / "demo")
    assert call(monkeypatch, [*demo, "run_dir=run", "trainer.max_steps=2"]) == 0
    drawn = next(path.parent for path in (tmp_path / "demo").rglob("train") if path.is_dir())
    shutil.copytree(drawn, tmp_path / "new")
    capsys.readouterr()
    assert call(monkeypatch, ["resume=run", f"data.root={tmp_path}/new"]) == 0
    assert "finished" in capsys.readouterr().out
    (tmp_path / "run/summary.json").unlink()
    assert call(monkeypatch, ["resume=run", f"data.root={tmp_path}/new"]) == 0
    assert f"root: {tmp_path}/new" in (tmp_path / "run/config.yaml").read_text()
    first = sorted((tmp_path / "new/val").iterdir())[0]
    for split in ("train", "val"):
        (tmp_path / "new" / split / first.name).rename(tmp_path / "new" / split / "zebra")
    shutil.copytree(tmp_path / "new", tmp_path / "renamed")
    capsys.readouterr()
    assert call(monkeypatch, ["resume=run", f"data.root={tmp_path}/renamed"]) == 2
    assert "only in the data: zebra" in capsys.readouterr().err
