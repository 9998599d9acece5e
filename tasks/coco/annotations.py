"""One COCO annotation file (instances_*.json, person_keypoints_*.json, or an own one in that format), packed."""

from __future__ import annotations

import functools
import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from tasks.coco.columns import Column
from tasks.coco.table import Table, packed
from tdaf.errors import UserError

LEFT_OUT = ("segmentation", "license", "coco_url", "flickr_url", "date_captured")  # most of the file, and unused here


@dataclass(frozen=True)
class Objects:
    """The K objects of one image, in the file's order.

    boxes (K, 4) float32: x1, y1, x2, y2 in pixels from the image's upper left corner. labels (K,) int64: places in
    `Annotations.categories`. areas (K,) float32: the file's, of the outline rather than the box. crowd (K,) bool.
    ids (K,) int64. keypoints (K, J, 3) float32: x, y in pixels and 0 not labelled, 1 hidden, 2 visible; None where
    the categories have no key points.
    """

    boxes: np.ndarray
    labels: np.ndarray
    areas: np.ndarray
    crowd: np.ndarray
    ids: np.ndarray
    keypoints: np.ndarray | None

    def __len__(self) -> int:
        return len(self.ids)

    def only(self, chosen: np.ndarray) -> Objects:
        """Those where `chosen` (K,) is true, or at its places."""
        points = None if self.keypoints is None else self.keypoints[chosen]
        fields = (self.boxes, self.labels, self.areas, self.crowd, self.ids)
        return Objects(*(field[chosen] for field in fields), points)


@dataclass(frozen=True, eq=False)
class Annotations:
    """N images in the order of their ids, and their objects.

    All objects lie in a few arrays and all file names in one string: as a list of dictionaries train2017 would take
    gigabytes, and worker processes would copy them, because counting references writes to each of them.

    sizes (N, 2) int32: height, width. categories: (id in the file, name), in the order of the ids, which may have
    gaps. skeleton: pairs of places in `keypoint_names`. notes: what was found wrong and handled, and how often.
    table: all objects; image i has its rows object_spans[i, 0] to object_spans[i, 1].
    """

    path: Path
    image_ids: np.ndarray
    sizes: np.ndarray
    categories: list[tuple[int, str]]
    keypoint_names: list[str]
    skeleton: list[tuple[int, int]]
    notes: dict[str, int]
    table: Table
    object_spans: np.ndarray
    file_names: str
    file_spans: np.ndarray

    def __len__(self) -> int:
        return len(self.image_ids)

    @property
    def classes(self) -> list[str]:
        return [name for _, name in self.categories]

    def file(self, index: int) -> str:
        begin, end = self.file_spans[index]
        return self.file_names[begin:end]

    def objects(self, index: int) -> Objects:
        """All of an image's objects, their boxes as the file has them."""
        return self._objects(slice(*self.object_spans[index]))

    def usable(self, index: int) -> Objects:
        """What a network can learn from: no crowd, boxes clipped to the image, none without area inside it."""
        span = slice(*self.object_spans[index])
        found = self._objects(span).only(self.table.usable[span])
        height, width = self.sizes[index]
        return replace(found, boxes=found.boxes.clip(0, np.array([width, height, width, height], np.float32)))

    def usable_counts(self) -> np.ndarray:
        """(N,) how many objects `usable(i)` has."""
        before = np.concatenate([[0], np.cumsum(self.table.usable)])
        return before[self.object_spans[:, 1]] - before[self.object_spans[:, 0]]

    def places(self, image_ids: np.ndarray) -> np.ndarray:
        """Image ids of any shape to places in `image_ids`, -1 for ids that the file does not have."""
        return _places(np.asarray(image_ids), self.image_ids)

    def only(self, places: np.ndarray) -> Annotations:
        """The images at these rising places, sharing the objects' arrays."""
        rows = {name: getattr(self, name)[places] for name in ("image_ids", "sizes", "object_spans", "file_spans")}
        return replace(self, **rows)

    def _objects(self, span: slice) -> Objects:
        table = self.table
        boxes = table.boxes[span].copy()
        boxes[:, 2:] += boxes[:, :2]
        points = None if table.keypoints is None else table.keypoints[span].astype(np.float32)
        labels, areas = table.labels[span].astype(np.int64), table.areas[span].astype(np.float32)
        return Objects(boxes.astype(np.float32), labels, areas, table.crowd[span], table.ids[span], points)


