"""One COCO annotation file (instances_*.json, person_keypoints_*.json, or an own one in that format), packed."""

from __future__ import annotations

import functools
import json
import posixpath
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from tdaf.errors import UnreadableSample, UserError
from tdaf.media import archive

UNUSED = ("segmentation", "license", "coco_url", "flickr_url", "date_captured")  # most of the file
EXACT = 2**53  # whole numbers up to here are what they are in float64
BAD_NUMBERS = (AttributeError, KeyError, TypeError, ValueError, OverflowError)  # what numpy says to them


def object_dtype(keypoints: int, points: type = np.float32) -> np.dtype:
    """An object, its fields named and counted as in COCO's files, whose digits they keep: scores must be the file's."""
    return np.dtype(
        [
            ("bbox", np.float64, (4,)),  # x, y, width, height in pixels from the image's upper left corner
            ("area", np.float64),  # square pixels of the outline, rather than of the box
            ("category", np.int32),  # index into `Annotations.categories`
            ("iscrowd", np.bool_),
            ("num_keypoints", np.int16),
            ("keypoints", points, (keypoints, 3)),  # x, y in pixels and 0 not labelled, 1 hidden, 2 visible
        ]
    )


def corners(objects: np.ndarray) -> np.ndarray:
    """(K,) objects -> (K, 4) float32, x1, y1, x2, y2 in pixels."""
    boxes = objects["bbox"]
    return np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], 1).astype(np.float32)


def inside(objects: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """(K,) bool: whether some of the box lies inside its image. sizes: (K, 2) or (2,), height and width in pixels."""
    first, length = objects["bbox"][:, :2], objects["bbox"][:, 2:]
    overlap = np.minimum(first + length, sizes[..., ::-1]) > np.maximum(first, 0)
    return (overlap & (length > 0)).all(1)


@dataclass(frozen=True, eq=False)
class Annotations:
    """N images in the order of their ids, and their objects.

    All objects lie in one array and all file names in another: as a list of dictionaries train2017 would take
    gigabytes, and worker processes would copy them, because counting references writes to each of them.

    Args:
        path: of the file.
        image_ids: (N,) int64, rising.
        sizes: (N, 2) int32, height and width in pixels; 0 where the file does not say (source.py asks the images).
        categories: (id in the file, name), in the order of the ids, which may have gaps, or of a checkpoint.
        keypoint_names: J names; empty where no category has key points.
        notes: what was found wrong in the file and handled, and how often.
        all_objects: (K,) of `object_dtype`, those of one image together and in the file's order; of all images of the
            file, those that `only` left out too.
        object_spans: (N, 2); image i has the objects from object_spans[i, 0] to object_spans[i, 1].
        file_names: (N,) texts, below the images' folder and with / between their parts.
    """

    path: Path
    image_ids: np.ndarray
    sizes: np.ndarray
    categories: list[tuple[int, str]]
    keypoint_names: list[str]
    notes: dict[str, int]
    all_objects: np.ndarray
    object_spans: np.ndarray
    file_names: np.ndarray

    def __len__(self) -> int:
        return len(self.image_ids)

    @property
    def classes(self) -> list[str]:
        return [name for _, name in self.categories]

    def objects(self, index: int) -> np.ndarray:
        return self.all_objects[slice(*self.object_spans[index])]

    def usable(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """What a network can learn from: boxes (K, 4) float32 x1, y1, x2, y2 clipped to the image, and labels (K,)
        int64, of the objects that are no crowd and have some area inside the image."""
        objects, (height, width) = self.objects(index), self.sizes[index]
        objects = objects[inside(objects, self.sizes[index]) & ~objects["iscrowd"]]
        limits = np.array([width, height, width, height], np.float32)
        return corners(objects).clip(0, limits), objects["category"].astype(np.int64)

    def usable_counts(self) -> np.ndarray:
        """(N,) how many objects `usable(i)` has."""
        images, rows = self.rows()
        objects = self.all_objects[rows]
        usable = inside(objects, self.sizes[images]) & ~objects["iscrowd"]
        return np.bincount(images[usable], minlength=len(self))

    def rows(self) -> tuple[np.ndarray, np.ndarray]:
        """Two (K,): of every object of these images the image's index, and its row in `all_objects`."""
        begins, ends = self.object_spans.T
        counts = ends - begins
        images = np.repeat(np.arange(len(self)), counts)
        return images, np.arange(len(images)) + np.repeat(begins - (np.cumsum(counts) - counts), counts)

    def indices(self, image_ids: np.ndarray) -> np.ndarray:
        """Image ids of any shape to indices of images, -1 for ids that are not among them."""
        return _indices(np.asarray(image_ids), self.image_ids)

    def reordered(self, classes: Sequence[str] = (), keypoint_names: Sequence[str] = ()) -> Annotations:
        """With the categories or the key points in this order of their names."""
        objects, categories, names = self.all_objects.copy(), self.categories, self.keypoint_names
        if classes:
            order = [self.classes.index(name) for name in classes]
            objects["category"] = np.argsort(order)[objects["category"]]
            categories = [categories[k] for k in order]
        if keypoint_names:
            objects["keypoints"] = objects["keypoints"][:, [names.index(name) for name in keypoint_names]]
            names = list(keypoint_names)
        return replace(self, all_objects=objects, categories=categories, keypoint_names=names)

    def only(self, indices: np.ndarray) -> Annotations:
        """The images at these rising indices, sharing the objects' arrays."""
        rows = {name: getattr(self, name)[indices] for name in ("image_ids", "sizes", "object_spans", "file_names")}
        return replace(self, **rows)


def read(path: Path, keypoints: bool = True) -> Annotations:
    """The annotations in this file; read once in a process as long as the file does not change.

    Args:
        path: of the file.
        keypoints: whether its key points are read; without them nothing of them can be wrong.

    Raises:
        UserError: a file that is missing, cut off or no annotation file; an entry that lacks something, has it in
            another kind or names an image or category that is not there; image or category ids used twice.
    """
    path = Path(path)
    try:
        size, changed = archive.about(path)
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}; a COCO annotation file should be there") from error
    return _read(path, changed, size, keypoints)


def read_json(path: Path, expected: str = "a COCO annotation file should be there", **options: Any) -> Any:
    """A JSON file's content. Raises UserError where it cannot be read. options: of json.load."""
    try:
        with archive.open_file(path) as file:
            return json.load(file, **options)
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}; {expected}") from error
    except (ValueError, RecursionError, UnreadableSample) as error:
        raise UserError(f"{path} is damaged or no JSON ({error}); unpack or copy it again") from error


