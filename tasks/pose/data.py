"""One sample a person: where persons come from, and how they are cut out, their key points moved along."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from tasks import common
from tasks.coco.annotations import Annotations, Entries, read_json
from tasks.coco.source import CocoSplit
from tasks.pose.augment import Augmentation, affine, crop, framed, inverse, transform
from tasks.pose.simplepose import mirrored
from tasks.pose.source import flip_pairs, legs, person
from tdaf.errors import UserError
from tdaf.task import Dataset, Media

FORMAT = "COCO detection results, [{image_id, category_id, bbox: [x, y, width, height], score}, ...]"
WRITTEN = f"expected {FORMAT}; scripts/detect_people.py writes such a file"


# A person: the index of its image in the split; x1, y1, x2, y2, where whole numbers are the centres of pixels; and its
# row in `Annotations.all_objects`, NONE for a detector's box.
NONE = -1
PERSON = np.dtype([("image", np.int32), ("box", np.float32, (4,)), ("score", np.float32), ("row", np.int64)])


class People(NamedTuple):
    """Persons of one source."""

    persons: np.ndarray  # (K,) of `PERSON`, those of one image together
    skipped: int  # boxes in images that a skip list leaves out
    notes: dict[str, int]  # what was left out or handled, and how often


def _persons(images: np.ndarray, boxes: np.ndarray, scores: Any, rows: Any) -> np.ndarray:
    persons = np.empty(len(images), PERSON)
    persons["image"], persons["box"], persons["score"], persons["row"] = images, boxes, scores, rows
    return persons


def annotated(split: CocoSplit) -> People:
    """The persons with at least one labelled key point, no crowd, with a box of some length inside the image, score 1.

    A box reaches from its first to its last pixel's centre and is clipped to the image, as in
    microsoft/human-pose-estimation.pytorch, lib/dataset/coco.py (where a box that begins before the image is moved into
    it; here it is cut).
    """
    persons, notes = _annotated(split.annotations)
    skipped = len(_annotated(split.everything)[0]) - len(persons) if split.skipped else 0
    return People(persons, skipped, notes)


def _annotated(annotations: Annotations) -> tuple[np.ndarray, dict[str, int]]:
    images, rows = annotations.rows()
    mine = annotations.all_objects["category"][rows] == person(annotations)[0]
    images, rows = images[mine], rows[mine]
    objects = annotations.all_objects[rows]
    first, length = objects["bbox"][:, :2], objects["bbox"][:, 2:]
    last = first + np.maximum(length - 1, 0)
    low, high = np.maximum(first, 0), np.minimum(last, annotations.sizes[images][:, ::-1] - 1)
    boxed = (high >= low).all(1) & (high > low).any(1) & (length > 0).all(1)
    areal = objects["area"] > 0
    labelled, crowd = (objects["keypoints"][..., 2] > 0).any(1), objects["iscrowd"]
    kept = ~crowd & labelled & boxed & areal
    notes = {
        "crowds, left out": crowd,
        "persons without a labelled key point, left out": ~crowd & ~labelled,
        "persons without a box inside their image, left out": ~crowd & labelled & ~boxed,
        "persons whose area is 0, left out": ~crowd & labelled & boxed & ~areal,
    }
    return _persons(images[kept], np.concatenate([low, high], 1)[kept], 1.0, rows[kept]), _counted(notes)


def detected(path: Path, split: CocoSplit, least: float) -> People:
    """The persons that a detector found in these images, as it gives them.

    Boxes of other categories, without area, and in images that the annotations do not have are left out and counted.

    Args:
        path: a file of COCO detection results.
        split: the images.
        least: boxes with a lower score are left out.

    Raises:
        UserError: a file that is missing, cut off or of another kind, an entry that lacks something or holds what is
            no finite number, and a file of which nothing is left.
    """
    content = read_json(path, WRITTEN)
    if not isinstance(content, list):
        what = f"an object with {', '.join(map(str, content)) or 'nothing'}" if isinstance(content, dict) else "no list"
        raise UserError(f"{path} holds {what:.80}; {WRITTEN}")
    entries, number = Entries(path, "box", content), person(split.annotations)[1]
    image_ids, mine = entries.integers("image_id"), entries.integers("category_id") == number
    boxes, scores = entries.numbers("bbox", (4,)), entries.numbers("score")
    known = mine & (split.everything.indices(image_ids) >= 0)
    areal = known & (boxes[:, 2:] > 0).all(1)
    usable = areal & (scores >= least)
    images = split.annotations.indices(image_ids)
    order = np.flatnonzero(usable & (images >= 0))
    order = order[np.argsort(images[order], kind="stable")]
    notes = {
        f"boxes of other categories than {number} (person), left out": ~mine,
        "boxes in images that the annotations do not have, left out": mine & ~known,
        "boxes without area, left out": known & ~areal,
        f"boxes with a score below {least:g}, left out": areal & ~usable,
    }
    counts = {f"{name} ({path.name})": count for name, count in _counted(notes).items()}
    if not len(order):
        why = "; ".join(f"{count} {name}" for name, count in counts.items()) or "it is empty"
        raise UserError(f"boxes: {path} has no box of a person in these images: {why}")
    boxes[:, 2:] += boxes[:, :2]
    persons = _persons(images[order], boxes[order], scores[order], NONE)
    return People(persons, int(usable.sum()) - len(order), counts)


def _counted(notes: dict[str, np.ndarray]) -> dict[str, int]:
    return {name: int(which.sum()) for name, which in notes.items() if which.any()}


class Persons(Dataset):
    """The boxes of one or more sources, one source after the other. A sample is a dict of

    "input": uint8 RGB (3, H, W), or (2, 3, H, W) with flip_test, the second its mirror image.
    "joints": (J, 3) float32, x y in pixels of the input and 1 where labelled, else 0 (a point outside the input stays
    where it is: its heat map may still show the rim of it, see `simplepose.encode`). Zeros for a detector's box.
    "inverse": (2, 3) float64, from input to image; "box": (4,) float32, x1 y1 x2 y2; "box_score".
    "image_id"; "column": the source's index.

    Args:
        split: images and annotations.
        sources: of boxes.
        size: height and width of the input.
        names: of the key points.
        augment: None for evaluation.
        flip_test: whether inputs are pairs.
        pairs: key points that change places in a mirror image; None: what the names say.
    """

    def __init__(
        self,
        split: CocoSplit,
        sources: Sequence[People],
        size: tuple[int, int],
        names: Sequence[str],
        augment: Augmentation | None = None,
        flip_test: bool = False,
        pairs: Sequence[tuple[int, int]] | None = None,
    ) -> None:
        self.split, self.size, self.augment, self.flip_test = split, size, augment, flip_test
        self.files = split
        self.persons = np.concatenate([source.persons for source in sources])
        self.columns = np.repeat(np.arange(len(sources)), [len(source.persons) for source in sources])
        self.skipped = sum(source.skipped for source in sources)
        self.notes = dict(split.annotations.notes)
        for source in sources:
            self.notes |= source.notes
        pairs = flip_pairs(names) if pairs is None else pairs
        self.legs, self.order = legs(names), mirrored(len(names), pairs)
        if augment is not None and augment.flip:
            named = ", ".join(f"{names[left]} - {names[right]}" for left, right in pairs) or "none"
            self.notes[f"pairs of key points change places in mirror images: {named}"] = len(pairs)
        self._latest: tuple[int, Tensor] | None = None

    def __len__(self) -> int:
        return len(self.persons)

    def __getitem__(self, index: int) -> dict[str, Any]:
        image, box, score, row = self.persons[index]
        pixels, annotations = self._pixels(int(image)), self.split.annotations
        joints = np.zeros((len(self.order), 3))
        if row != NONE:
            joints[:] = annotations.all_objects["keypoints"][row]
            joints[:, 2] = joints[:, 2] > 0
        frame = framed(box, self.size) if self.augment is None else self.augment(box, joints, self.legs, self.size)
        matrix = affine(frame[0], frame[1], self.size, *frame[2:])
        joints[:, :2] = transform(joints[:, :2], matrix)
        joints *= joints[:, 2:] > 0  # what is not labelled is all zeros
        if len(frame) > 2 and frame[3]:
            joints = joints[self.order]
        return {
            **_sample(pixels, box, matrix, self.size, self.flip_test),
            "joints": torch.from_numpy(joints.astype(np.float32)),
            "box_score": float(score),
            "image_id": int(annotations.image_ids[image]),
            "column": int(self.columns[index]),
        }

    def name(self, index: int) -> str:
        """The image's path below the root, as a skip list has it."""
        return self.split.name(int(self.persons["image"][index]))

    def _pixels(self, image: int) -> Tensor:
        """Persons of one image follow each other in evaluation: it is decoded once for all of them."""
        if self._latest is None or self._latest[0] != image:
            self._latest = image, self.split.read(image)
        return self._latest[1]


