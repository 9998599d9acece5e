"""Persons as samples: which are taken, how they are cut out, and what training does with them at random."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import people
import pytest
import torch
from people import annotation, standing
from PIL import Image, ImageDraw

from tasks.pose import source
from tasks.pose.augment import Augmentation, framed
from tasks.pose.data import Persons, annotated
from tasks.pose.source import COCO, CocoKeypoints
from tdaf.errors import UnreadableSample, UserError

BOX = (30.0, 10.0, 60.0, 100.0)
SIZE = (128, 96)


def samples(root: Path, augment: Augmentation | None = None, split: str = "val", **settings: Any) -> Persons:
    images = CocoKeypoints(str(root), **settings).split(split)
    names = images.annotations.keypoint_names
    return Persons(images, [annotated(images)], SIZE, names, augment)


def test_a_sample_says_everything_of_a_person(tmp_path):
    people.write(tmp_path, [[annotation(BOX, keypoints=standing(BOX, hidden=(0, 9)))], [annotation(BOX)]])
    persons = samples(tmp_path)
    sample = persons[0]
    assert sample["input"].shape == (3, *SIZE) and sample["input"].dtype == torch.uint8
    assert sample["joints"].shape == (17, 3) and sample["joints"].dtype == torch.float32
    assert sample["joints"][[0, 9]].eq(0).all() and sample["joints"][:, 2].sum() == 15
    assert (sample["image_id"], sample["box_score"], sample["column"]) == (139, 1.0, 0)
    assert sample["box"].tolist() == [30, 10, 89, 109]  # from the first pixel's centre to the last one's
    there = torch.tensor(standing(BOX)).view(17, 3)[5, :2]
    back = sample["inverse"].float() @ torch.cat([sample["joints"][5, :2], torch.ones(1)])
    assert torch.allclose(back, there, atol=1e-3)
    batch = persons.collate([persons[0], persons[1]])
    assert batch["input"].shape == (2, 3, *SIZE) and batch["image_id"].tolist() == [139, 239]
    assert persons.name(1) == "val2017/000000000239.jpg"


def test_views_of_the_flip_test_are_mirror_images(tmp_path):
    people.write(tmp_path, [[annotation(BOX)]])
    images = CocoKeypoints(str(tmp_path)).split("val")
    sources = [annotated(images)]
    one, two = (Persons(images, sources, SIZE, COCO, None, views)[0]["input"] for views in (False, True))
    assert two.shape == (2, 3, *SIZE)
    assert torch.equal(two[0], one) and torch.equal(two[1], one.flip(-1)) and not torch.equal(two[1], one)


def published_boxes(entries: list[dict], width: int, height: int) -> list[list[float]]:
    kept = []
    for entry in entries:
        x, y, w, h = entry["bbox"]
        left, top = max(0, x), max(0, y)
        right, bottom = min(width - 1, left + max(0, w - 1)), min(height - 1, top + max(0, h - 1))
        if entry["iscrowd"] or entry["area"] <= 0 or right < left or bottom < top or not any(entry["keypoints"][2::3]):
            continue
        kept.append([left, top, right, bottom])
    return kept


def test_persons_are_taken_as_published_and_the_others_counted(tmp_path):
    cases = [
        annotation(BOX),
        annotation((100.0, 60.0, 90.0, 80.0)),  # partly outside
        annotation((20.5, 30.25, 10.0, 50.5)),
        annotation(BOX, iscrowd=1, segmentation={"counts": [0, 1], "size": [1, 1]}),
        annotation(BOX, keypoints=[0.0] * 51),
        annotation((50.0, 50.0, 0.0, 0.0), keypoints=standing(BOX)),
        annotation((300.0, 10.0, 20.0, 20.0), keypoints=standing(BOX)),
        annotation((50.0, 50.0, 1.0, 30.0), keypoints=standing(BOX)),  # a pixel wide
    ]
    people.write(tmp_path, [cases, [], [annotation(BOX, keypoints=[0.0] * 51)]])
    persons = samples(tmp_path)
    assert persons.persons["box"].tolist() == published_boxes(cases, people.WIDTH, people.HEIGHT)
    assert len(persons) == 4
    counts = {name.rpartition(",")[0]: count for name, count in persons.notes.items()}
    assert counts["crowds"] == 1
    assert counts["persons without a labelled key point"] == 2
    assert counts["persons without a box inside their image"] == 2
    for index in range(len(persons)):
        assert torch.isfinite(persons[index]["joints"]).all() and torch.isfinite(persons[index]["inverse"]).all()


def test_an_image_is_decoded_once_for_its_persons_and_named_when_it_cannot_be(tmp_path, monkeypatch):
    people.write(tmp_path, [[annotation(BOX), annotation((5.0, 5.0, 40.0, 90.0))], [annotation(BOX)]])
    persons, read = samples(tmp_path), []
    original = persons.split.read
    monkeypatch.setattr(persons.split, "read", lambda place: read.append(place) or original(place))
    first, second, _ = (persons[k]["input"] for k in range(3))
    assert read == [0, 1] and not torch.equal(first, second)
    (tmp_path / "val2017/000000000239.jpg").write_bytes(b"")
    fresh = samples(tmp_path)
    with pytest.raises(UnreadableSample, match="empty"):
        fresh[2]


def marked(points: np.ndarray, colours: list[tuple[int, int, int]]) -> Image.Image:
    picture = Image.new("RGB", (people.WIDTH, people.HEIGHT), (90, 90, 90))
    draw = ImageDraw.Draw(picture)
    for (x, y), colour in zip(points.tolist(), colours, strict=True):
        draw.ellipse((x - 5, y - 5, x + 5, y + 5), fill=colour)
    return picture


def test_key_points_stay_on_what_they_mark_through_every_augmentation(tmp_path):
    """Left is red and right is blue: mirrored, a point with the name of the left must lie on what was the right."""
    names = ["left_wrist", "right_wrist", "nose"]
    points = np.array([(45.0, 40.0), (75.0, 45.0), (60.0, 80.0)])
    colours = [(250, 10, 10), (10, 10, 250), (10, 250, 10)]
    listed = [value for point in points.tolist() for value in (*point, 2.0)]
    picture = marked(points, colours)
    people.write(tmp_path, [[annotation(BOX, keypoints=listed)]], names, "train", [picture])
    people.write(tmp_path, [[annotation(BOX, keypoints=listed)]], names, "val", [picture])
    augment = Augmentation(rotated=1.0, shift=0.1, shifted=1.0)
    persons = samples(tmp_path, augment, "train")
    torch.manual_seed(0)
    seen, mirrored = 0, 0
    for _ in range(40):
        sample = persons[0]
        flipped = float(torch.linalg.det(sample["inverse"][:, :2])) < 0
        mirrored += flipped
        for place, (x, y, labelled) in enumerate(sample["joints"].tolist()):
            assert labelled == 1
            if not (3 < x < SIZE[1] - 4 and 3 < y < SIZE[0] - 4):
                continue
            expected = (1, 0, 2)[place] if flipped else place
            pixel = sample["input"][:, round(y), round(x)].float()
            assert (pixel - torch.tensor(colours[expected])).abs().max() < 60, (place, flipped, pixel)
            seen += 1
    assert 10 < mirrored < 30 and seen > 60


def drawn(augment: Augmentation, count: int = 400, joints: np.ndarray | None = None) -> list[tuple]:
    joints = np.array(standing(BOX)).reshape(17, 3) if joints is None else joints
    box = np.array([30.0, 10.0, 89.0, 109.0])
    torch.manual_seed(0)
    return [augment(box, joints, source.legs(COCO), (256, 192)) for _ in range(count)]


def test_the_published_draws():
    centre, extent = framed([30.0, 10.0, 89.0, 109.0], (256, 192))
    found = drawn(Augmentation())
    assert all(np.array_equal(c, centre) for c, *_ in found)
    scales = np.array([float(e[0] / extent[0]) for _, e, *_ in found])
    assert all(np.isclose(e[1] / e[0], 4 / 3) for _, e, *_ in found)
    # N(1, 0.3) set to its limits beyond one deviation: 16 % at either end
    assert scales.min() == pytest.approx(0.7) and scales.max() == pytest.approx(1.3)
    assert 0.11 < np.isclose(scales, 0.7).mean() < 0.21 and 0.11 < np.isclose(scales, 1.3).mean() < 0.21
    turns = np.array([rotation for *_, rotation, _ in found])
    assert 0.34 < (turns == 0).mean() < 0.46  # turned with probability 0.6
    assert np.abs(turns).max() <= 80 and 30 < turns[turns != 0].std() < 45
    assert 0.43 < np.mean([flip for *_, flip in found]) < 0.57
    again = drawn(Augmentation())  # from torch's generator, which the loader seeds, and no other
    assert all(a[2:] == b[2:] and np.array_equal(a[1], b[1]) for a, b in zip(found, again, strict=True))


def test_truncated_draws_have_no_mass_at_their_limits():
    modern = Augmentation(scale=0.5, rotation=80.0, shift=0.16, truncated=True)
    centre, extent = framed([30.0, 10.0, 89.0, 109.0], (256, 192))
    found = drawn(modern)
    scales = np.array([float(e[0] / extent[0]) for _, e, *_ in found])
    assert 0.5 < scales.min() < 0.55 and 1.45 < scales.max() < 1.5
    # the deviation of a standard normal distribution within one deviation is 0.54
    assert 0.54 * 0.5 * 0.9 < scales.std() < 0.54 * 0.5 * 1.1
    assert 70 < max(abs(rotation) for *_, rotation, _ in found) < 80
    moved = np.array([(c - centre) / extent for c, *_ in found])
    assert np.abs(moved).max() <= 0.16 and 0.24 < (moved != 0).all(1).mean() < 0.36


def test_half_a_body_is_framed_where_enough_of_it_is_labelled():
    always = Augmentation(scale=0.0, rotated=0.0, flip=0.0, half_body=1.0)
    joints = np.array(standing(BOX)).reshape(17, 3)
    halves = [joints[:11], joints[11:]]
    frames = [framed([*half[:, :2].min(0), *half[:, :2].max(0)], (256, 192), 1.5) for half in halves]
    found = [[np.array_equal(c, centre) and np.array_equal(e, extent) for centre, extent in frames]
             for c, e, *_ in drawn(always, 60, joints)]  # fmt: skip
    assert all(sum(which) == 1 for which in found)
    assert 15 < sum(which[0] for which in found) < 45
    whole = framed([30.0, 10.0, 89.0, 109.0], (256, 192))
    few = joints * (np.arange(17) < 7)[:, None]
    assert all(np.array_equal(c, whole[0]) for c, *_ in drawn(always, 20, few))
    upper = joints * (np.arange(17) < 12)[:, None]  # one joint of the legs is no half
    expected = framed([*upper[:11, :2].min(0), *upper[:11, :2].max(0)], (256, 192), 1.5)
    assert all(np.array_equal(c, expected[0]) for c, *_ in drawn(always, 20, upper))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"scale": 1.0}, "scale=1: give less than 1"),
        ({"flip": 1.5}, "flip=1.5: give at most 1"),
        ({"shift": math.nan}, "shift=nan: give a finite number"),
    ],
)
def test_impossible_augmentations_are_refused(settings, message):
    with pytest.raises(UserError, match=message):
        Augmentation(**settings)


def test_names_tell_pairs_bones_and_spreads():
    assert source.flip_pairs(COCO) == [(k, k + 1) for k in range(1, 17, 2)]
    published = [[16, 14], [14, 12], [17, 15], [15, 13], [12, 13], [6, 12], [7, 13], [6, 7], [6, 8], [7, 9], [8, 10],
                 [9, 11], [2, 3], [1, 2], [1, 3], [2, 4], [3, 5], [4, 6], [5, 7]]  # fmt: skip
    assert [[a + 1, b + 1] for a, b in source.edges(COCO)] == published
    from pycocotools.cocoeval import Params

    assert source.sigmas(COCO) == Params("keypoints").kpt_oks_sigmas.tolist()
    assert [name for name, leg in zip(COCO, source.legs(COCO), strict=True) if leg] == list(COCO[11:])
    own = ["tail", "right_fin", "left_fin", "left_gill"]
    assert source.flip_pairs(own) == [(2, 1)] and source.edges(own) == [] and source.sigmas(own) == [0.05] * 4


def test_annotations_without_key_points_or_persons_are_refused(tmp_path):
    path = people.write(tmp_path, [[annotation(BOX)]], names=[])
    with pytest.raises(UserError, match="its categories have no key points; give COCO's person_keypoints"):
        _ = CocoKeypoints(str(tmp_path)).classes
    text = path.read_text().replace('"keypoints": []', '"keypoints": ["a"]')
    second = '{"id": 1, "name": "dog"}, {"id": 2, "name": "cat", "keypoints": ["a"]}]}'
    path.write_text(text[: text.index('"annotations"')] + f'"annotations": [], "categories": [{second}')
    with pytest.raises(UserError, match="its categories are dog, cat: exactly one is to be called person"):
        CocoKeypoints(str(tmp_path)).split("val")
