"""evaluate report=true: pages of mistakes that need nothing beside themselves, and the numbers on them."""

from __future__ import annotations

from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import people
import pytest
import torch
from coco_files import drawn, save
from commands import call, script, tiny
from test_coco_scoring import shaken

from scripts.evaluate import evaluate
from tasks.classification.task import Classification
from tasks.coco.annotations import read
from tasks.coco.scoring import error_curves, score
from tasks.detection.evaluator import CocoBoxes
from tasks.pose.evaluator import KINDS, errors, sections
from tasks.pose.source import COCO, flip_pairs, sigmas
from tdaf.engine.report import CELLS, Answer, classified, page
from tdaf.errors import UnreadableSample, UserError

PAIRS = flip_pairs(COCO)


class Page(HTMLParser):
    """A page taken apart; fails on an element that is not closed, and on anything that would be fetched or run."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.pictures = 0
        self.rows: list[list[str]] = []
        self.texts: list[str] = []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        assert tag not in ("script", "link", "iframe") and "href" not in values
        if tag == "img":
            self.pictures += 1
            assert values["src"].startswith("data:image/")
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
        if tag not in ("img", "meta"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None: ...

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)
        if self.open and self.open[-1] in ("td", "th"):
            self.rows[-1][-1] += data


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
    names = {name: place for place, name in enumerate(COCO)}
    left, right = names["left_ankle"], names["right_ankle"]
    said[[left, right]] = one[[right, left]]
    said[names["nose"], :2] += [3, 0]
    said[names["left_wrist"]] = other[names["right_wrist"]]
    said[names["right_wrist"], :2] = 500
    results = [
        {"image_id": 139, "category_id": 1, "keypoints": points.ravel().tolist(), "score": 1}
        for points in (other, said)
    ]
    found = errors(read(path), results, PAIRS, sigmas(COCO))
    of_one = dict(zip(found.joints[:17].tolist(), (KINDS[kind] for kind in found.kinds[:17]), strict=True))
    expected = {left: "inversion", right: "inversion", names["nose"]: "jitter"}
    expected |= {names["left_wrist"]: "swap", names["right_wrist"]: "miss"}
    assert of_one == {joint: expected.get(joint, "good") for joint in range(17)}
    assert {KINDS[kind] for kind in found.kinds[17:34]} == {"good"}
    assert {KINDS[kind] for kind in found.kinds[34:]} == {"person not found"} and np.isnan(found.distances[34:]).all()
    assert found.distances[names["nose"]] == pytest.approx(3 / np.sqrt(6000)) and found.distances[17:34].max() == 0
    rows = {row[0]: row for row in parsed(sections(found, COCO)).rows}
    assert rows["small"][1:3] == ["1", "17"] and rows["small"][8] == "100.0"
    assert rows["large"][1:4] == ["0", "0", "-"] and rows["medium"][1] == "2" and rows["nose"][4] == "33.3"
