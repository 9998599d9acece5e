"""The persons in pictures that a user gives to predict."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from torch.utils.data import default_collate

from tasks.coco.columns import Column
from tasks.pose.boxes import FORMAT, content_of
from tasks.pose.data import prepared
from tdaf.errors import UserError
from tdaf.media.pictures import Media
from tdaf.task import Batch

Box = tuple[float, float, float, float]  # x1, y1, x2, y2


class PredictDataset:
    """people: (picture, box or None for all of it, score). Samples have "input", "inverse", "box" and "box_score" as
    those of `data.Persons`."""

    skipped = 0
    notes: dict[str, int] = {}
    groups = None

    def __init__(
        self, pictures: Media, people: list[tuple[int, Box | None, float]], size: tuple[int, int], flip_test: bool
    ) -> None:
        self.pictures, self.people, self.size, self.flip_test = pictures, people, size, flip_test

    def __len__(self) -> int:
        return len(self.people)

    def __getitem__(self, index: int) -> dict[str, Any]:
        picture, box, score = self.people[index]
        image = self.pictures.read(picture)
        whole = (0.0, 0.0, float(image.shape[2]), float(image.shape[1]))
        return {**prepared(image, np.array(box or whole), self.size, self.flip_test), "box_score": score}

    def name(self, index: int) -> str:
        return self.pictures.name(self.people[index][0])

    def shown(self, index: int) -> list[int]:
        return [self.people[index][0]]

    def collate(self, samples: list[dict[str, Any]]) -> Batch:
        return default_collate(samples)


def people(boxes: str | None, pictures: Media, person: str, least: float) -> list[tuple[int, Box | None, float]]:
    """What `PredictDataset` takes. boxes: None or "image", the whole picture is one person; or the path of a JSON file: what
    predict writes with a detection checkpoint, {images: [{id, file_name, frame}], annotations: [{image_id, category_id,
    bbox, score}], categories}, or COCO's results, a list, whose image ids are the numbers that files are named by, as
    COCO's are. Files are known by their paths, else by their names. person: the category's name.

    Raises UserError, one line, for a file that cannot be used and for one that holds no such box of these pictures.
    """
    if boxes is None or boxes == "image":
        return [(picture, None, 1.0) for picture in range(len(pictures))]
    path = Path(boxes).expanduser()
    content = content_of(path)
    if isinstance(content, list):
        found, category = Column(path, "box", content), 1
        places = {number: [place] for place, number in _numbers(pictures).items()}
    else:
        found, category = _annotations(path, content), _category(path, content, person)
        places = _places(path, content["images"], pictures)
    images, corners = found.integers("image_id").tolist(), found.numbers("bbox", (4,))
    categories, scores = found.integers("category_id").tolist(), found.numbers("score", (), 1.0).tolist()
    corners[:, 2:] += corners[:, :2]
    kept = [
        (picture, (x1, y1, x2, y2), score)
        for number, kind, (x1, y1, x2, y2), score in zip(images, categories, corners.tolist(), scores, strict=True)
        if kind == category and score >= least and x2 > x1 and y2 > y1
        for picture in places.get(number, [])
    ]
    if not kept:
        why = f"of the {len(images)} in it, with category {person} and score {least:g} (box_score) or above"
        raise UserError(f"boxes={boxes}: it has no box of these pictures, {why}")
    return sorted(kept, key=lambda entry: entry[0])


def _numbers(pictures: Media) -> dict[int, int]:
    """Pictures that are named by a number, COCO_val2014_000000000139.jpg and 000000000139.jpg alike."""
    stems = {place: pictures.file(place).stem.rpartition("_")[2] for place in range(len(pictures))}
    return {place: int(stem) for place, stem in stems.items() if stem.isdecimal() and pictures.frame(place) is None}


def _annotations(path: Path, content: Any) -> Column:
    lists = isinstance(content, dict) and all(
        isinstance(content.get(key), list) for key in ("images", "annotations", "categories")
    )
    if not lists:
        raise UserError(f"boxes={path}: expected what predict writes with a detection checkpoint, or {FORMAT}")
    return Column(path, "box", content["annotations"])


def _category(path: Path, content: dict[str, Any], person: str) -> int:
    column = Column(path, "category", content["categories"])
    known = dict(zip(column.texts("name"), column.integers("id").tolist(), strict=True))
    if person not in known:
        raise UserError(f"boxes={path}: no category is called {person}; give person=NAME, one of {', '.join(known)}")
    return known[person]


def _places(path: Path, images: list[dict[str, Any]], pictures: Media) -> dict[int, list[int]]:
    """Image id to pictures."""
    column = Column(path, "image", images)
    names, ids = [Path(name) for name in column.texts("file_name")], column.integers("id").tolist()
    whole: dict[tuple[Path, str], int] = {}
    short: dict[tuple[str, str], int | None] = {}
    for name, number, entry in zip(names, ids, images, strict=True):
        frame = str(entry.get("frame"))
        whole[name.absolute(), frame] = number
        key = (name.name, frame)
        short[key] = None if key in short else number  # two files of one name are told apart by their paths only
    wanted = [(pictures.file(place), str(pictures.frame(place))) for place in range(len(pictures))]
    often = Counter((file.name, frame) for file, frame in wanted)
    places: dict[int, list[int]] = {}
    for place, (file, frame) in enumerate(wanted):
        named = short.get((file.name, frame)) if often[file.name, frame] == 1 else None
        number = whole.get((file.absolute(), frame), named)
        if number is not None:
            places.setdefault(number, []).append(place)
    return places
