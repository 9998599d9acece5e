"""Demo pictures and videos, and the demo data on disk: the same bytes whenever drawn, and never half there."""

from __future__ import annotations

import csv
import os
import subprocess
import sys
import time
from pathlib import Path

import av
import numpy as np
import pytest
from packing import contents
from PIL import Image

from tdaf.demo import action, scene
from tdaf.demo.prepare import LOCK, MANIFEST, prepare, store
from tdaf.errors import UserError

SMALL = {"seed": 3, "train": 20, "val": 10, "size": 32}
SIZES = {"imagenet": 32, "cifar10": 32, "coco_fcos": 96, "coco_pose": 96, "kinetics": 32}


def folders(root: Path) -> list[Path]:
    return sorted(path for path in root.iterdir() if path.name != LOCK)


def test_imagenet_layout(tmp_path: Path) -> None:
    from torchvision.datasets import ImageFolder

    root = prepare("imagenet", tmp_path, seed=3, train=120, val=20, size=40)
    train, val = ImageFolder(root / "train"), ImageFolder(root / "val")
    wnids = [f"n{number:08d}" for number in range(1, 11)]
    assert train.classes == val.classes == wnids
    assert np.bincount(train.targets).tolist() == [12] * 10 and np.bincount(val.targets).tolist() == [2] * 10
    named = dict(line.split() for line in (root / "classes.txt").read_text().splitlines())
    assert named == dict(zip(wnids, scene.SHAPES, strict=True))
    opened = [Image.open(path) for path, _ in train.samples]
    assert {image.format for image in opened} == {"JPEG"} and {image.mode for image in opened} == {"RGB", "L"}
    shorts, aspects = zip(*((min(image.size), image.width / image.height) for image in opened), strict=True)
    assert len(set(shorts)) > 5 and min(shorts) >= 34 and max(shorts) <= 46
    assert min(aspects) < 0.8 and max(aspects) > 1.25


@pytest.mark.parametrize("kind", SIZES)
def test_same_settings_same_bytes_other_seed_other_bytes(tmp_path: Path, kind: str) -> None:
    settings = {"train": 12, "val": 10, "size": SIZES[kind]}
    first = prepare(kind, tmp_path / "a", seed=3, **settings)
    inode = first.stat().st_ino
    assert prepare(kind, tmp_path / "a", seed=3, **settings) == first and first.stat().st_ino == inode
    assert contents(prepare(kind, tmp_path / "b", seed=3, **settings)) == contents(first)
    other = prepare(kind, tmp_path / "a", seed=4, **settings)
    assert folders(tmp_path / "a") == sorted([first, other]) and contents(other).keys() == contents(first).keys()
    same = dict(contents(first).items() & contents(other).items())
    assert set(same) <= {"classes.txt", "cifar-10-batches-py/batches.meta", "train.csv", "val.csv"}


@pytest.mark.parametrize("manifest", [True, False])
@pytest.mark.parametrize("gone", [True, False])
def test_damaged_data_is_drawn_anew(tmp_path: Path, manifest: bool, gone: bool) -> None:
    folder = prepare("imagenet", tmp_path, **SMALL)
    before = contents(folder)
    victim = folder / MANIFEST if manifest else next((folder / "val").rglob("*.JPEG"))
    victim.unlink() if gone else os.truncate(victim, 30)
    assert contents(folder) != before
    assert contents(prepare("imagenet", tmp_path, **SMALL)) == before
    assert folders(tmp_path) == [folder]


def test_a_write_that_fails_leaves_nothing(tmp_path: Path) -> None:
    def full(folder: Path) -> None:
        (folder / "half").write_text("half")
        raise OSError(28, "No space left on device")

    with pytest.raises(UserError, match="cannot write demo data to .*: No space left on device"):
        store(tmp_path, {"kind": "x"}, full)
    assert folders(tmp_path) == []
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="Not a directory; give another root|File exists; give another root"):
        prepare("imagenet", tmp_path / "file", **SMALL)


def test_a_killed_write_is_not_taken_for_whole_and_is_swept(tmp_path: Path) -> None:
    code = (
        "import os, sys; from pathlib import Path; from tdaf.demo.prepare import store\n"
        "def write(folder): (folder / 'a').write_text('half'); os.kill(os.getpid(), 9)\n"
        "store(Path(sys.argv[1]), {'kind': 'x', 'seed': 1}, write)"
    )
    assert subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False).returncode == -9
    assert len(folders(tmp_path)) == 1
    folder = store(tmp_path, {"kind": "x", "seed": 1}, lambda folder: (folder / "a").write_text("whole"))
    assert (folder / "a").read_text() == "whole" and folders(tmp_path) == [folder]


