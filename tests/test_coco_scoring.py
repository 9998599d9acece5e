"""COCO's scores: hand-computed cases, and pycocotools's own numbers to the bit."""

from __future__ import annotations

import contextlib
import copy
import io
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from coco_files import Document, document, drawn, save
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from tasks.coco.annotations import read
from tasks.coco.scoring import BOX_NUMBERS, POINT_NUMBERS, score
from tdaf.errors import UserError

Results = list[dict[str, Any]]
HALF = 51 / 101  # precision 1 up to a recall of a half: 51 of COCO's 101 recalls


@pytest.fixture
def reference(monkeypatch: pytest.MonkeyPatch) -> None:
    """faster-coco-eval as if it were not installed."""
    monkeypatch.setitem(sys.modules, "faster_coco_eval", None)


def perfect(content: Document, kind: str = "bbox") -> Results:
    """A result of score 0.9 for every object that is no crowd."""
    return [
        {"image_id": entry["image_id"], "category_id": entry["category_id"], "score": 0.9, kind: entry[kind]}
        for entry in content["annotations"]
        if not entry["iscrowd"] and entry.get("num_keypoints", 1)
    ]


def shaken(content: Document, kind: str, seed: int = 0) -> Results:
    """None to three results an object, some of another class; scores of two digits, so that many are equal."""
    rng, found = np.random.default_rng(seed), []
    for entry in content["annotations"]:
        w, h = entry["bbox"][2:]
        for _ in range(rng.integers(4)):
            category = entry["category_id"] if rng.random() < 0.9 else 1
            values = np.array(entry[kind], np.float64)
            if kind == "bbox":
                values += rng.normal(0, 0.1, 4) * [w, h, w, h]
                values[2:] = np.abs(values[2:])
            else:
                values = (values.reshape(-1, 3) + rng.normal(0, 0.04, (len(values) // 3, 3)) * [w, h, 0]).ravel()
            result = {"image_id": entry["image_id"], "category_id": category, "score": round(float(rng.random()), 2)}
            found.append({**result, kind: values.tolist()})
    return found


def by_hand(path: Path, results: Results, kind: str) -> list[float]:
    """As pycocotools's own demo does it."""
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(str(path))
        evaluation = COCOeval(truth, truth.loadRes(copy.deepcopy(results)), kind)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation.stats.tolist()


def two_cups() -> Document:
    """Two objects of one category in two images, one of them small, and none of two other categories."""
    content = document()
    rows = [(1, 30, [5, 5, 40, 40], 1600), (2, 10, [5, 5, 20, 20], 400)]
    content["annotations"] = [
        {"id": number, "image_id": image, "category_id": 7, "bbox": box, "area": area, "iscrowd": 0}
        for number, image, box, area in rows
    ]
    return content


def test_all_found(tmp_path: Path) -> None:
    content = two_cups()
    found = score(read(save(tmp_path / "a.json", content)), perfect(content), "bbox")
    assert list(found.values) == list(BOX_NUMBERS)
    expected = {name: 1.0 for name in BOX_NUMBERS} | {"APl": -1.0, "ARl": -1.0}
    assert found.values == pytest.approx(expected, abs=1e-9)
    assert list(found.categories) == ["dog", "cup", "book"]
    assert found.categories["cup"] == pytest.approx({"AP": 1, "AP50": 1, "APs": 1, "APm": 1, "APl": -1, "objects": 2})
    assert found.categories["dog"] == {"AP": -1, "AP50": -1, "APs": -1, "APm": -1, "APl": -1, "objects": 0}


def test_a_box_of_overlap_seven_tenths(tmp_path: Path) -> None:
    content = two_cups()
    results = perfect(content)
    results[0]["bbox"] = [5, 5, 40, 28.8]  # IoU 0.72: found at 0.50 to 0.70, five of ten thresholds
    found = score(read(save(tmp_path / "a.json", content)), results, "bbox").values
    assert (found["APm"], found["APs"]) == pytest.approx((0.5, 1))
    # beyond 0.70 it is a wrong result of the same score, which comes later, as its image's id is larger
    assert found["AP"] == pytest.approx((5 + 5 * HALF) / 10)
    assert (found["AP50"], found["AP75"]) == pytest.approx((1, HALF))


def test_nothing_found_and_nothing_to_find(tmp_path: Path) -> None:
    content = two_cups()
    path = save(tmp_path / "a.json", content)
    found = score(read(path), [], "bbox").values
    assert found == {name: -1.0 if name in ("APl", "ARl") else 0.0 for name in BOX_NUMBERS}
    content["annotations"].clear()
    for results in ([], perfect(two_cups())):
        found = score(read(save(path, content)), results, "bbox")
        assert set(found.values.values()) == {-1.0} and found.categories["cup"]["objects"] == 0


def test_only_the_images_of_the_annotations_count(tmp_path: Path) -> None:
    content = two_cups()
    annotations, results = read(save(tmp_path / "a.json", content)), perfect(content)
    first, others = (annotations.only(annotations.indices(np.array(ids))) for ids in ([20, 30], [10]))
    assert score(first, results[:1], "bbox").values["AP"] == pytest.approx(1)
    assert score(others, [], "bbox").values["AP"] == 0
    with pytest.raises(UserError, match="a.json has no image 30, of which there are results"):
        score(others, results, "bbox")


def test_an_annotation_with_id_0_is_found_like_any_other(tmp_path: Path, reference: None) -> None:
    content = two_cups()
    content["annotations"][0]["id"] = 0
    path, results = save(tmp_path / "a.json", content), perfect(content)
    assert score(read(path), results, "bbox").values["AP"] == pytest.approx(1)
    assert by_hand(path, results, "bbox")[0] < 0.9  # if that is mended one day, the replacement can go


def test_two_categories_of_one_name(tmp_path: Path) -> None:
    content = two_cups()
    content["categories"][1]["name"] = "cup"
    found = score(read(save(tmp_path / "a.json", content)), perfect(content), "bbox").categories
    assert list(found) == ["cup (3)", "cup (7)", "book (90)"] and found["cup (7)"]["objects"] == 2


@pytest.mark.parametrize(("kind", "joints"), [("bbox", 0), ("keypoints", 17)])
def test_numbers_are_those_of_pycocotools(kind: str, joints: int, tmp_path: Path, reference: None, capsys) -> None:
    content = drawn(25, 130, classes=1 if joints else 4, joints=joints)
    path, results = save(tmp_path / "a.json", content), shaken(content, kind)
    before = json.dumps(results)
    found = score(read(path), results, kind)
    assert list(found.values) == list(POINT_NUMBERS if joints else BOX_NUMBERS)
    assert list(found.values.values()) == by_hand(path, results, kind)
    assert 0.05 < found.values["AP"] < 0.9 and json.dumps(results) == before
    assert capsys.readouterr().out == ""
    counted = [entry for entry in content["annotations"] if not entry["iscrowd"] and entry.get("num_keypoints", 1)]
    assert sum(row["objects"] for row in found.categories.values()) == len(counted)
    assert np.mean([row["AP"] for row in found.categories.values()]) == pytest.approx(found.values["AP"], abs=1e-12)


@pytest.mark.parametrize(("kind", "joints"), [("bbox", 0), ("keypoints", 17)])
def test_faster_coco_eval_agrees(kind: str, joints: int, tmp_path: Path) -> None:
    faster = pytest.importorskip("faster_coco_eval")
    content = drawn(60, 400, classes=1 if joints else 4, joints=joints, seed=5)
    path, results = save(tmp_path / "a.json", content), shaken(content, kind, seed=6)
    calls = []
    original = faster.COCOeval_faster.evaluate
    faster.COCOeval_faster.evaluate = lambda self: (calls.append(1), original(self))[1]
    try:
        found = score(read(path), results, kind)
    finally:
        faster.COCOeval_faster.evaluate = original
    assert calls == [1]
    assert list(found.values.values()) == pytest.approx(by_hand(path, results, kind), rel=0, abs=1e-9)


def persons() -> Document:
    content = drawn(4, 12, classes=1, joints=17, seed=3)
    for entry in content["annotations"]:
        entry |= {"iscrowd": 0, "area": 5000.0}
    return content


def test_key_points_at_a_known_similarity(tmp_path: Path) -> None:
    """All points moved so that exp(-d^2 / (2 area (2 sigma)^2)) is 0.62 for each: found at 0.50, 0.55 and 0.60."""
    content = persons()
    content["categories"][0]["keypoints"] = ["left", "right"]
    content["categories"][0]["skeleton"] = []
    sigmas = [0.05, 0.1]
    for entry in content["annotations"]:
        entry["keypoints"] = [100, 100, 2, 120, 130, 1]
        entry["num_keypoints"] = 2
    results = perfect(content, "keypoints")
    for result in results:
        moves = [np.sqrt(-np.log(0.62) * 2 * 5000 * (2 * sigma) ** 2) for sigma in sigmas]
        result["keypoints"] = [100 + moves[0], 100, 1, 120, 130 - moves[1], 1]
    content["annotations"] = content["annotations"][:1]
    path = save(tmp_path / "a.json", content)
    found = score(read(path), results[:1], "keypoints", sigmas).values
    assert (found["AP"], found["AP50"], found["AP75"]) == pytest.approx((0.3, 1, 0))
    for wrong in (None, [0.1] * 3):
        with pytest.raises(UserError, match="objects have 2 key points: give as many sigmas"):
            score(read(path), results[:1], "keypoints", wrong)