@functools.lru_cache(maxsize=4)
def _read(path: Path, changed: int, size: int, keypoints: bool) -> Annotations:
    content = _content(path)
    content["images"], twice = _without_copies(content["images"])
    images, categories = Entries(path, "image", content["images"]), Entries(path, "category", content["categories"])
    annotations = Entries(path, "annotation", content["annotations"])
    image_ids, order = _sorted_ids(images)
    category_ids, category_order = _sorted_ids(categories)
    category_names, as_written = categories.texts("name"), images.texts("file_name")
    # files of Windows, and of tools that list a folder as "."
    names = [posixpath.normpath(n.replace("\\", "/")) if "\\" in n or n[:2] == "./" else n for n in as_written]
    keypoint_names = _keypoints(path, content["categories"]) if keypoints else []
    objects, object_images, notes = _objects(annotations, image_ids, category_ids, len(keypoint_names))
    counts = np.bincount(object_images, minlength=len(names))
    ends = np.cumsum(counts)
    sizes = np.stack([images.integers(side, default=0, least=0) for side in ("height", "width")], 1)
    notes["numbers written as text, read"] = sum(e.numbers_as_text for e in (images, categories, annotations))
    notes["file names with \\ or ./, read with /"] = sum(a != b for a, b in zip(as_written, names, strict=True))
    notes["images listed twice with one id, taken once"] = twice
    notes["file names under more than one id, each an image of its own"] = len(names) - len(set(names))
    notes["images without an object"] = len(images.entries) - len(np.unique(object_images))
    packed = Annotations(
        path=path,
        image_ids=image_ids,
        sizes=sizes[order].astype(np.int32),
        categories=[(int(n), category_names[row]) for n, row in zip(category_ids, category_order, strict=True)],
        keypoint_names=keypoint_names,
        notes={name: count for name, count in notes.items() if count},
        all_objects=objects,
        object_spans=np.stack([ends - counts, ends], 1),
        file_names=np.array(names)[order],
    )
    return replace(packed, notes={**packed.notes, **box_notes(packed)})


def _content(path: Path) -> dict[str, list]:
    content = read_json(path, object_hook=lambda entry: {k: v for k, v in entry.items() if k not in UNUSED})
    kind = f"{path} is no COCO annotation file: "
    if not isinstance(content, dict):
        raise UserError(f"{kind}it holds a {type(content).__name__}, not an object with lists of images and so on")
    content["annotations"] = content.get("annotations") or []  # none in image_info_test-dev2017.json
    for key in ("images", "categories", "annotations"):
        if not isinstance(content.get(key), list):
            raise UserError(f"{kind}it has no list '{key}'")
        if not content[key] and key != "annotations":
            raise UserError(f"{path}: its list '{key}' is empty; nothing can be learnt or measured with it")
    return content


