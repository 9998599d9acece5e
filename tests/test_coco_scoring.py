"""COCO's scores: hand-computed cases, and pycocotools's own numbers to the bit. And evaluate report=true: pages of
mistakes that need nothing beside themselves, and the numbers on them."""

import contextlib
import copy
import html
import io
import json
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import people
import pytest
import torch
from coco_files import Document, document, drawn, save
from commands import call, script, tiny
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from scripts.evaluate import evaluate
from tasks.classification.task import Classification
from tasks.coco.annotations import read
from tasks.coco.scoring import BOX_NUMBERS, POINT_NUMBERS, error_curves, score
from tasks.detection.evaluator import CocoBoxes
from tasks.pose import source
from tasks.pose.evaluator import KINDS, errors, sections
from tasks.pose.source import flip_pairs, sigmas
from tdaf.engine.report import CELLS, Answer, classified, page
from tdaf.errors import UnreadableSample, UserError

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


PAIRS = flip_pairs(source.COCO)


class Page:
    """A page's pictures, texts and cells of tables; nothing in it would be fetched or run."""

    def __init__(self, text: str) -> None:
        sources = re.findall(r'src="([^"]*)', text)
        assert not re.search("<(script|link|iframe)|href=", text)
        assert all(source.startswith("data:image/") for source in sources)
        self.pictures = len(sources)
        self.texts = [html.unescape(part) for part in re.findall(">([^<]+)<", text)]
        rows = [re.findall("<t[dh].*?>(.*?)</t[dh]>", row, re.DOTALL) for row in re.findall("(?s)<tr.*?</tr>", text)]
        self.rows = [[html.unescape(re.sub("<.*?>", "", cell)) for cell in row] for row in rows]


def parsed(parts: dict[str, str]) -> Page:
    return Page(page("run <1>", ["top1 < 5"], parts))


def test_a_run_of_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    assert call(monkeypatch, tiny(tmp_path / "demo", f"run_dir={tmp_path / 'run'}")) == 0
    words = [f"checkpoint={tmp_path / 'run'}", "report=true", f"out={tmp_path / 'out'}"]
    assert script(evaluate, words) == 0
    file = tmp_path / "out" / "evaluation-1crop" / "report.html"
    assert str(file) in capsys.readouterr().out
    found = Page(file.read_text())
    matrix = np.array([[int(cell or 0) for cell in row[1:]] for row in found.rows[1:11]])
    mistakes = int(matrix.sum() - matrix.trace())
    assert matrix.sum() == 21 and found.pictures == mistakes > 0
    assert f"{mistakes} of 21 samples are mistaken; the most confident ones:" in found.texts
    shares = [int(text.split("%")[0].split()[-1]) for text in found.texts if "%, is " in text]
    assert len(shares) == mistakes and shares == sorted(shares, reverse=True)
    monkeypatch.delattr(Classification, "report")
    with pytest.raises(UserError, match="has no method report"):
        script(evaluate, words)


def test_many_classes_are_a_picture_and_names_are_escaped() -> None:
    classes = [f"<b>{k}" for k in range(CELLS + 1)]
    answers = [Answer(0, 0, 1, 0.9), Answer(1, 0, 1, 0.6), Answer(2, 3, 3, 1.0), Answer(3, 5, 4, 0.7)]

    def picture(index: int) -> torch.Tensor:
        if index == 3:
            raise UnreadableSample("gone")
        return torch.zeros(3, 8, 9, dtype=torch.uint8)

    found = parsed(classified(answers, classes, picture, "file {}".format))
    assert found.pictures == 1 + 2  # the matrix, and two mistakes that could be read
    assert found.rows[1:] == [["<b>0", "<b>1", "2", "100.0"], ["<b>5", "<b>4", "1", "100.0"]]
    assert "<b>1 90%, is <b>0: file 0" in found.texts


