"""Demo pictures for classification, and the demo data on disk: the same bytes whenever drawn, and never half there."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageDraw

from tdaf.demo import action, classification, coco, scene
from tdaf.demo.prepare import LOCK, MANIFEST, prepare, store
from tdaf.errors import UserError

SMALL = {"seed": 3, "train": 20, "val": 10, "size": 32}
SIZES = {"imagenet": 32, "search": 48, "single": 48, "cifar10": 32, "coco_fcos": 96, "coco_pose": 96, "kinetics": 32}


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def folders(root: Path) -> list[Path]:
    return sorted(path for path in root.iterdir() if path.name != LOCK)


def cifar_arrays(split: str, count: int) -> tuple[np.ndarray, np.ndarray]:
    pictures = [np.asarray(classification.cifar_picture(0, split, index)) for index in range(count)]
    labels = [classification.label(index) for index in range(count)]
    return np.stack(pictures).astype(np.float64) / 255, np.array(labels)


@pytest.mark.parametrize("name", scene.SHAPES)
def test_a_shape_has_its_area_and_place_and_pixels(name: str) -> None:
    rng = np.random.default_rng(0)
    for width, height in [(90, 60), (60, 90), (64, 64)] * 30:
        points = scene.random_shape(rng, name, 700.0, 1.2)
        left, top, right, bottom = scene.box(points)
        assert scene.area(points) == pytest.approx(700)
        assert (left + right, top + bottom) == pytest.approx((0, 0))
        # A figure survives a centre crop.
        left, top, right, bottom = scene.box(classification.figure(rng, name, width, height))
        short = min(width, height)
        assert left >= (width - short) / 2 and right <= (width + short) / 2
        assert top >= (height - short) / 2 and bottom <= (height + short) / 2
    points = scene.random_shape(rng, name, 1500.0) + [50.3, 49.6]
    image = Image.new("RGB", (100, 100))
    scene.paste(image, points, (255, 255, 255))
    assert (np.asarray(image)[..., 0] / 255).sum() == pytest.approx(1500, rel=0.04)
    assert np.abs(np.array(image.getbbox()) - scene.box(points)).max() < 1.3


def test_turns_are_clockwise_the_ring_has_a_hole_and_overhang_is_cut_off() -> None:
    up = np.array([[0.0, -1.0], [0.2, 1.0], [-0.2, 1.0]])
    tip = scene.fit(up, 10.0, degrees=90.0)[0]
    assert tip[0] > 0 and tip[1] == pytest.approx(0, abs=1e-9)
    rng = np.random.default_rng(2)
    image = Image.new("RGB", (60, 60))
    scene.paste(image, scene.fit(scene.outline("ring", rng), 900.0) + 30, (255, 0, 0))
    assert image.getpixel((30, 30)) == (0, 0, 0)
    before = image.copy()
    scene.paste(image, scene.fit(scene.outline("star", rng), 900.0) + [-200, 30], (255, 0, 0))
    assert image == before
    scene.paste(image, scene.fit(scene.outline("square", rng), 900.0), (0, 0, 255))
    assert image.getpixel((5, 5)) == (0, 0, 255)


@pytest.mark.parametrize(
    "draw",
    [
        lambda *sample: classification.imagenet_scene(*sample, 64)[0].tobytes(),
        lambda *sample: classification.cifar_picture(*sample).tobytes(),
        lambda *sample: coco.detection_scene(*sample, 96).image.tobytes(),
        lambda *sample: coco.pose_scene(*sample, 96).image.tobytes(),
        lambda *sample: action.encoded(action.video(*sample, 32)),
    ],
)
def test_samples_depend_on_seed_split_and_index_alone(draw: Callable[..., bytes]) -> None:
    samples = [(0, "train", 0), (0, "train", 60), (0, "val", 0), (1, "train", 0)]
    forward = [draw(*sample) for sample in samples]
    assert [draw(*sample) for sample in reversed(samples)] == forward[::-1]
    assert len(set(forward)) == len(samples)


def accuracies(train: np.ndarray, labels: np.ndarray, val: np.ndarray, truth: np.ndarray) -> list[float]:
    """Of least squares onto the classes, and of the nearest class mean."""
    mean, scale = train.mean(axis=0), train.std(axis=0)
    train, val = (train - mean) / scale, (val - mean) / scale
    means = np.stack([train[labels == label].mean(axis=0) for label in range(10)])
    nearest = ((val[:, None] - means) ** 2).sum(axis=-1).argmin(axis=1)
    weights = np.linalg.lstsq(np.c_[train, np.ones(len(train))], np.eye(10)[labels], rcond=None)[0]
    linear = (np.c_[val, np.ones(len(val))] @ weights).argmax(axis=1)
    return [(guess == truth).mean() for guess in (linear, nearest)]


def test_class_is_not_in_colour_brightness_or_place() -> None:
    (train, labels), (val, truth) = cifar_arrays("train", 1000), cifar_arrays("val", 500)

    def thumbnail(pictures: np.ndarray, cells: int) -> np.ndarray:
        side = 32 // cells
        return pictures.reshape(-1, cells, side, cells, side, 3).mean(axis=(2, 4)).reshape(len(pictures), -1)

    for cells in (1, 4):
        parts = thumbnail(train, cells), labels, thumbnail(val, cells), truth
        assert max(accuracies(*parts)) < 0.22
    # Both do find a class that tints its pictures, slightly.
    tint = np.eye(10)[:, :9].reshape(10, 3, 3).mean(axis=1)[:, None, None]
    parts = thumbnail(train + tint[labels], 1), labels, thumbnail(val + tint[truth], 1), truth
    assert min(accuracies(*parts)) > 0.25


def test_contrast_of_figure_and_ground() -> None:
    luma = np.array([0.299, 0.587, 0.114])
    for seed in range(300):
        rng = np.random.default_rng(seed)
        ground = scene.ground_colours(rng)
        assert (scene.figure_colours(rng, ground) @ luma).min() > (ground @ luma).max() + 40


@pytest.mark.parametrize(("kind", "others"), [("search", 3), ("single", 0)])
def test_the_odd_one_has_the_hue_that_no_other_has(kind: str, others: int) -> None:
    orange, sizes = [], []  # whether it is; how much larger all that has the other hue is
    for index in range(60):
        image, points = classification.SCENES[kind](0, "val", index, 72)
        left, top, right, bottom = scene.box(points)
        assert min(left, top) > 0 and max(right, bottom) < 72
        inside = Image.new("1", image.size)
        ImageDraw.Draw(inside).polygon([tuple(point) for point in points], fill=1)
        red, _, blue = np.asarray(image, int).transpose(2, 0, 1)
        # ground and clutter are at most 150 in every colour, or of any hue, and small
        warm, cold = ((more - less > 70) & (more > 160) for more, less in ((red, blue), (blue, red)))
        on = np.asarray(inside)
        orange.append(warm[on].sum() > cold[on].sum())
        odd, common = (warm, cold) if orange[-1] else (cold, warm)
        assert odd[on].sum() > 3 * common[on].sum()
        sizes.append((common & ~on).sum() / on.sum())
    assert np.median(sizes) == pytest.approx(others, abs=0.2 * others + 0.05)
    assert 20 < sum(orange) < 40 and len({*orange[::10]}) == 2


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


def test_cifar_layout(tmp_path: Path) -> None:
    root = prepare("cifar10", tmp_path, seed=3, train=53, val=10, size=32) / "cifar-10-batches-py"

    def read(name: str) -> dict[str, Any]:
        return pickle.loads((root / name).read_bytes(), encoding="latin1")  # as torchvision.datasets.CIFAR10 reads

    batches = [read(name) for name in [*(f"data_batch_{part}" for part in range(1, 6)), "test_batch"]]
    for batch, count in zip(batches, [10, 11, 10, 11, 11, 10], strict=True):
        assert set(batch) == {"batch_label", "labels", "data", "filenames"}
        assert batch["data"].dtype == np.uint8 and batch["data"].shape == (count, 3072)
        assert len(batch["filenames"]) == len(batch["labels"]) == count
    assert [batches[part]["batch_label"] for part in (0, 5)] == ["training batch 1 of 5", "testing batch 1 of 1"]
    planar = batches[0]["data"][4].reshape(3, 32, 32).transpose(1, 2, 0)
    assert np.array_equal(planar, np.asarray(classification.cifar_picture(3, "train", 4)))
    assert read("batches.meta") == {
        "label_names": list(scene.SHAPES), "num_vis": 3072, "num_cases_per_batch": 10,
    }  # fmt: skip
    assert (root / "test_batch").read_bytes().startswith(b"\x80\x02")  # protocol 2, as the official files


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
    ({"val": 0}, "at least 10"),
    ({"seed": -1}, "must not be negative"),
    ({"size": 10}, "24 or more"),
    ({"kind": "cifar10", "size": 64}, "32 to 32"),
    ({"kind": "coco_fcos", "train": 5}, "at least 6"),
    ({"kind": "coco_fcos", "size": 9000}, "size=9000.*64 to 1024"),
    ({"kind": "coco_pose", "size": 64}, "size=64.*96 to 1024"),
    ({"kind": "kinetics", "val": 5}, "at least 6"),
]


@pytest.mark.parametrize(("change", "message"), WRONG)
def test_settings_that_cannot_work(tmp_path: Path, change: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        prepare(**{"kind": "imagenet", "root": tmp_path, **SMALL, **change})
    assert list(tmp_path.iterdir()) == []
