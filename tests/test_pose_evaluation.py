"""The published protocol of key-point AP, and the task as the engine and predict use it."""

import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import people
import pytest
import torch
from people import annotation, standing
from PIL import Image, ImageDraw
from torch import Tensor, nn

from tasks.coco.annotations import read
from tasks.coco.scoring import score
from tasks.pose.augment import Augmentation
from tasks.pose.evaluator import KeypointAP, oks, oks_nms, rescored
from tasks.pose.simplepose import encode
from tasks.pose.source import COCO, CocoKeypoints, sigmas
from tasks.pose.task import Pose
from tdaf.engine.evaluate import Evaluation, evaluate
from tdaf.engine.settings import LoaderSettings
from tdaf.errors import UserError
from tdaf.model.backbones.resnet import resnet

MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
BOXES = [(10.0, 12.0, 60.0, 100.0), (85.0, 20.0, 50.0, 90.0), (4.0, 30.0, 45.0, 80.0)]


def pose(data: Any, **settings: Any) -> Pose:
    return Pose(data, Augmentation(), MEAN, STD, **{"size": [128, 96], **settings})


def literal_oks(one: list, other: list, area: float, other_area: float, constants: list[float]) -> float:
    total = 0.0
    for (x, y, _), (u, v, _), sigma in zip(one, other, constants, strict=True):
        distance = (x - u) ** 2 + (y - v) ** 2
        total += math.exp(-distance / ((2 * sigma) ** 2) / ((area + other_area) / 2 + np.spacing(1)) / 2)
    return total / len(one)


def literal_result(persons: list[dict], threshold: float, most: float, constants: list[float]) -> list[tuple]:
    """Rescoring and NMS one person and one pair at a time: (place, score) of the kept ones."""
    left = []
    for place, person in enumerate(persons):
        mean, count = 0.0, 0
        for *_, value in person["points"]:
            if value > threshold:
                mean, count = mean + value, count + 1
        left.append((mean / count * person["score"] if count else 0.0, place))
    kept = []
    while left:
        best = max(left, key=lambda entry: (entry[0], -entry[1]))  # of equal ones the first
        kept.append(best[::-1])
        one, others = persons[best[1]], []
        for entry in left:
            other = persons[entry[1]]
            alike = literal_oks(one["points"], other["points"], one["area"], other["area"], constants)
            if entry is not best and alike <= most:
                others.append(entry)
        left = others
    return kept


@pytest.mark.parametrize("seed", range(5))
def test_rescoring_and_nms_agree_with_a_literal_transcription(seed):
    random, constants = np.random.default_rng(seed), sigmas(COCO)
    bodies = random.uniform(0, 200, (4, 17, 2))
    # several answers to each of four persons, from almost equal to far apart
    points = np.repeat(bodies, 6, 0) + random.normal(size=(24, 17, 2)) * random.uniform(0.2, 8, (24, 1, 1))
    values = random.uniform(-0.1, 1, (24, 17)) * random.uniform(0, 1, (24, 1))
    values[7] = 0.1  # no key point above the threshold
    found = np.concatenate([points, values[..., None]], -1)
    areas, boxes = random.uniform(2000, 20000, 24), random.uniform(0.1, 1, 24)
    persons = [
        {"points": p.tolist(), "area": float(a), "score": float(s)} for p, a, s in zip(found, areas, boxes, strict=True)
    ]
    expected = literal_result(persons, 0.2, 0.9, constants)
    scores = rescored(found, boxes, 0.2)
    kept = oks_nms(found, scores, areas, constants, 0.9)
    assert 4 < len(kept) < 24, "the case decides nothing"
    assert kept == [place for place, _ in expected] and scores[7] == 0
    np.testing.assert_allclose(scores[kept], [value for _, value in expected], rtol=1e-12)
    ours = oks(found[3], areas[3], found, areas, constants)
    theirs = [literal_oks(found[3], other, areas[3], area, constants) for other, area in zip(found, areas, strict=True)]
    np.testing.assert_allclose(ours, theirs, rtol=1e-12)
    assert ours[3] == 1


def records(images: list[list[dict]], column: int = 0, first: int = 139) -> list[tuple]:
    """What a network would give that finds exactly what is annotated."""
    found = []
    for place, own in enumerate(images):
        for entry in own:
            points = np.array(entry["keypoints"]).reshape(-1, 3) * [1, 1, 0.5]
            if not entry["iscrowd"] and points[:, 2].any():
                found.append((column, first + 100 * place, 1.0, 2.0 * entry["area"], points))
    return found


ODD = [  # all that a file may have beside plain persons
    annotation(BOXES[1], keypoints=[0.0] * 51),
    annotation((0.0, 0.0, 160.0, 120.0), iscrowd=1, segmentation={"counts": [0, 1], "size": [1, 1]}),
    annotation((140.0, 60.0, 60.0, 50.0), keypoints=standing((140.0, 60.0, 60.0, 50.0), hidden=(5, 7, 9, 11, 13, 15))),
]
IMAGES = [[annotation(BOXES[0]), annotation(BOXES[1])], [annotation(BOXES[2]), *ODD], []]