def _sample(
    image: Tensor, box: np.ndarray, matrix: np.ndarray, size: tuple[int, int], flip_test: bool
) -> dict[str, Any]:
    pixels = crop(image, matrix, size)
    pixels = torch.stack([pixels, pixels.flip(-1)]) if flip_test else pixels
    corners = torch.as_tensor(box, dtype=torch.float32)
    return {"input": pixels, "inverse": torch.from_numpy(inverse(matrix)), "box": corners}


Box = tuple[float, float, float, float]  # x1, y1, x2, y2


class PredictDataset(common.PredictDataset):
    """The persons in pictures that a user gives to predict. Samples have "input", "inverse", "box" and "box_score" as
    those of `Persons`. people: (picture, box or None for all of it, score)."""

    def __init__(
        self, pictures: Media, people: list[tuple[int, Box | None, float]], size: tuple[int, int], flip_test: bool
    ) -> None:
        self.pictures, self.people, self.size, self.flip_test = pictures, people, size, flip_test

    def __len__(self) -> int:
        return len(self.people)

    def __getitem__(self, index: int) -> dict[str, Any]:
        picture, box, score = self.people[index]
        image = self.pictures.read(picture)
        corners = np.array(box or (0.0, 0.0, float(image.shape[2]), float(image.shape[1])))
        matrix = affine(*framed(corners, self.size), self.size)
        return {**_sample(image, corners, matrix, self.size, self.flip_test), "box_score": score}

    def shown(self, index: int) -> list[int]:
        return [self.people[index][0]]


