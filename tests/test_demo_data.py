"""Demo pictures and videos, and the demo data on disk: the same bytes whenever drawn, never half there, and in COCO's
format what the files say is what was drawn."""

import csv
import json
import os
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from packing import contents
from PIL import Image, ImageDraw
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from tdaf.demo import action, classification, coco, scene
from tdaf.demo.coco import RESULTS
from tdaf.demo.figure import JOINTS
from tdaf.demo.prepare import LOCK, MANIFEST, prepare, store
from tdaf.errors import UserError

SMALL = {"seed": 3, "train": 20, "val": 10, "size": 32}
SIZES = {"imagenet": 32, "search": 48, "single": 48, "cifar10": 32, "coco_fcos": 96, "coco_pose": 96, "kinetics": 32}


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


@pytest.mark.parametrize(("kind", "others"), [("search", 3), ("single", 0)])
def test_the_odd_one_has_the_hue_that_no_other_has(kind: str, others: int) -> None:
    orange, sizes = [], []  # whether it is; how much larger all that has the other hue is
    for index in range(60):
        image, points = classification.SCENES[kind](0, "val", index, 72)
        left, top, right, bottom = scene.box(points)
        assert min(left, top) > -5 and max(right, bottom) < 77  # nearly all of it is in the picture
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


FILES = {"coco_fcos": "instances", "coco_pose": "person_keypoints"}
SIDES = {"coco_fcos": 128, "coco_pose": 192}
FINE = 10  # of the masks rendered here, another grid than that of the drawing


