"""The annotations of a COCO file as columns, sorted by image, and what is wrong with them but can be handled."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from tasks.coco.columns import Column
from tdaf.errors import UserError


@dataclass(frozen=True, eq=False)
class Table:
    """M objects: those of one image together, in the file's order.

    boxes (M, 4) float64: x, y, width, height, exactly as in the file, because the scores must be those of the file.
    labels (M,) int32. areas (M,) float64. crowd (M,) bool. usable (M,) bool: no crowd, and some of the box lies inside
    the image. ids (M,) int64. keypoints (M, J, 3) float32, float64 where the file's digits need it, or None.
    labelled (M,) int16: the file's num_keypoints, by which the score knows persons without key points.
    """

    boxes: np.ndarray
    labels: np.ndarray
    areas: np.ndarray
    crowd: np.ndarray
    usable: np.ndarray
    ids: np.ndarray
    keypoints: np.ndarray | None
    labelled: np.ndarray | None


Places = Callable[[np.ndarray], np.ndarray]


def packed(
    column: Column, image_places: Places, category_places: Places, sizes: np.ndarray, joints: int
) -> tuple[Table, np.ndarray, dict[str, int]]:
    """(the table, the place (M,) of each object's image, how often each thing was handled).

    image_places, category_places: ids to places, -1 for unknown ones. sizes (N, 2): of the images. joints: key points
    an object has. An entry that is listed twice counts once; an id that two objects share, or that is 0, which COCO's
    own evaluation takes for "nothing matched", is replaced by a free one. Raises UserError for what has no remedy.
    """
    images = _known(column, "image_id", image_places)
    labels = _known(column, "category_id", category_places)
    boxes = column.numbers("bbox", (4,))
    areas = column.numbers("area", (), -1)
    crowd = column.integers("iscrowd", 0) != 0
    points = column.numbers("keypoints", (3 * joints,), [0] * (3 * joints)) if joints else np.zeros((len(boxes), 0))
    labelled = column.integers("num_keypoints", -1)
    contents = (images, labels, boxes, crowd, points)
    ids, once, notes = _distinct(column.integers("id"), contents)

    rows = once[np.argsort(images[once], kind="stable")]
    images, labels, boxes, areas, crowd, ids = (part[rows] for part in (images, labels, boxes, areas, crowd, ids))
    notes["objects without an area, the box's taken"] = int((areas < 0).sum())
    areas = np.where(areas < 0, boxes[:, 2:].clip(0).prod(1), areas)
    usable = _inside(boxes, sizes[images], notes) & ~crowd
    notes["images without an object"] = len(sizes) - len(np.unique(images))
    keypoints = counts = None
    if joints:
        keypoints = _narrow(points[rows].reshape(len(rows), joints, 3))
        counts = np.where(labelled[rows] < 0, (keypoints[..., 2] > 0).sum(1), labelled[rows]).astype(np.int16)
    table = Table(boxes, labels.astype(np.int32), areas, crowd, usable, ids, keypoints, counts)
    return table, images, {name: count for name, count in notes.items() if count}


def _known(column: Column, key: str, places: Places) -> np.ndarray:
    ids = column.integers(key)
    found = places(ids)
    unknown = np.flatnonzero(found < 0)
    if unknown.size:
        kind = {"image_id": "images", "category_id": "categories"}[key]
        said = f"{column.name(unknown[0])}: {key}={ids[unknown[0]]} is not among the file's {kind}"
        more = f" (nor are {unknown.size - 1} others)" if unknown.size > 1 else ""
        raise UserError(f"{column.path}: {said}{more}")
    return found


def _distinct(ids: np.ndarray, contents: tuple[np.ndarray, ...]) -> tuple[np.ndarray, np.ndarray, dict[str, int]]:
    """(ids without repetition, the rows to keep, counts)."""
    ids = ids.copy()
    values, counts = np.unique(ids, return_counts=True)
    seen: set[tuple] = set()
    used: set[int] = set()
    dropped, fresh = [], int(values[-1]) if len(values) else 0
    notes = {"annotations listed twice, counted once": 0, "annotation ids used twice, replaced": 0}
    notes["annotation id 0, replaced"] = 0
    for row in np.flatnonzero(np.isin(ids, values[(counts > 1) | (values == 0)])):
        number = int(ids[row])
        content = (number, *(part[row].tobytes() for part in contents))
        if content in seen:
            dropped.append(row)
            notes["annotations listed twice, counted once"] += 1
        elif number in used or number == 0:
            fresh = max(fresh, 0) + 1
            ids[row] = fresh
            notes["annotation id 0, replaced" if number == 0 else "annotation ids used twice, replaced"] += 1
        seen.add(content)
        used.add(number)
    return ids, np.delete(np.arange(len(ids)), dropped), notes


def _inside(boxes: np.ndarray, sizes: np.ndarray, notes: dict[str, int]) -> np.ndarray:
    """(M,) whether some of the box lies inside its image."""
    limits = sizes[:, ::-1]
    first, last = boxes[:, :2], boxes[:, :2] + boxes[:, 2:]
    flat = (boxes[:, 2:] <= 0).any(1)
    seen = (np.minimum(last, limits) > np.maximum(first, 0)).all(1)
    beyond = ((first < -0.5) | (last > limits + 0.5)).any(1)  # less is rounding, which COCO has too
    notes["boxes without area, not learnt"] = int(flat.sum())
    notes["boxes outside their image, not learnt"] = int((~flat & ~seen).sum())
    notes["boxes partly outside their image, clipped to learn"] = int((~flat & seen & beyond).sum())
    return ~flat & seen


def _narrow(values: np.ndarray) -> np.ndarray:
    """float32 where that loses nothing (COCO's key points are whole pixels), else as it is."""
    small = values.astype(np.float32)
    return small if np.array_equal(small, values) else values