def judge(root: Path, columns: list[str] | None = None) -> KeypointAP:
    annotations = CocoKeypoints(str(root)).split("val").annotations
    return KeypointAP(columns or ["gt"], annotations, [], sigmas(COCO), True)


def test_perfect_predictions_score_one_and_none_score_zero(tmp_path):
    path = people.write(tmp_path, IMAGES)
    evaluator = judge(tmp_path)
    found = records(IMAGES)
    assert len(found) == 4
    values, files = evaluator.compute(found)
    assert list(values)[:3] == ["AP", "AP50", "AP75"] and "AR" in values
    assert values["AP"] == values["AP50"] == values["AR"] == 1.0
    assert score(read(path), json.loads(files["keypoints-gt.json"]), "keypoints").values["AP"] == 1.0
    values, files = evaluator.compute([])
    assert values["AP"] == 0.0 and files["keypoints-gt.json"] == "[]" and "| AP | 0.000 |" in files["columns.md"]


def test_key_points_come_back_into_the_image_through_heat_maps(tmp_path):
    people.write(tmp_path, IMAGES)
    task = pose(CocoKeypoints(str(tmp_path)))
    assert task.classes == list(COCO) and task.metric == "AP"
    dataset, evaluator = task.dataset("val"), task.evaluator()
    batch = dataset.collate([dataset[k] for k in range(len(dataset))])
    assert batch["input"].shape == (4, 2, 3, 128, 96)
    joints = batch["joints"]
    mirrored = joints[:, [0, *(k + (1 if k % 2 else -1) for k in range(1, 17))]].clone()
    mirrored[..., 0] = 95 - mirrored[..., 0]
    maps, views = (encode(points[..., :2], points[..., 2], (32, 24))[0] for points in (joints, mirrored))
    outputs = torch.stack([maps, views], 1)
    found = evaluator.update(outputs, batch)
    expected = records(IMAGES)
    for (column, image, value, area, points), other, shown in zip(found, expected, joints.numpy(), strict=True):
        assert (column, image, value) == (0, other[1], 1.0)
        pixel = math.sqrt(area / (32 * 24))  # of a heat map, in the image
        inside = (shown[:, 2] > 0) & (shown[:, :2] >= 8).all(1) & (shown[:, 0] < 88) & (shown[:, 1] < 120)
        assert inside.sum() >= 5
        assert np.abs(points[inside, :2] - other[4][inside, :2]).max() < 0.9 * pixel
    assert evaluator.compute(found)[0]["AP"] > 0.7
    assert task.losses(maps, batch)["heatmaps"] == 0 and task.losses(maps + 0.1, batch)["heatmaps"] > 0


class ColourOracle(nn.Module):
    """Finds each key point by its colour."""

    def __init__(self, colours: list[tuple[int, int, int]]) -> None:
        super().__init__()
        self.colours = torch.tensor(colours).float()

    def forward(self, x: Tensor) -> Tensor:
        flat = x.flatten(0, -4).float()
        far = (flat[:, None] - self.colours[None, :, :, None, None]).abs().amax(2)
        maps = nn.functional.avg_pool2d((1 - far / 60).clamp(min=0), 7, stride=4, padding=3)
        return maps.unflatten(0, x.shape[:-3])


DOTS = ["head", "tail", "fin"]
COLOURS = [(250, 10, 10), (10, 10, 250), (10, 250, 10)]


def dotted(root: Path) -> list[tuple[float, ...]]:
    """Two images of three persons with an own skeleton, drawn as three dots each."""
    random, images, pictures, boxes = np.random.default_rng(3), [], [], []
    for count in (2, 1):
        picture = Image.new("RGB", (people.WIDTH, people.HEIGHT), (90, 90, 90))
        draw, own = ImageDraw.Draw(picture), []
        for place in range(count):
            box = (5.0 + 75 * place, 8.0, 60.0, 100.0)
            points = np.round(np.array(box[:2]) + random.uniform(0.2, 0.8, (3, 2)) * box[2:])
            points[:, 1] = box[1] + np.array([20, 50, 80])  # no two on each other
            for (x, y), colour in zip(points.tolist(), COLOURS, strict=True):
                draw.ellipse((x - 4, y - 4, x + 4, y + 4), fill=colour)
            own.append(annotation(box, keypoints=[v for point in points.tolist() for v in (*point, 2.0)]))
            boxes.append(box)
        images.append(own)
        pictures.append(picture)
    people.write(root, images, DOTS, "val", pictures)
    return boxes


def evaluated(task: Pose, network: nn.Module, files: dict[str, str], batch: int = 2) -> Evaluation:
    result = evaluate(network, task, batch=batch, loader=LoaderSettings(workers=0))
    files.update(result.files)
    return result


