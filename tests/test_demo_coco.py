"""The demo data in COCO's format: what the files say is what was drawn."""

from __future__ import annotations

import json
import os
import signal
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageDraw
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from tdaf.demo import contour, detection, layers, pose, scene, shapes
from tdaf.demo.figure import JOINTS, SKELETON
from tdaf.demo.parallel import drawn
from tdaf.demo.prepare import prepare
from tdaf.errors import UserError

FILES = {"coco_fcos": "instances", "coco_pose": "person_keypoints"}
SIZES = {"coco_fcos": 128, "coco_pose": 192}
FINE = 10  # of the masks rendered here, another grid than that of the drawing


@pytest.fixture(scope="module")
def roots(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("demo")
    return {kind: prepare(kind, folder, seed=5, train=6, val=42, size=SIZES[kind]) for kind in FILES}


def opened(roots: dict[str, Path], kind: str, split: str = "val") -> COCO:
    return COCO(roots[kind] / "annotations" / f"{FILES[kind]}_{split}2017.json")


def rendered(points: shapes.Points, frame: tuple[int, int]) -> np.ndarray:
    image = Image.new("1", (frame[0] * FINE, frame[1] * FINE))
    ImageDraw.Draw(image).polygon((points * FINE - 0.5).ravel().tolist(), fill=1)
    return np.asarray(image)


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
            assert 0.9 * SIZES[kind] - 1 <= min(image["width"], image["height"]) <= 1.1 * SIZES[kind] + 1
        assert all(a["image_id"] in coco.imgs and a["category_id"] in coco.cats for a in coco.anns.values())
        for a in coco.anns.values():
            image, (x, y, width, height) = coco.imgs[a["image_id"]], a["bbox"]
            assert 0 <= x and x + width <= image["width"] and 0 <= y and y + height <= image["height"]
            assert 0 < a["area"] <= width * height
        seen += coco.imgs
    assert len(set(seen)) == 48
    lying = {image["width"] > image["height"] for image in coco.imgs.values()}
    assert lying == {True, False}


@pytest.mark.parametrize("kind", FILES)
def test_empty_pictures_and_crowds_whose_runs_decode_to_the_stated_area(roots: dict[str, Path], kind: str) -> None:
    coco = opened(roots, kind)
    assert sum(not coco.getAnnIds(imgIds=[number]) for number in coco.imgs) == 1
    (crowd,) = (a for a in coco.anns.values() if a["iscrowd"])
    image = coco.imgs[crowd["image_id"]]
    assert crowd["segmentation"]["size"] == [image["height"], image["width"]]
    runs = coco_mask.frPyObjects(crowd["segmentation"], image["height"], image["width"])
    assert coco_mask.area(runs) == coco_mask.decode(runs).sum() == crowd["area"]
    assert coco_mask.toBbox(runs).tolist() == crowd["bbox"]
    assert crowd["area"] > 0.2 * crowd["bbox"][2] * crowd["bbox"][3]


def test_classes_have_gaps_in_their_ids_and_six_pictures_show_all(roots: dict[str, Path]) -> None:
    coco = opened(roots, "coco_fcos", "train")
    ids = [category["id"] for category in coco.dataset["categories"]]
    assert ids == sorted(ids) and max(ids) > len(ids) == 6
    assert {a["category_id"] for a in coco.anns.values()} == set(ids)
    assert {category["name"] for category in coco.dataset["categories"]} <= set(shapes.NAMES)


def test_boxes_and_outlines_of_shapes_are_those_of_what_can_be_seen() -> None:
    agreement, hidden = [], 0
    for index in range(14):
        drawing = detection.sample(1, "train", index, 128)
        frame = drawing.image.size
        masks = [rendered(piece.points, frame) for piece in drawing.pieces]
        whole = {}
        for place, piece in enumerate(drawing.pieces):
            in_front = np.any([np.zeros_like(masks[0]), *masks[place + 1 :]], axis=0)
            whole[piece.number] = masks[place] & ~in_front, masks[place]
        whole.pop(0, None)
        for annotation, (mask, alone) in zip(drawing.annotations, whole.values(), strict=True):
            y, x = np.nonzero(mask)
            x0, y0, width, height = annotation["bbox"]
            ends = np.array([x.min(), y.min(), x.max() + 1, y.max() + 1]) / FINE
            assert np.abs(ends - [x0, y0, x0 + width, y0 + height]).max() <= 0.5
            assert annotation["area"] == pytest.approx(mask.sum() / FINE**2, rel=0.05)
            assert mask.sum() > 0.24 * alone.sum()
            hidden += mask.sum() < 0.9 * alone.sum()
            runs = coco_mask.frPyObjects(annotation["segmentation"], frame[1], frame[0])
            outlined = coco_mask.decode(coco_mask.merge(runs)).astype(bool)
            true = mask.reshape(frame[1], FINE, frame[0], FINE).mean(axis=(1, 3)) >= 0.5
            agreement.append((outlined & true).sum() / (outlined | true).sum())
    assert hidden > 5 and len(agreement) > 30
    assert min(agreement) > 0.75 and np.mean(agreement) > 0.93


def plain(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pictures without grain, clutter and patterns, so that a pixel's colour tells who drew it."""

    def flat(rng: np.random.Generator, colours: np.ndarray, width: int, height: int) -> Image.Image:
        return Image.new("RGB", (width, height), tuple(colours[0].astype(int).tolist()))

    monkeypatch.setattr(scene, "textured", flat)
    monkeypatch.setattr(scene, "clutter", lambda *args: None)
    monkeypatch.setattr(scene, "strewn", lambda *args: [])
    monkeypatch.setattr(scene, "grain", lambda rng, image, strength: image)


def test_a_shape_lies_in_the_picture_where_its_box_says(monkeypatch: pytest.MonkeyPatch) -> None:
    plain(monkeypatch)
    alone = [d for d in (detection.sample(2, "val", index, 128) for index in range(40)) if len(d.annotations) == 1]
    assert len(alone) > 4
    for drawing in alone:
        pixels = np.asarray(drawing.image).astype(int)
        ground = np.median(pixels.reshape(-1, 3), axis=0)
        corners = pixels[[0, 0, -1, -1], [0, -1, 0, -1]]
        ground = next((corner for corner in corners if (corner == corners[0]).all()), ground)
        y, x = np.nonzero(np.abs(pixels - ground).sum(axis=2) > 3)
        x0, y0, width, height = drawing.annotations[0]["bbox"]
        ends = np.array([x.min(), y.min(), x.max() + 1, y.max() + 1])
        assert np.abs(ends - [x0, y0, x0 + width, y0 + height]).max() <= 1


def test_small_medium_and_large_shapes_occur_and_most_are_medium() -> None:
    areas = [a["area"] for index in range(70) for a in detection.sample(0, "train", index, 128).annotations]
    sizes = Counter("small" if area < 32**2 else "medium" if area < 96**2 else "large" for area in areas)
    assert len(areas) > 150
    assert sizes["medium"] > len(areas) / 2 and sizes["small"] > len(areas) / 6 and sizes["large"] >= 5


def inside(points: shapes.Points, spots: np.ndarray) -> np.ndarray:
    """Whether a ray from each spot (S, 2) to the right crosses the polygon an odd number of times."""
    (x0, y0), (x1, y1) = points.T, np.roll(points, -1, axis=0).T
    x, y = spots[:, :1], spots[:, 1:]
    with np.errstate(divide="ignore", invalid="ignore"):
        crossing = ((y0 > y) != (y1 > y)) & (x0 + (y - y0) * (x1 - x0) / (y1 - y0) > x)
    return crossing.sum(axis=1) % 2 == 1


def visible(layout: pose.Layout, owner: int, joint: np.ndarray, spots: np.ndarray) -> np.ndarray:
    """Whether the frontmost polygon at each spot (S, 2) is a part of figure `owner` that shows joint (S,)."""
    answer = np.zeros(len(spots), bool)
    for place, figure in enumerate(layout.figures):
        for part in figure.parts:
            answer = np.where(inside(part.points, spots), np.isin(joint, part.shows) & (place == owner), answer)
    covers = [part.points for figure in layout.crowd for part in figure.parts] + [points for points, _ in layout.front]
    for points in covers:
        answer &= ~inside(points, spots)
    return answer


def test_key_points_are_visible_hidden_or_outside_as_the_layers_say() -> None:
    flags: Counter[int] = Counter()
    steps = 0.3 * np.array([[0, 0], [1, 0], [-1, 0], [0, 1], [0, -1]])
    for index in [*range(7), *range(8, 12), 20]:
        drawing = pose.sample(3, "train", index, 192)
        layout = drawing.layout
        for place, figure in enumerate(layout.figures):
            record = drawing.annotations[place]
            points = np.array(record["keypoints"]).reshape(17, 3)
            assert record["num_keypoints"] == (points[:, 2] > 0).sum()
            flags.update(points[:, 2].tolist())
            answers = [visible(layout, place, np.arange(17), figure.joints + step) for step in steps]
            for joint, (x, y, flag) in enumerate(points.tolist()):
                spot = figure.joints[joint]
                if not (0 <= spot[0] < layout.frame[0] and 0 <= spot[1] < layout.frame[1]):
                    assert (x, y, flag) == (0, 0, 0)
                    continue
                assert (x, y) == tuple(np.floor(spot)) and flag in (1, 2)
                # At an edge either may be.
                assert (flag == 2) in {bool(answer[joint]) for answer in answers}
    assert flags[2] > 8 * flags[0] > 0 and flags[2] > 5 * flags[1] > 0


def test_left_is_warm_and_right_is_cool_in_the_pixels_of_the_joints(monkeypatch: pytest.MonkeyPatch) -> None:
    plain(monkeypatch)
    right = wrong = 0
    for index in range(8):
        drawing = pose.sample(3, "train", index, 192)
        pixels = np.asarray(drawing.image).astype(int)
        for record in drawing.annotations:
            for name, (x, y, flag) in zip(JOINTS, np.array(record["keypoints"]).reshape(17, 3), strict=True):
                if flag == 2 and name.endswith(("elbow", "knee", "ankle", "ear")):
                    red, _, blue = pixels[y, x]
                    right += (red > blue) == name.startswith("left")
                    wrong += (red > blue) != name.startswith("left")
    assert right > 60 and wrong <= 0.03 * right


def test_persons_have_cocos_key_points_and_some_are_not_labelled(roots: dict[str, Path]) -> None:
    coco = opened(roots, "coco_pose")
    (person,) = coco.dataset["categories"]
    assert (person["id"], person["name"], person["keypoints"][:3]) == (1, "person", ["nose", "left_eye", "right_eye"])
    limbs = {tuple(sorted(person["keypoints"][end - 1] for end in pair)) for pair in person["skeleton"]}
    assert len(limbs) == len(SKELETON) == 19 and {end for pair in SKELETON for end in pair} == set(range(1, 18))
    assert {("left_elbow", "left_wrist"), ("right_ankle", "right_knee"), ("left_hip", "right_hip")} <= limbs
    unlabelled = [a for a in coco.anns.values() if not a["iscrowd"] and not a["num_keypoints"]]
    assert 1 <= len(unlabelled) <= 3
    assert all(len(a["keypoints"]) == 51 for a in coco.anns.values())
    assert all(not any(a["keypoints"]) for a in coco.anns.values() if a["iscrowd"] or not a["num_keypoints"])


def test_the_detectors_file_is_a_fair_detectors(roots: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    coco = opened(roots, "coco_pose")
    results: list[dict[str, Any]] = json.loads((roots["coco_pose"] / pose.RESULTS).read_text())
    assert {result["image_id"] for result in results} <= set(coco.imgs)
    assert all(set(result) == {"image_id", "category_id", "bbox", "score"} for result in results)
    assert all(result["category_id"] == 1 and min(result["bbox"][2:]) > 0 for result in results)
    judge = COCOeval(coco, coco.loadRes(results), "bbox")
    judge.evaluate()
    judge.accumulate()
    judge.summarize()
    assert 0.5 < judge.stats[0] < 0.95 and 0.8 < judge.stats[1] < 1
    persons = sum(not a["iscrowd"] for a in coco.anns.values())
    sure = sum(result["score"] > 0.5 for result in results)
    assert 0 < len(results) - sure < persons / 3 and 0.8 * persons < sure < persons


@pytest.mark.parametrize("kind", FILES)
def test_same_settings_same_bytes_other_seed_other_pictures(tmp_path: Path, kind: str) -> None:
    def contents(folder: str, seed: int) -> dict[str, bytes]:
        root = prepare(kind, tmp_path / folder, seed=seed, train=6, val=6, size=96)
        return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}

    first, other = contents("a", 3), contents("a", 4)
    assert contents("b", 3) == first
    assert set(other) == set(first) and not set(first.items()) & set(other.items())


def test_samples_do_not_depend_on_the_order_of_drawing() -> None:
    for module in (detection, pose):
        alone = module.sample(0, "val", 3, 96)
        module.sample(0, "val", 4, 96)
        again = module.sample(0, "val", 3, 96)
        assert again.image == alone.image and again.annotations == alone.annotations
        assert module.sample(0, "train", 3, 96).annotations != alone.annotations


def test_outlines_leave_holes_open_and_keep_parts_apart() -> None:
    y, x = np.mgrid[:60, :80]
    mask = (np.hypot(x - 30, y - 30) < 25) & (np.hypot(x - 33, y - 28) > 12) | (np.abs(x - 70) < 6) & (y > 20)
    outlines = contour.polygons(mask)
    assert len(outlines) == 2
    runs = coco_mask.frPyObjects([outline.ravel().tolist() for outline in outlines], 60, 80)
    filled = coco_mask.decode(coco_mask.merge(runs)).astype(bool)
    assert (filled & mask).sum() / (filled | mask).sum() > 0.95
    assert not filled[28, 33] and sum(map(shapes.area, outlines)) == pytest.approx(mask.sum(), rel=0.03)
    assert contour.polygons(np.zeros((5, 5), bool)) == []
    # Pixels that touch at a corner, and a mask that fills its frame.
    assert sum(map(shapes.area, contour.polygons(np.eye(9, dtype=bool)))) == pytest.approx(9, abs=5)
    (whole,) = contour.polygons(np.ones((20, 30), bool))
    assert shapes.area(whole) == pytest.approx(600, rel=0.01)


def test_run_lengths_are_pycocotools() -> None:
    rng = np.random.default_rng(0)
    for mask in [rng.random((7, 9)) < share for share in (0, 0.1, 0.5, 0.9, 1)]:
        record = contour.run_lengths(mask)
        assert np.array_equal(coco_mask.decode(coco_mask.frPyObjects(record, 7, 9)), mask)
        json.dumps(record)


def test_layers_measure_in_quarter_pixels() -> None:
    seen = layers.Layers(20, 10)
    seen.cover(np.array([[2.25, 3.0], [7.0, 3.0], [7.0, 8.5], [2.25, 8.5]]), 3)
    mask = seen.numbers() == 3
    left, top, width, height = layers.box(mask)
    assert np.abs(np.array([left, top, left + width, top + height]) - [2.25, 3, 7, 8.5]).max() <= 0.25
    # Pillow's polygons are about half a cell larger all around, in the map as in the picture.
    assert layers.area(mask) == pytest.approx(4.75 * 5.5 + 20.5 / 8, abs=0.5)
    half = np.zeros((8, 8), bool)
    half[:4, :2] = half[4:, 5:7] = True
    half[4, 5] = False
    assert layers.pixels(half).tolist() == [[True, False], [False, False]]


def test_many_processes_draw_the_same_in_the_same_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1, 2})
    own = os.getpid()
    results = drawn(lambda index: (index, os.getpid()), 151)
    assert [index for index, _ in results] == list(range(151))
    assert len({process for _, process in results} - {own}) == 3
    assert {process for _, process in drawn(lambda index: (index, os.getpid()), 99)} == {own}
    with pytest.raises(ZeroDivisionError):
        drawn(lambda index: 1 // (120 - index), 150)
    with pytest.raises(OSError, match="a drawing process died"):
        drawn(lambda index: os.kill(os.getpid(), signal.SIGKILL) if index == 7 else index, 150)


WRONG = [
    ({"train": 5}, "at least 6 pictures"),
    ({"size": 32}, "size=32 cannot hold the scenes; use 64 to 1024"),
    ({"size": 9000}, "size=9000 cannot hold the scenes"),
    ({"kind": "coco_pose", "val": 0}, "at least 1 picture"),
    ({"kind": "coco_pose", "size": 64}, "cannot hold the figures; use 96 to 1024"),
    ({"seed": -2}, "must not be negative"),
]


@pytest.mark.parametrize(("change", "message"), WRONG)
def test_settings_that_cannot_work(tmp_path: Path, change: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        prepare(**{"kind": "coco_fcos", "root": tmp_path, "seed": 0, "train": 6, "val": 6, "size": 128, **change})
    assert list(tmp_path.iterdir()) == []