def test_what_boxes_lose_to_which_error(tmp_path: Path) -> None:
    content = drawn(3, 0, classes=4)
    truth = [(3, 1, [10, 10, 40, 40]), (10, 11, [10, 10, 40, 40]), (17, 21, [10, 10, 40, 40])]
    rows = [{"image_id": i, "category_id": c, "bbox": b, "area": 1600, "iscrowd": 0} for i, c, b in truth]
    content["annotations"] = [{**row, "id": place} for place, row in enumerate(rows, 1)]
    annotations = read(save(tmp_path / "boxes.json", content))

    def result(image: int, category: int, box: list[float], value: float) -> dict:
        return {"image_id": image, "category_id": category, "bbox": box, "score": value}

    results = [
        result(3, 1, [30, 10, 40, 40], 0.9),  # IoU 1/3
        result(3, 11, [10, 10, 40, 40], 0.9),  # on an object of another category
        result(10, 11, [10, 10, 40, 40], 0.8),
        result(10, 1, [200, 200, 40, 40], 0.95),  # on nothing; class 2 is missed, and there is no class 3
    ]
    found = error_curves(annotations, results)
    areas = {name: values.mean(0).round(3).tolist() for name, values in found.items()}
    assert all(np.isnan(area.pop()) for area in areas.values())
    assert areas == {
        "C75": [0, 0.5, 0],
        "C50": [0, 0.5, 0],
        "Loc": [0.5, 0.5, 0],
        "Oth": [0.5, 1, 0],
        "BG": [1, 1, 0],
        "FN": [1, 1, 1],
    }


def test_the_page_of_boxes(tmp_path: Path) -> None:
    content = drawn(12, 90)
    annotations = read(save(tmp_path / "boxes.json", content))
    results = shaken(content, "bbox")
    found, scores = error_curves(annotations, results), score(annotations, results, "bbox")
    assert np.nanmean(found["C50"]) == pytest.approx(scores.values["AP50"])
    assert np.nanmean(found["C75"]) == pytest.approx(scores.values["AP75"])
    order = np.stack([values.mean(0) for values in found.values()])
    assert (np.diff(order, axis=0) > -1e-9).all()
    evaluator = CocoBoxes(annotations, lambda *_: ())
    labels = {number: place for place, (number, _) in enumerate(annotations.categories)}
    by_image = []
    for image in annotations.image_ids.tolist():
        own = [entry for entry in results if entry["image_id"] == image]
        boxes = torch.tensor([entry["bbox"] for entry in own], dtype=torch.float64).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        record = {"image_id": image, "boxes": boxes, "scores": torch.tensor([entry["score"] for entry in own])}
        by_image.append({**record, "labels": torch.tensor([labels[entry["category_id"]] for entry in own])})
    shown = parsed(evaluator.report(by_image))
    whole = shown.rows[1]
    assert whole[0] == "all" and float(whole[2]) == pytest.approx(100 * scores.values["AP50"], abs=0.06)
    assert sum(map(float, [whole[2], *whole[7:11]])) == pytest.approx(100, abs=0.3)
    assert {row[0] for row in shown.rows[2:]} == {"class 0", "class 1", "class 2"}


def test_what_goes_wrong_with_key_points(tmp_path: Path) -> None:
    boxes = [(2.0, 2.0, 60.0, 100.0), (90.0, 2.0, 60.0, 100.0), (0.0, 0.0, 16.0, 30.0)]
    path = people.write(tmp_path, [[people.annotation(box) for box in boxes[:2]], [people.annotation(boxes[2])]])
    one, other = (np.reshape(people.standing(box), (17, 3)) for box in boxes[:2])
    said = one.copy()
    names = {name: place for place, name in enumerate(source.COCO)}
    left, right = names["left_ankle"], names["right_ankle"]
    said[[left, right]] = one[[right, left]]
    said[names["nose"], :2] += [3, 0]
    said[names["left_wrist"]] = other[names["right_wrist"]]
    said[names["right_wrist"], :2] = 500
    results = [
        {"image_id": 139, "category_id": 1, "keypoints": points.ravel().tolist(), "score": 1}
        for points in (other, said)
    ]
    found = errors(read(path), results, PAIRS, sigmas(source.COCO))
    of_one = dict(zip(found.joints[:17].tolist(), (KINDS[kind] for kind in found.kinds[:17]), strict=True))
    expected = {left: "inversion", right: "inversion", names["nose"]: "jitter"}
    expected |= {names["left_wrist"]: "swap", names["right_wrist"]: "miss"}
    assert of_one == {joint: expected.get(joint, "good") for joint in range(17)}
    assert {KINDS[kind] for kind in found.kinds[17:34]} == {"good"}
    assert {KINDS[kind] for kind in found.kinds[34:]} == {"person not found"} and np.isnan(found.distances[34:]).all()
    assert found.distances[names["nose"]] == pytest.approx(3 / np.sqrt(6000)) and found.distances[17:34].max() == 0
    rows = {row[0]: row for row in parsed(sections(found, source.COCO)).rows}
    assert rows["small"][1:3] == ["1", "17"] and rows["small"][8] == "100.0"
    assert rows["large"][1:4] == ["0", "0", "-"] and rows["medium"][1] == "2" and rows["nose"][4] == "33.3"
