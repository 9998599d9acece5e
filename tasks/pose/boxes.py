"""Where the boxes of persons come from: the annotations ("gt"), or a detector's results in COCO's format."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tasks.coco.annotations import Annotations, read
from tasks.coco.columns import Column
from tasks.pose.source import person
from tdaf.errors import UserError

FORMAT = "COCO detection results, [{image_id, category_id, bbox: [x, y, width, height], score}, ...]"
NONE = -1  # the row of a detector's box


@dataclass(frozen=True, eq=False)
class People:
    """K boxes, those of one image together.

    images (K,) int32: places in the split. boxes (K, 4) float32: x1, y1, x2, y2, where whole numbers are the centres of
    pixels. scores (K,) float32. rows (K,) int64: of the annotations' table, -1 for a detector's boxes. skipped: boxes
    in images that a skip list leaves out. notes: what was left out or handled, and how often.
    """

    images: np.ndarray
    boxes: np.ndarray
    scores: np.ndarray
    rows: np.ndarray
    skipped: int
    notes: dict[str, int]

    def __len__(self) -> int:
        return len(self.images)


def annotated(annotations: Annotations) -> People:
    """The persons with at least one labelled key point, no crowd, with a box of some length inside the image, score 1.

    A box reaches from its first to its last pixel's centre and is clipped to the image, as in
    microsoft/human-pose-estimation.pytorch, lib/dataset/coco.py (where a box that begins before the image is moved into
    it; here it is cut).
    """
    found = _annotated(annotations)
    everything = read(annotations.path)
    if len(everything) == len(annotations):
        return found
    skipped = len(_annotated(everything)) - len(found)
    return People(found.images, found.boxes, found.scores, found.rows, skipped, found.notes)


def _annotated(annotations: Annotations) -> People:
    table, spans = annotations.table, annotations.object_spans
    counts = spans[:, 1] - spans[:, 0]
    images = np.repeat(np.arange(len(annotations), dtype=np.int32), counts)
    rows = np.arange(counts.sum()) + np.repeat(spans[:, 0] - (np.cumsum(counts) - counts), counts)
    mine = table.labels[rows] == person(annotations)[0]
    images, rows = images[mine], rows[mine]
    limits = annotations.sizes[images][:, ::-1] - 1
    first, length = table.boxes[rows, :2], table.boxes[rows, 2:]
    last = first + np.maximum(length - 1, 0)
    low, high = np.maximum(first, 0), np.minimum(last, limits)
    boxed = (high >= low).all(1) & (high > low).any(1) & (length > 0).all(1) & (table.areas[rows] > 0)
    labelled = np.zeros(len(rows), bool) if table.keypoints is None else (table.keypoints[rows, :, 2] > 0).any(1)
    crowd = table.crowd[rows]
    kept = ~crowd & labelled & boxed
    notes = {
        "crowds, left out": int(crowd.sum()),
        "persons without a labelled key point, left out": int((~crowd & ~labelled).sum()),
        "persons without a box inside their image, left out": int((~crowd & labelled & ~boxed).sum()),
    }
    boxes = np.concatenate([low, high], 1)[kept].astype(np.float32)
    noted = {name: count for name, count in notes.items() if count}
    return People(images[kept], boxes, np.ones(len(boxes), np.float32), rows[kept], 0, noted)


def detected(path: Path, annotations: Annotations, least: float) -> People:
    """The persons that a detector found in these images, as it gives them, with a score of `least` or more.

    Boxes of other categories, without area, and in images that the annotations do not have are left out and counted.
    Raises UserError, one line: a file that is missing, cut off or of another kind, an entry that lacks something or
    holds what is no finite number, and a file of which nothing is left.
    """
    column = Column(path, "box", results(path))
    images, categories = column.integers("image_id"), column.integers("category_id")
    boxes, scores = column.numbers("bbox", (4,)), column.numbers("score")
    number = person(annotations)[1]
    mine = categories == number
    known = read(annotations.path).places(images) >= 0
    areal = (boxes[:, 2:] > 0).all(1)
    sure = scores >= least
    usable = mine & known & areal & sure
    places = annotations.places(images)
    order = np.flatnonzero(usable & (places >= 0))
    order = order[np.argsort(places[order], kind="stable")]
    notes = {
        f"boxes of other categories than {number} (person), left out": int((~mine).sum()),
        "boxes in images that the annotations do not have, left out": int((mine & ~known).sum()),
        "boxes without area, left out": int((mine & known & ~areal).sum()),
        f"boxes with a score below {least:g}, left out": int((mine & known & areal & ~sure).sum()),
    }
    notes = {f"{name} ({path.name})": count for name, count in notes.items() if count}
    if not len(order):
        why = "; ".join(f"{count} {name}" for name, count in notes.items()) or "it is empty"
        raise UserError(f"task.boxes: {path} has no box of a person in these images: {why}")
    corners = np.concatenate([boxes[order, :2], boxes[order, :2] + boxes[order, 2:]], 1).astype(np.float32)
    rows = np.full(len(order), NONE)
    skipped = int(usable.sum()) - len(order)
    return People(places[order].astype(np.int32), corners, scores[order].astype(np.float32), rows, skipped, notes)


def results(path: Path) -> list[dict[str, Any]]:
    """The list in a file of detection results. UserError where there is none."""
    content = content_of(path)
    if not isinstance(content, list):
        what = f"an object with {', '.join(map(str, content)) or 'nothing'}" if isinstance(content, dict) else "no list"
        raise UserError(f"{path} holds {what:.80}; expected {FORMAT}; scripts/detect_people.py writes such a file")
    return content


def content_of(path: Path) -> Any:
    """A JSON file's content. UserError where it cannot be read."""
    try:
        with path.open("rb") as file:
            return json.load(file)
    except OSError as error:
        said = f"boxes: {path}: {error.strerror}; expected {FORMAT}"
        raise UserError(f"{said}; scripts/detect_people.py writes such a file") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"boxes: {path} is damaged or no JSON ({error}); write or copy it again") from error