@pytest.mark.parametrize("flip_test", [True, False])
def test_the_engine_evaluates_ground_truth_and_detected_boxes(tmp_path, flip_test):
    boxes = dotted(tmp_path)
    results = [
        {"image_id": number, "category_id": 1, "bbox": list(box), "score": value}
        for number, box, value in ((139, boxes[0], 0.9), (239, boxes[2], 0.8), (4242, boxes[2], 0.9))
    ]
    path = tmp_path / "people.json"
    path.write_text(json.dumps(results))
    task = pose(CocoKeypoints(str(tmp_path)), boxes=["gt", str(path)], flip_test=flip_test)
    files: dict[str, str] = {}
    found = evaluated(task, ColourOracle(COLOURS), files)
    assert found.samples == 5 and found.protocol == ("gt+people+flip" if flip_test else "gt+people")
    assert found.values["AP"] > 0.95 and found.values["gt/AP"] == found.values["AP"]
    assert 0.6 < found.values["people/AP"] < 0.72  # two of three persons, no false one
    notes = task.dataset("val").notes
    assert notes["boxes in images that the annotations do not have, left out (people.json)"] == 1
    for column in ("gt", "people"):
        written = json.loads(files[f"keypoints-{column}.json"])
        annotations = read(tmp_path / "annotations/person_keypoints_val2017.json")
        again = score(annotations, written, "keypoints", [0.05] * 3)
        assert again.values["AP"] == found.values[f"{column}/AP"]


def test_predict_answers_draws_and_writes_cocos_format(tmp_path):
    boxes = dotted(tmp_path)
    picture = tmp_path / "val2017/000000000139.jpg"
    annotations = [{"image_id": 1, "category_id": 1, "bbox": list(box), "score": 0.9} for box in boxes[:2]]
    annotations += [{**annotations[0], "score": 0.8}]  # the first once more
    document = {
        "images": [{"id": 1, "file_name": str(picture)}],
        "annotations": annotations,
        "categories": [{"id": 1, "name": "person"}],
    }
    (tmp_path / "boxes.json").write_text(json.dumps(document))
    task = pose(SimpleNamespace(classes=DOTS), skeleton=[[1, 2], [2, 3]])
    inputs = task.predict_dataset([picture], boxes=str(tmp_path / "boxes.json"))
    batch = inputs.collate([inputs[k] for k in range(len(inputs))])
    answers = task.postprocess(ColourOracle(COLOURS)(batch["input"]), batch)
    assert [answer["box"] for answer in answers] == [list(box) for box in (*boxes[:2], boxes[0])]
    image = inputs.pictures.read(0)
    for answer in answers:
        for place, (x, y, value) in enumerate(answer["keypoints"]):
            assert value > 0.2
            assert (image[:, round(y), round(x)].float() - torch.tensor(COLOURS[place])).abs().max() < 80
    found = task.to_json([(picture, None, answers), (Path("film.mp4"), 3, [])])
    assert found["images"] == [{"id": 1, "file_name": str(picture)}, {"id": 2, "file_name": "film.mp4", "frame": 3}]
    best = sorted(answers[:2], key=lambda answer: -answer["score"])
    assert found["annotations"] == [
        {"id": number, "image_id": 1, "category_id": 1, "bbox": answer["box"], "score": answer["score"],
         "keypoints": [value for point in answer["keypoints"] for value in point]}
        for number, answer in enumerate(best, 1)
    ]  # fmt: skip
    category = {"id": 1, "name": "person", "keypoints": DOTS, "skeleton": [[1, 2], [2, 3]]}
    assert found["categories"] == [category]
    drawn, untouched = task.draw(image, answers), task.draw(image, [])
    assert drawn.dtype == torch.uint8 and drawn.shape == untouched.shape and not torch.equal(drawn, untouched)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"size": [250, 192]}, "size=.250, 192.: give multiples of 32"),
        ({"boxes": []}, "boxes=.*: give gt, or files"),
        ({"boxes": ["a/x.json", "b/x.json"]}, "two columns would be called x; rename one"),
        ({"oks_nms": 1.5}, "oks_nms=1.5: give at most 1"),
        ({"sigmas": [0.05]}, "sigmas: 1 numbers for 17 key points"),
        ({"skeleton": [[1, 18]]}, "skeleton: .1, 18.: give pairs of 1 to 17"),
        ({"deconvolutions": []}, "deconvolutions="),
    ],
)
def test_impossible_settings_are_refused_before_training(settings, message):
    with pytest.raises(UserError, match=message):
        given = {"mean": MEAN, "std": STD, "size": [256, 192], **settings}
        task = Pose(SimpleNamespace(classes=list(COCO)), Augmentation(), **given)
        with torch.device("meta"):
            task.network(resnet(50), lambda staged: staged)


def test_a_split_without_a_person_is_refused(tmp_path):
    people.write(tmp_path, [[ODD[0]]])
    with pytest.raises(UserError, match="no person with a box and a labelled key point in it"):
        pose(CocoKeypoints(str(tmp_path))).dataset("val")