def _without_copies(images: list[Any]) -> tuple[list[Any], int]:
    """Without entries of an id, a file and a size that are there before; and how many these were."""
    keys = ("id", "file_name", "height", "width")
    try:
        first = {tuple(entry.get(key) for key in keys): entry for entry in reversed(images)}
    except (AttributeError, TypeError):  # not well-formed: whoever reads it says what is wrong
        return images, 0
    copies = len(images) - len(first)
    return (list(reversed(first.values())) if copies else images), copies


def _sorted_ids(entries: Entries) -> tuple[np.ndarray, np.ndarray]:
    """The ids, rising, and the order of the entries that makes them so. Raises UserError where one is used twice."""
    ids = entries.integers("id")
    order = np.argsort(ids, kind="stable")
    again = np.flatnonzero(np.diff(ids[order]) == 0)
    if again.size:
        number = ids[order[again[0]]]
        raise UserError(f"{entries.path}: {entries.kind} id {number} is used more than once; give each its own")
    return ids[order], order


def _keypoints(path: Path, categories: list[dict[str, Any]]) -> list[str]:
    """Names of key points, of the categories that have some."""
    with_points = [entry for entry in categories if entry.get("keypoints")]
    if not with_points:
        return []
    names = with_points[0]["keypoints"]
    texts = isinstance(names, list) and {type(name) for name in names} == {str}
    if not texts or any(entry["keypoints"] != names for entry in with_points):
        raise UserError(f"{path}: categories with different key points; one list of names for all is expected")
    return names


def _objects(
    entries: Entries, image_ids: np.ndarray, category_ids: np.ndarray, joints: int
) -> tuple[np.ndarray, np.ndarray, dict[str, int]]:
    """The objects, sorted by image; the index (K,) of each one's image; how often each thing was handled. Their ids
    are not looked at: scores know them by number."""
    images = _known(entries, "image_id", image_ids, "images")
    no_points = [0] * (3 * joints)
    points = entries.numbers("keypoints", (3 * joints,), no_points) if joints else np.zeros((len(images), 0))
    exact = np.array_equal(points.astype(np.float32), points)  # COCO's are whole pixels
    objects = np.zeros(len(images), object_dtype(joints, np.float32 if exact else np.float64))
    objects["bbox"], objects["area"] = entries.numbers("bbox", (4,)), entries.numbers("area", default=-1)
    objects["category"] = _known(entries, "category_id", category_ids, "categories")
    objects["iscrowd"] = entries.integers("iscrowd", default=0) != 0
    objects["keypoints"] = points.reshape(len(points), joints, 3)
    counts = entries.integers("num_keypoints", default=-1)
    objects["num_keypoints"] = np.where(counts < 0, (objects["keypoints"][..., 2] > 0).sum(1), counts)
    contradicted = (counts >= 0) & (counts != (objects["keypoints"][..., 2] > 0).sum(1)) & (joints > 0)
    without = objects["area"] < 0
    objects["area"][without] = objects["bbox"][without, 2:].clip(0).prod(1)
    order = np.argsort(images, kind="stable")
    notes = {
        "objects without an area, the box's taken": int(without.sum()),
        "objects whose num_keypoints is not the number of labelled key points": int(contradicted.sum()),
    }
    return objects[order], images[order], notes


def _known(entries: Entries, key: str, known: np.ndarray, kind: str) -> np.ndarray:
    """The ids that the entries have under `key` as indices into the `known` ones."""
    ids = entries.integers(key)
    indices = _indices(ids, known)
    unknown = np.flatnonzero(indices < 0)
    if unknown.size:
        entry = f"{entries.name(unknown[0])}: {key}={ids[unknown[0]]}"
        raise UserError(f"{entries.path}: {entry} is not among the file's {kind}")
    return indices


def box_notes(annotations: Annotations) -> dict[str, int]:
    """How many boxes cannot be learnt as they are, of the images whose size is known."""
    images, rows = annotations.rows()
    known = annotations.sizes[images].all(1)
    objects, sizes = annotations.all_objects[rows[known]], annotations.sizes[images[known]]
    first, length = objects["bbox"][:, :2], objects["bbox"][:, 2:]
    flat, seen = (length <= 0).any(1), inside(objects, sizes)
    beyond = ((first < -0.5) | (first + length > sizes[:, ::-1] + 0.5)).any(1)  # less is rounding, which COCO has too
    notes = {
        "boxes without area, not learnt": int(flat.sum()),
        "boxes outside their image, not learnt": int((~flat & ~seen).sum()),
        "boxes partly outside their image, clipped to learn": int((seen & beyond).sum()),
        **_doubtful(first, length, sizes[:, ::-1]),
    }
    return {name: count for name, count in notes.items() if count}


