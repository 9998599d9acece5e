"""The demo data in COCO's format: what the files say is what was drawn."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageDraw
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from tdaf.demo import coco as demo
from tdaf.demo import scene
from tdaf.demo.figure import JOINTS
from tdaf.demo.prepare import prepare

FILES = {"coco_fcos": "instances", "coco_pose": "person_keypoints"}
SIZES = {"coco_fcos": 128, "coco_pose": 192}
FINE = 10  # of the masks rendered here, another grid than that of the drawing


@pytest.fixture(scope="module")
def roots(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("demo")
    return {kind: prepare(kind, folder, seed=5, train=6, val=42, size=SIZES[kind]) for kind in FILES}


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
            assert 0.9 * SIZES[kind] - 1 <= min(image["width"], image["height"]) <= 1.1 * SIZES[kind] + 1
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
        drawn = demo.detection_scene(1, "train", index, 128)
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
    areas = [a["area"] for index in range(70) for a in demo.detection_scene(0, "train", index, 128).annotations]
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
        drawn = demo.pose_scene(3, "train", index, 192)
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
    results: list[dict[str, Any]] = json.loads((roots["coco_pose"] / demo.RESULTS).read_text())
    assert all(result["category_id"] == 1 and min(result["bbox"][2:]) > 0 for result in results)
    judge = COCOeval(coco, coco.loadRes(results), "bbox")
    judge.evaluate()
    judge.accumulate()
    judge.summarize()
    assert 0.5 < judge.stats[0] < 0.95 and 0.8 < judge.stats[1] < 1
    persons = sum(not a["iscrowd"] for a in coco.anns.values())
    sure = sum(result["score"] > 0.5 for result in results)
    assert 0 < len(results) - sure < persons / 3 and 0.8 * persons < sure < persons
