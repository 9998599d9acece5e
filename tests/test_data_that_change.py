"""Data that are not those of the run: other class names, another order, other samples, another place."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path
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
from tasks.coco.source import CocoFiles
from tasks.pose.source import CocoKeypoints
from tdaf.cli.compose import compose, differences
from tdaf.engine import checkpoint
from tdaf.engine.checkpoint import class_difference
from tdaf.engine.trained import Run
from tdaf.errors import UserError


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


def test_a_difference_says_both_sides() -> None:
    assert class_difference(["a", "b"], ["a", "b"]) == ""
    said = class_difference(list("abcdef"), list("af"))
    assert "6 classes were trained and the data have 2" in said and "b, c, d and 1 more" in said


def folders(root: Path, names: list[str], colours: dict[str, int]) -> Path:
    for split in ("train", "val"):
        for name in names:
            (root / split / name).mkdir(parents=True)
            Image.new("RGB", (30, 30), (colours[name],) * 3).save(root / split / name / "1.png")
    return root


def trained(root: Path, classes: list[str], **data: Any) -> Run:
    """As load_checkpoint opens the checkpoint of an ImageNet run."""
    settings = compose(
        ["task=imagenet", "recipe=demo", f"data.root={root}", *(f"data.{k}={v}" for k, v in data.items())]
    )
    return Run(Path("best.pt"), settings, classes, {})


def test_a_checkpoint_meets_a_folder_of_other_classes(tmp_path: Path) -> None:
    root = folders(tmp_path, ["cat", "dog"], {"cat": 10, "dog": 200})
    assert trained(root, ["cat", "dog"]).task(data=True).classes == ["cat", "dog"]
    mapped = trained(root, ["dog", "cat"]).task(data=True)
    assert mapped.classes == ["dog", "cat"]
    images = mapped.dataset("val").images
    grey = {images.read(k)[1]: int(images.read(k)[0].float().mean()) for k in range(2)}
    assert grey == {0: 200, 1: 10} and images.name(0) == "val/dog/1.png"
    with pytest.raises(
        UserError, match="trained for other classes.*only in the checkpoint: cow; only in the data: dog"
    ):
        trained(root, ["cat", "cow"]).task(data=True)
    assert trained(root, ["cat", "cow"], changed="true").task(data=True).classes == ["cat", "dog"]
    with pytest.raises(UserError, match="trained for 3 classes, and the data have 2.*only in the checkpoint: cow"):
        trained(root, ["cat", "dog", "cow"], changed="true").task(data=True)


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