def people_in(
    pictures: Media, boxes: str | dict[str, Any] | None, category: str, least: float
) -> list[tuple[int, Box | None, float]]:
    """What `PredictDataset` takes.

    Args:
        boxes: None or "image", the whole picture is one person; or the path of a JSON file: what predict writes with a
            detection checkpoint, {images: [{id, file_name, frame}], annotations: [{image_id, category_id, bbox,
            score}], categories}, or COCO's results, a list, whose image ids are the numbers that files are named by, as
            COCO's are. Files are known by their paths, else by their names. Or a
            file's content, from a detector that was asked just now: it may have found nobody.
        category: the name of the persons'.
        least: boxes with a lower score are left out.

    Raises:
        UserError: a file that cannot be used, or holds no such box of these pictures.
    """
    if boxes is None or boxes == "image":
        return [(picture, None, 1.0) for picture in range(len(pictures))]
    asked = isinstance(boxes, dict)
    path = Path("detector" if asked else boxes).expanduser()
    content = boxes if asked else read_json(path, WRITTEN)
    number, lists = 1, ("images", "annotations", "categories")
    if isinstance(content, list):
        entries, pictures_of = Entries(path, "box", content), _pictures_by_number(pictures)
    elif isinstance(content, dict) and all(isinstance(content.get(key), list) for key in lists):
        entries, pictures_of = Entries(path, "box", content["annotations"]), _pictures_by_file(path, content, pictures)
        categories = Entries(path, "category", content["categories"])
        known = dict(zip(categories.texts("name"), categories.integers("id").tolist(), strict=True))
        if category not in known:
            raise UserError(
                f"boxes={path}: no category is called {category}; give person=NAME, one of {', '.join(known)}"
            )
        number = known[category]
    else:
        raise UserError(f"boxes={path}: expected what predict writes with a detection checkpoint, or {FORMAT}")
    image_ids, corners = entries.integers("image_id").tolist(), entries.numbers("bbox", (4,))
    numbers, scores = entries.integers("category_id").tolist(), entries.numbers("score", default=1.0).tolist()
    corners[:, 2:] += corners[:, :2]
    people = [
        (picture, (x1, y1, x2, y2), score)
        for image, kind, (x1, y1, x2, y2), score in zip(image_ids, numbers, corners.tolist(), scores, strict=True)
        if kind == number and score >= least and x2 > x1 and y2 > y1
        for picture in pictures_of.get(image, [])
    ]
    if not people and not asked:
        why = f"of the {len(image_ids)} in it, with category {category} and score {least:g} (box_score) or above"
        raise UserError(f"boxes={boxes}: it has no box of these pictures, {why}")
    return sorted(people, key=lambda entry: entry[0])


def _pictures_by_number(pictures: Media) -> dict[int, list[int]]:
    """Those that are named by a number, COCO_val2014_000000000139.jpg and 000000000139.jpg alike."""
    stems = {picture: pictures.file(picture).stem.rpartition("_")[2] for picture in range(len(pictures))}
    images = {k: stem for k, stem in stems.items() if stem.isdecimal() and pictures.frame(k) is None}
    return {int(stem): [picture] for picture, stem in images.items()}


def _pictures_by_file(path: Path, content: dict[str, list], pictures: Media) -> dict[int, list[int]]:
    """Image id to pictures."""
    images = Entries(path, "image", content["images"])
    by_path: dict[tuple[Path, str], int] = {}
    by_name: dict[tuple[str, str], int | None] = {}
    for name, number, entry in zip(
        images.texts("file_name"), images.integers("id").tolist(), images.entries, strict=True
    ):
        file, frame = Path(name), str(entry.get("frame"))
        by_path[file.absolute(), frame] = number
        key = (file.name, frame)
        by_name[key] = None if key in by_name else number  # two files of one name are told apart by their paths only
    files = [(pictures.file(picture), str(pictures.frame(picture))) for picture in range(len(pictures))]
    often = Counter((file.name, frame) for file, frame in files)
    by_image: dict[int, list[int]] = {}
    for picture, (file, frame) in enumerate(files):
        named = by_name.get((file.name, frame)) if often[file.name, frame] == 1 else None
        number = by_path.get((file.absolute(), frame), named)
        if number is not None:
            by_image.setdefault(number, []).append(picture)
    return by_image