def test_of_racing_processes_one_draws_and_all_find_it(tmp_path: Path) -> None:
    code = (
        "import sys, time; from pathlib import Path; from tdaf.demo import prepare as demo\n"
        "assert not {'numpy', 'PIL', 'av'} & set(sys.modules), 'drawing costs nothing until something is drawn'\n"
        "time.sleep(max(0, float(sys.argv[2]) - time.time()))\n"
        "print(demo.prepare('imagenet', Path(sys.argv[1]), seed=3, train=20, val=10, size=32))\n"
        "print('tdaf.demo.scene' in sys.modules)\n"
        "assert not {'torch', 'torchvision'} & set(sys.modules)"
    )
    expected, root = contents(prepare("imagenet", tmp_path / "alone", **SMALL)), tmp_path / "race"
    command = [sys.executable, "-c", code, str(root), str(time.time() + 1)]
    racers = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    printed = [racer.communicate(timeout=60)[0].split() for racer in racers]
    (folder,) = folders(root)
    assert [racer.returncode for racer in racers] == [0, 0, 0]
    assert {path for path, _ in printed} == {str(folder)} and contents(folder) == expected
    assert [drew for _, drew in printed].count("True") == 1


WRONG = [
    ({"kind": "mnist"}, "no kind 'mnist'"),
    ({"train": 9}, "at least 10"),
    ({"seed": -1}, "must not be negative"),
    ({"kind": "coco_fcos", "train": 5}, "at least 6"),
    ({"kind": "coco_fcos", "size": 9000}, "size=9000.*64 to 1024"),
]


@pytest.mark.parametrize(("change", "message"), WRONG)
def test_settings_that_cannot_work(tmp_path: Path, change: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        prepare(**{"kind": "imagenet", "root": tmp_path, **SMALL, **change})
    assert list(tmp_path.iterdir()) == []


def test_classes_move_as_they_are_called() -> None:
    for seed in range(20):
        steps = {}
        for name in action.NAMES:
            path = action.poses(np.random.default_rng(seed), name, 60, 44, 24)
            jump = np.diff(path, axis=0)
            steps[name] = (jump + [30, 22, 180]) % [60, 44, 360] - [30, 22, 180]
            np.testing.assert_allclose(steps[name], steps[name][:1].repeat(23, axis=0), atol=1e-9)
            assert np.count_nonzero(np.abs(steps[name][0]) > 1e-9) == 1
        pace = steps["moving right"][0, 0]
        assert steps["moving left"][0, 0] == pytest.approx(-pace) and pace > 0.8
        assert steps["moving down"][0, 1] == pytest.approx(pace)  # y points down
        assert steps["moving up"][0, 1] < 0
        assert 5 < steps["turning clockwise"][0, 2] < 12
        assert steps["turning clockwise"][0, 2] == pytest.approx(-steps["turning anticlockwise"][0, 2])


def test_layout(tmp_path: Path) -> None:
    tmp_path = prepare("kinetics", tmp_path, seed=3, train=14, val=6, size=32)
    inode = tmp_path.stat().st_ino
    (tmp_path / "frame_counts.csv").write_text("kept by tasks/action/counts.py")
    assert prepare("kinetics", tmp_path.parent, seed=3, train=14, val=6, size=32).stat().st_ino == inode, "drawn again"
    for split, count in (("train", 14), ("val", 6)):
        files = sorted(path.relative_to(tmp_path / split) for path in (tmp_path / split).rglob("*.mp4"))
        rows = list(csv.DictReader((tmp_path / f"{split}.csv").open()))
        assert list(rows[0]) == ["label", "youtube_id", "time_start", "time_end", "split"] and len(rows) == count
        assert {row["split"] for row in rows} == {split}
        ends = [f"{int(row['time_start']):06d}_{int(row['time_end']):06d}.mp4" for row in rows]
        named = {Path(row["label"]) / f"{row['youtube_id']}_{end}" for row, end in zip(rows, ends, strict=True)}
        assert named == set(files) and {len(row["youtube_id"]) for row in rows} == {11}
        assert {row["label"] for row in rows} == set(action.NAMES)
    sizes, counts = set(), set()
    for path in tmp_path.rglob("*.mp4"):
        with av.open(str(path)) as container:
            stream = container.streams.video[0]
            assert stream.codec_context.name == "h264" and stream.codec_context.pix_fmt == "yuv420p"
            assert stream.average_rate == 25
            sizes.add((stream.width, stream.height))
            counts.add(sum(1 for _ in container.decode(stream)))
    assert len(sizes) > 5 and min(map(min, sizes)) >= 28 and all(w % 2 == h % 2 == 0 for w, h in sizes)
    assert min(counts) >= 24 and max(counts) <= 40 and len(counts) > 5
