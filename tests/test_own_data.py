"""Own data in COCO's format and own videos, by docs/extending.md's commands."""

import json
from pathlib import Path

import pages
import pytest
import videos
from coco_files import Document, document, save, save_images
from commands import call, script

from scripts import check_data, evaluate, predict
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


VP9 = {"deadline": "realtime", "cpu-used": "8"}
# where: codec, frames, (width, height), options
WHOLE: dict[str, tuple[str, int, tuple[int, int], dict[str, str]]] = {
    "train/a b/one.mp4": ("libx264", 1, (64, 48), {}),
    "train/a b/two.mkv": ("libx264", 2, (48, 64), {"bf": "2"}),
    "train/a b/no_b.mp4": ("libx264", 30, (64, 48), {"bf": "0", "g": "10"}),
    "train/a b/b.mp4": ("libx264", 40, (66, 50), {"bf": "3", "g": "12"}),
    "train/a b/long.mp4": ("libx264", 400, (48, 36), {"bf": "3", "g": "250", "preset": "ultrafast"}),
    "train/a b/mpeg4.avi": ("mpeg4", 25, (80, 46), {"bf": "0"}),
    "train/a b/UPPER.AVI": ("mpeg4", 17, (64, 48), {"bf": "2"}),
    "train/c/h264.avi": ("libx264", 33, (64, 48), {"bf": "2"}),
    "train/c/odd.webm": ("libvpx-vp9", 20, (61, 45), VP9),
    "train/c/tall.webm": ("libvpx-vp9", 12, (36, 90), VP9),
    "train/c/vp9.mkv": ("libvpx-vp9", 9, (64, 48), VP9),
    "train/c/vp9.mp4": ("libvpx-vp9", 16, (64, 48), VP9),
    "train/c/mpeg4.mp4": ("mpeg4", 15, (70, 40), {"bf": "2"}),
    "train/c/open.mkv": ("libx264", 50, (64, 48), {"bf": "4", "x264-params": "open-gop=1:keyint=11:scenecut=0"}),
    "val/a b/name: one, 50% [x].mp4": ("libx264", 31, (64, 48), {"bf": "2"}),
    "val/a b/small.mp4": ("libx264", 8, (16, 16), {}),
    "val/a b/mpeg4.mkv": ("mpeg4", 7, (64, 48), {"bf": "2"}),
    "val/c/vp9.webm": ("libvpx-vp9", 18, (64, 48), VP9),
    "val/c/wide.mp4": ("libx264", 64, (160, 32), {"bf": "0", "g": "1"}),
    "val/c/mpeg4.avi": ("mpeg4", 3, (64, 48), {"bf": "2"}),
}
DAMAGED = [
    *("train/a b/empty.mp4", "train/a b/cut.mp4", "train/c/garbage.webm", "train/c/sound.mp4"),
    *("val/a b/0 nothing.mp4", "val/c/headless.mp4"),
]
RUN = (
    "task=kinetics recipe=demo gpus=0 flows=2 trainer.max_steps=12 trainer.batch=4 trainer.pictures=1 "
    "trainer.evaluate_every=100 loader.workers=0 task.train_transform.size=16 "
    "task.val_transforms.clip.size=16 task.val_transforms.clip.short_side=16"
).split()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("folder")
    for name, (codec, frames, size, options) in WHOLE.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        videos.write(root / name, videos.pattern(frames, *size), 25, codec=codec, **options)
    (root / "train/a b/empty.mp4").touch()
    whole = (root / "train/a b/b.mp4").read_bytes()
    (root / "train/a b/cut.mp4").write_bytes(whole[: len(whole) // 2])
    (root / "train/c/garbage.webm").write_bytes(bytes(range(256)) * 20)
    videos.sound(root / "train/c/sound.mp4")
    videos.write(root / "val/a b/0 nothing.mp4", videos.pattern(0))
    (root / "val/c/headless.mp4").write_bytes(whole[200:])
    assert len(WHOLE) == 20 and len(DAMAGED) == 6
    return root


def test_the_skip_list_leaves_them_out(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out, run = tmp_path / "skip.txt", tmp_path / "run"
    (_, *check), (_, *train), _ = pages.commands("own videos", **{"PATH": folder, "skip.txt": out})
    assert script(check_data.check, [*check, "loader.workers=0"]) == 1
    assert sorted(out.read_text().splitlines()) == sorted(DAMAGED)
    assert call(monkeypatch, [*train, *RUN[2:], f"run_dir={run}", "trainer.max_steps=2"]) == 0
    assert "6 on the skip list" in (run / "log.txt").read_text()
    summary = json.loads((run / "summary.json").read_text())
    assert (summary["metrics"]["videos"], summary["samples"], summary["skipped"]) == (6, 18, 2)
    assert summary["skipped_in_training"] == 0