def read(path: Path) -> Annotations:
    """The annotations in this file; read once in a process as long as the file does not change.

    UserError, one line: a file that is missing, cut off or no annotation file; an entry that lacks something, has it in
    another kind or names an image or category that is not there; image or category ids used twice.
    """
    path = Path(path)
    try:
        found = path.stat()
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}; a COCO annotation file should be there") from error
    return _read(path, found.st_mtime_ns, found.st_size)


@functools.lru_cache(maxsize=4)
def _read(path: Path, changed: int, size: int) -> Annotations:
    content = _content(path)
    images = Column(path, "image", content["images"])
    image_ids = images.integers("id")
    order = np.argsort(image_ids, kind="stable")
    _check_once(images, image_ids, order)
    sizes = np.stack([images.integers(side, least=1) for side in ("height", "width")], 1)[order]
    names = images.texts("file_name")
    names = [names[place] for place in order]
    categories = _categories(path, content["categories"])
    keypoint_names, skeleton = _keypoints(path, content["categories"])
    table, image_places, notes = packed(
        Column(path, "annotation", content["annotations"]),
        lambda ids: _places(ids, image_ids[order]),
        lambda ids: _places(ids, np.array([number for number, _ in categories])),
        sizes,
        len(keypoint_names),
    )
    return Annotations(
        path,
        image_ids[order],
        sizes.astype(np.int32),
        categories,
        keypoint_names,
        skeleton,
        notes,
        table,
        _spans(np.bincount(image_places, minlength=len(names))),
        "".join(names),
        _spans(np.array([len(name) for name in names])),
    )


def _content(path: Path) -> dict[str, list]:
    try:
        with path.open("rb") as file:
            content = json.load(file, object_hook=_slim)
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}; a COCO annotation file should be there") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is damaged or no JSON ({error}); unpack or copy it again") from error
    kind = f"{path} is no COCO annotation file: "
    if not isinstance(content, dict):
        raise UserError(f"{kind}it holds a {type(content).__name__}, not an object with lists of images and so on")
    content.setdefault("annotations", [])  # as in image_info_test-dev2017.json
    for key in ("images", "categories", "annotations"):
        if not isinstance(content.get(key), list):
            raise UserError(f"{kind}it has no list '{key}'")
    for key in ("images", "categories"):
        if not content[key]:
            raise UserError(f"{path}: its list '{key}' is empty; nothing can be learnt or measured with it")
    return content


def _slim(entry: dict[str, Any]) -> dict[str, Any]:
    for key in LEFT_OUT:
        entry.pop(key, None)
    return entry


def _check_once(column: Column, ids: np.ndarray, order: np.ndarray) -> None:
    again = np.flatnonzero(np.diff(ids[order]) == 0)
    if again.size:
        number = ids[order[again[0]]]
        raise UserError(f"{column.path}: {column.kind} id {number} is used more than once; give each its own")


def _categories(path: Path, entries: list[dict[str, Any]]) -> list[tuple[int, str]]:
    column = Column(path, "category", entries)
    ids, names = column.integers("id"), column.texts("name")
    order = np.argsort(ids, kind="stable")
    _check_once(column, ids, order)
    return [(int(ids[place]), names[place]) for place in order]


def _keypoints(path: Path, entries: list[dict[str, Any]]) -> tuple[list[str], list[tuple[int, int]]]:
    """Names of key points and bones between them, of the category that has key points."""
    found = [entry for entry in entries if entry.get("keypoints")]
    if not found:
        return [], []
    names = found[0]["keypoints"]
    texts = isinstance(names, list) and all(isinstance(name, str) for name in names)
    if not texts or any(entry["keypoints"] != names for entry in found):
        raise UserError(f"{path}: categories with different key points; one list of names for all is expected")
    bones = found[0].get("skeleton", [])
    try:
        skeleton = [(int(a) - 1, int(b) - 1) for a, b in bones]
    except (TypeError, ValueError):
        skeleton = [(-1, -1)]
    if any(not 0 <= end < len(names) for bone in skeleton for end in bone):
        raise UserError(f"{path}: category {found[0]['id']}: skeleton: give pairs of 1 to {len(names)}")
    return names, skeleton


def _spans(counts: np.ndarray) -> np.ndarray:
    """(N, 2) begins and ends of parts of these lengths."""
    ends = np.cumsum(counts)
    return np.stack([ends - counts, ends], 1)


def _places(ids: np.ndarray, known: np.ndarray) -> np.ndarray:
    """known: rising."""
    found = np.searchsorted(known, ids).clip(max=len(known) - 1)
    return np.where(known[found] == ids, found, -1)