@pytest.fixture(scope="module")
def roots(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("demo")
    return {kind: prepare(kind, folder, seed=5, train=6, val=42, size=SIDES[kind]) for kind in FILES}


def opened(roots: dict[str, Path], kind: str, split: str = "val") -> COCO:
    return COCO(roots[kind] / "annotations" / f"{FILES[kind]}_{split}2017.json")


@pytest.mark.parametrize("kind", FILES)
def test_files_open_as_coco_and_agree_with_the_pictures(roots: dict[str, Path], kind: str) -> None:
    seen: list[int] = []
    for split, count in (("train", 6), ("val", 42)):
        coco = opened(roots, kind, split)
        assert {"info", "licenses", "images", "annotations", "categories"} == set(coco.dataset)
        files = {path.name: Image.open(path) for path in (roots[kind] / f"{split}2017").iterdir()}
        assert len(coco.imgs) == len(coco.dataset["images"]) == len(files) == count
        assert len(coco.anns) == len(coco.dataset["annotations"]) and min(coco.anns) > 0
        for number, image in coco.imgs.items():
            assert image["file_name"] == f"{number:012d}.jpg"
            assert files[image["file_name"]].size == (image["width"], image["height"])
            assert 0.9 * SIDES[kind] - 1 <= min(image["width"], image["height"]) <= 1.1 * SIDES[kind] + 1
        assert all(a["category_id"] in coco.cats for a in coco.anns.values())
        for a in coco.anns.values():
            image, (x, y, width, height) = coco.imgs[a["image_id"]], a["bbox"]
            assert 0 <= x and x + width <= image["width"] and 0 <= y and y + height <= image["height"]
            mask = coco.annToMask(a)
            assert mask.shape == (image["height"], image["width"])
            assert 0 < a["area"] <= width * height and a["area"] == pytest.approx(mask.sum(), rel=0.25, abs=8)
        seen += coco.imgs
    assert len(set(seen)) == 48
    assert {image["width"] > image["height"] for image in coco.imgs.values()} == {True, False}
    assert sum(not coco.getAnnIds(imgIds=[number]) for number in coco.imgs) == 1
    (crowd,) = (a for a in coco.anns.values() if a["iscrowd"])
    rows, columns = np.nonzero(coco.annToMask(crowd))
    assert crowd["area"] == len(rows) > 0.2 * crowd["bbox"][2] * crowd["bbox"][3]
    assert crowd["bbox"] == [columns.min(), rows.min(), np.ptp(columns) + 1, np.ptp(rows) + 1]


def test_classes_have_gaps_in_their_ids_and_six_pictures_show_all(roots: dict[str, Path]) -> None:
    coco = opened(roots, "coco_fcos", "train")
    ids = [category["id"] for category in coco.dataset["categories"]]
    assert ids == sorted(ids) and max(ids) > len(ids) == 6
    assert {a["category_id"] for a in coco.anns.values()} == set(ids)
    assert {category["name"] for category in coco.dataset["categories"]} <= set(scene.SHAPES)


def rendered(points: scene.Points, frame: tuple[int, int]) -> np.ndarray:
    image = Image.new("1", (frame[0] * FINE, frame[1] * FINE))
    ImageDraw.Draw(image).polygon((points * FINE - 0.5).ravel().tolist(), fill=1)
    return np.asarray(image)


def test_boxes_and_areas_are_those_of_what_can_be_seen() -> None:
    count = hidden = 0
    sizes: Counter[str] = Counter()
    for index in range(14):
        drawn = coco.detection_scene(1, "train", index, 128)
        layout = drawn.layout
        alone = [rendered(shape.parts[0].points, layout.frame) for shape in layout.figures]
        front = [rendered(points, layout.frame) for points, _ in layout.front]
        for place, annotation in enumerate(drawn.annotations):
            mask = alone[place] & ~np.any([np.zeros_like(alone[0]), *alone[place + 1 :], *front], axis=0)
            y, x = np.nonzero(mask)
            x0, y0, width, height = annotation["bbox"]
            ends = np.array([x.min(), y.min(), x.max() + 1, y.max() + 1]) / FINE
            assert np.abs(ends - [x0, y0, x0 + width, y0 + height]).max() <= 0.5
            assert annotation["area"] == pytest.approx(mask.sum() / FINE**2, rel=0.05)
            assert mask.sum() > 0.24 * alone[place].sum()
            hidden += mask.sum() < 0.9 * alone[place].sum()
            count += 1
    assert hidden > 5 and count > 30
    areas = [a["area"] for index in range(70) for a in coco.detection_scene(0, "train", index, 128).annotations]
    sizes = Counter("small" if area < 32**2 else "medium" if area < 96**2 else "large" for area in areas)
    assert sizes["medium"] > len(areas) / 2 and sizes["small"] > len(areas) / 6 and sizes["large"] >= 5


def plain(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pictures without grain, clutter and patterns, so that a pixel's colour tells who drew it."""

    def flat(rng: np.random.Generator, colours: np.ndarray, width: int, height: int) -> Image.Image:
        return Image.new("RGB", (width, height), tuple(colours[0].astype(int).tolist()))

    monkeypatch.setattr(scene, "texture", flat)
    monkeypatch.setattr(scene, "clutter", lambda *args: None)
    monkeypatch.setattr(scene, "fragments", lambda *args: [])
    monkeypatch.setattr(scene, "grain", lambda rng, image, strength: image)


def test_left_is_warm_and_right_is_cool_in_the_pixels_of_the_joints(monkeypatch: pytest.MonkeyPatch) -> None:
    plain(monkeypatch)
    right = wrong = 0
    for index in range(8):
        drawn = coco.pose_scene(3, "train", index, 192)
        pixels = np.asarray(drawn.image).astype(int)
        for record in drawn.annotations:
            for name, (x, y, flag) in zip(JOINTS, np.array(record["keypoints"]).reshape(17, 3), strict=True):
                if flag == 2 and name.endswith(("elbow", "knee", "ankle", "ear")):
                    red, _, blue = pixels[y, x]
                    right += (red > blue) == name.startswith("left")
                    wrong += (red > blue) != name.startswith("left")
    assert right > 60 and wrong <= 0.03 * right


def test_the_detectors_file_is_a_fair_detectors(roots: dict[str, Path]) -> None:
    coco = opened(roots, "coco_pose")
    results: list[dict[str, Any]] = json.loads((roots["coco_pose"] / RESULTS).read_text())
    assert all(result["category_id"] == 1 and min(result["bbox"][2:]) > 0 for result in results)
    judge = COCOeval(coco, coco.loadRes(results), "bbox")
    judge.evaluate()
    judge.accumulate()
    judge.summarize()
    assert 0.5 < judge.stats[0] < 0.95 and 0.8 < judge.stats[1] < 1
    persons = sum(not a["iscrowd"] for a in coco.anns.values())
    sure = sum(result["score"] > 0.5 for result in results)
    assert 0 < len(results) - sure < persons / 3 and 0.8 * persons < sure < persons