def _doubtful(first: np.ndarray, length: np.ndarray, limits: np.ndarray) -> dict[str, int]:
    """What boxes (K, 2), (K, 2) may be instead of x, y, width, height in pixels. limits: (K, 2), width and height."""
    last, count = first + length, len(first)
    small = int(((length > 0) & (length < 1)).any(1).sum())
    if count and small and (first >= 0).all() and (np.maximum(last, length) <= 1.001).all():
        return {"boxes all within 0..1: are they parts of the image's sides? Pixels are expected": count}
    # every second corner is right of and below the first and inside, and as widths many would leave their images
    corners = count > 1 and (length > first).all() and (length <= limits + 0.5).all() and (first > 0).any()
    if corners and (last > limits + 0.5).any(1).mean() > 0.5:
        return {"boxes look like x1, y1, x2, y2; x, y, width, height are expected": count}
    return {"boxes of less than a pixel": small}


def _indices(ids: np.ndarray, known: np.ndarray) -> np.ndarray:
    """known: rising. -1 for ids that are not in it."""
    index = np.searchsorted(known, ids).clip(max=len(known) - 1)
    return np.where(known[index] == ids, index, -1)


class Entries:
    """One list of a JSON file, read a key at a time; what does not fit is a UserError that names the entry by `kind`,
    as "annotation", and its id. A key whose value is null, "" or [] counts as missing. A whole number may be written as
    text, "139".
    """

    def __init__(self, path: Path, kind: str, entries: list[Any]) -> None:
        self.path, self.kind, self.entries, self.numbers_as_text = path, kind, entries, 0

    def numbers(self, key: str, shape: tuple[int, ...] = (), default: Any = None) -> np.ndarray:
        """(len, *shape) float64, all finite. default: where the key is missing; None: every entry must have it."""
        try:  # a well-formed file is read at once
            values = np.array([e[key] if default is None else e.get(key, default) for e in self.entries])
        except BAD_NUMBERS:
            values = np.array(None)
        if not _fits(values, (len(self.entries), *shape)):
            values = np.array([self._number(row, key, shape, default) for row in range(len(self.entries))])
        return values.astype(np.float64).reshape(len(self.entries), *shape)

    def integers(self, key: str, default: int | None = None, least: int = -EXACT) -> np.ndarray:
        """(len,) int64. A whole number may be written with a decimal point (1.0)."""
        values = self.numbers(key, (), default)
        wrong = (values != np.floor(values)) | (values < least) | (values > EXACT)
        if wrong.any():
            expected = "a whole number" if least == -EXACT else f"a whole number of {least} or more"
            row = int(wrong.argmax())
            raise UserError(f"{self.path}: {self.name(row)}: {key}={self.entries[row][key]}: give {expected}")
        return values.astype(np.int64)

    def texts(self, key: str) -> list[str]:
        """The key's strings, none of them empty."""
        values = [self._value(row, key, None) for row in range(len(self.entries))]
        for row, value in enumerate(values):
            if not isinstance(value, str):
                raise UserError(f"{self.path}: {self.name(row)}: {key}={value!r}: give a text")
        return values

    def name(self, row: int) -> str:
        """What a person finds the entry by: its id, or its number in the file."""
        entry = self.entries[row]
        if isinstance(entry, dict) and "id" in entry:
            return f"{self.kind} {entry['id']}"
        return f"{self.kind} number {row + 1} of the file"

    def _value(self, row: int, key: str, default: Any) -> Any:
        entry = self.entries[row]
        if not isinstance(entry, dict):
            raise UserError(f"{self.path}: {self.name(row)} is no JSON object, but {str(entry)[:40]!r}")
        value = entry.get(key)
        if value is not None and value != "" and value != []:
            return value
        if default is None:
            raise UserError(f"{self.path}: {self.name(row)} has no {key}; COCO's format asks for one")
        return default

    def _number(self, row: int, key: str, shape: tuple[int, ...], default: Any) -> np.ndarray:
        value = self._value(row, key, default)
        if not shape and isinstance(value, str) and value.isdecimal():
            self.numbers_as_text += 1
            value = int(value)
        try:
            number = np.array(value)
        except BAD_NUMBERS:
            number = np.array(None)
        if not _fits(number, shape):
            shown = repr(value) if len(repr(value)) < 60 else f"{repr(value)[:56]} ..."
            expected = f"{shape[0]} finite numbers" if shape else "a finite number"
            if type(value) is int and not shape:
                expected = "a whole number of at most 2^53, which is what all programs read alike"
            raise UserError(f"{self.path}: {self.name(row)}: {key}={shown}: give {expected}")
        return number.astype(np.float64)


def _fits(values: np.ndarray, shape: tuple[int, ...]) -> bool:
    return values.dtype.kind in "biuf" and values.shape == shape and bool(np.isfinite(values).all())
