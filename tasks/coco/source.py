"""COCO 2017's folders or archives, and any own data set with annotations in COCO's format."""

from __future__ import annotations

import functools
import os
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import numpy as np
from torch import Tensor

from tasks.coco.annotations import Annotations, box_notes, read
from tasks.common import ImageFiles, data_root, existing
from tdaf.errors import UnreadableSample, UserError
from tdaf.media import archive
from tdaf.media.files import read_skip_list
from tdaf.media.image import Colour, checked_background, image_size, read_image

ENCODED = re.compile("%[0-9A-Fa-f]{2}")
# of the bins of boxes by size; COCO's small end at 32, its medium ones at 96
EDGES = (8, 16, 32, 64, 96, 128, 256, 512)


class CocoFiles:
    """Two annotation files and two image folders below `root`; the defaults are the layout of COCO 2017.

    Each of them may be in an archive (`tdaf.media.archive.locate`): in COCO's own train2017.zip, val2017.zip and
    annotations_trainval2017.zip, or in tar or zip files called like a folder.

    Only the files of the split that is asked for are read; images are looked at only when they are read. The
    categories are those of the validation file, and the training file must have the same ones.

    Args:
        root: folder of everything else.
        train_annotations, train_images, val_annotations, val_images: files and folders, relative to `root`.
        skip_list: a text file with one path a line, relative to `root` (train2017/000000000009.jpg); these images are
            left out and counted.
        exif, background: see `read_image`. By default images are turned as their EXIF tag says, since tools show them
            so to whoever annotates. Sizes in the annotations must fit.
        max_bad: above 0, an archive that is cut off is used as far as it goes.

    Raises:
        UserError: something is not there.
    """

    with_keypoints = False
    usual = "annotations/instances_{}2017.json"

    def __init__(
        self,
        root: str | None,
        train_annotations: str | None = None,
        train_images: str = "train2017",
        val_annotations: str | None = None,
        val_images: str = "val2017",
        skip_list: str | None = None,
        exif: bool = True,
        background: Colour | None = None,
        max_bad: int = 0,
    ) -> None:
        self.max_bad = max_bad
        self.background = checked_background(background)
        self.reading = {"exif": exif, "background": self.background}
        given = {"train": train_annotations, "val": val_annotations}
        self.annotations = {split: path or self.usual.format(split) for split, path in given.items()}
        self.images = {"train": train_images, "val": val_images}
        names = ", ".join(f"{self.annotations[split]}, {self.images[split]}/" for split in given)
        self.layout = f"expected {names} in it (settings of data), also in archives; without data, try recipe=demo"
        self.root = data_root(root, "COCO's folder", self.layout)
        self._order: tuple[tuple[str, ...], ...] = ()  # of categories and key points, where it is not the file's
        self._check_there("val")
        self.skip_list = read_skip_list(skip_list, tuple(f"{folder}/" for folder in self.images.values()))

    @functools.cached_property
    def classes(self) -> list[str]:
        """Names of the categories, in the order of their ids."""
        return self._read("val").classes

    @property
    def ids(self) -> list[int]:
        """Of the categories in the annotation file, in the order of `classes`."""
        return [number for number, _ in self._read("val").categories]

    def reorder(self, classes: Sequence[str]) -> None:
        """Numbers the classes in this order of their names, a checkpoint's."""
        self.classes = list(classes)
        self._order = (tuple(classes), ())

    def split(self, name: str) -> CocoSplit:
        """The split "train" or "val"."""
        place = self._check_there(name)
        annotations = self._read(name)
        if name == "train":
            self._check_same(annotations, self._read("val"))
        archive.check_whole(place, self.max_bad)
        return CocoSplit(self.root, self.images[name], annotations, self.skip_list, **self.reading, place=place)

    def _read(self, name: str) -> Annotations:
        annotations = read(Path(archive.locate(self.root, self.annotations[name])), self.with_keypoints)
        return _reordered(annotations, *self._order) if self._order else annotations

    def _check_there(self, name: str) -> str:
        """Where the images lie."""
        file, folder = self.annotations[name], self.images[name]
        existing(self.root, archive.locate(self.root, file), file, self.layout, folder=False)
        return existing(self.root, archive.locate(self.root, folder), folder, self.layout)

    def _check_same(self, train: Annotations, val: Annotations) -> None:
        for name, own, other in (("train", train, val), ("val", val, train)):
            for number, text in sorted(set(own.categories) - set(other.categories)):
                both = f"{self.annotations['train']} and {self.annotations['val']} in {self.root}"
                raise UserError(f"{both} must have the same categories; only in the {name} file: {number} {text}")
        if train.keypoint_names != val.keypoint_names:
            raise UserError(f"the annotation files in {self.root} must have the same key points, in the same order")


class CocoSplit(ImageFiles):
    """The images of one split in the order of their ids.

    Args:
        root, folder: of the data set, and of the images below it.
        annotations: of the split.
        skip: paths below the root of images to leave out.
        exif, background: see `CocoFiles`.
        place: where the folder lies, if not there.

    Attributes:
        annotations, everything: without the images left out, so that image i is image i of the annotations; with them.

    Raises:
        UserError: no image is left, or the file of one lies outside the data set.
    """

    def __init__(
        self,
        root: Path,
        folder: str,
        annotations: Annotations,
        skip: frozenset[str] = frozenset(),
        exif: bool = True,
        background: Colour | None = None,
        place: str | None = None,
    ) -> None:
        self.folder, self.images = folder, place or os.path.join(root, folder)
        self.reading = {"exif": exif, "background": background}
        annotations = _renamed(annotations, folder, self.images)
        self.annotations = self.everything = _located(annotations, str(root), self.images, exif)
        if any(line.startswith(f"{folder}/") for line in skip):
            remaining = [i for i, name in enumerate(annotations.file_names) if f"{folder}/{name}" not in skip]
            self.annotations = self.everything.only(np.array(remaining, np.int64))
        self.skipped = len(annotations) - len(self.annotations)
        if not len(self.annotations):
            raise UserError(f"skip_list leaves no image in {self.images}")

    def __len__(self) -> int:
        return len(self.annotations)

    def name(self, index: int) -> str:
        """The path below the root, as a skip list has it."""
        return f"{self.folder}/{self.annotations.file_names[index]}"

    def read(self, index: int) -> Tensor:
        """uint8 RGB (3, H, W). Raises UnreadableSample, also where the image is not of the annotated size."""
        path, exif = self.path(index), self.reading["exif"]
        image = read_image(path, **self.reading)
        annotated, size = tuple(map(int, self.annotations.sizes[index])), tuple(image.shape[1:])
        if size != annotated:
            sizes = f"the image has {size[1]} x {size[0]} pixels, its annotation says {annotated[1]} x {annotated[0]}"
            fits = image_size(path, not exif) == annotated
            remedy = f"; it fits with data.exif={str(not exif).lower()}, which is for all images" if fits else ""
            raise UnreadableSample(f"{sizes}{remedy} ({path})")
        return image

    def path(self, index: int) -> str:
        return os.path.join(self.images, self.annotations.file_names[index])


def box_sizes(objects: np.ndarray) -> dict[str, int]:
    """How many of (K,) objects have which size, the square root of width times height, in pixels of the image."""
    sizes = np.sqrt(objects["bbox"][:, 2:].clip(0).prod(1))
    counts = np.histogram(sizes, [0, *EDGES, np.inf])[0].tolist()
    names = [f"below {EDGES[0]}", *(f"{a} to {b}" for a, b in pairwise(EDGES)), f"{EDGES[-1]} and more"]
    return dict(zip(names, counts, strict=True))


def to_coco(
    pictures: list[tuple[Path, int | None, list[Any]]], entries: list[list[dict[str, Any]]], categories: list[dict]
) -> dict[str, Any]:
    """What predict writes, in COCO's format. entries: of each picture its annotations, without ids; an image of a video
    has "frame" too."""
    images, annotations = [], []
    for number, ((path, frame, _), own) in enumerate(zip(pictures, entries, strict=True), 1):
        images.append({"id": number, "file_name": str(path), **({} if frame is None else {"frame": frame})})
        annotations += [{"id": len(annotations) + k, "image_id": number, **entry} for k, entry in enumerate(own, 1)]
    return {"images": images, "annotations": annotations, "categories": categories}


@functools.lru_cache(maxsize=4)
def _reordered(annotations: Annotations, *order: tuple[str, ...]) -> Annotations:
    return annotations.reordered(*order)


@functools.lru_cache(maxsize=4)
def _renamed(annotations: Annotations, folder: str, path: str) -> Annotations:
    """With the file names that the images have: where a name begins with their folder or is percent-encoded, and is not
    there but is so without. folder: of the images, below the root; path: of the same."""
    prefixes = {f"{folder.strip('/')}/", f"{os.path.basename(folder.strip('/'))}/"}
    names, notes = annotations.file_names.tolist(), Counter()
    for index, name in enumerate(names):
        prefix = next(filter(name.startswith, prefixes), "")
        readings = {
            "file names with the images' folder in front, read without it": name.removeprefix(prefix),
            "file names with %20 and the like, decoded": unquote(name) if ENCODED.search(name) else name,
        }
        for note, reading in readings.items():
            there = reading != name and not archive.exists(os.path.join(path, name))
            if there and archive.exists(os.path.join(path, reading)):
                names[index] = reading
                notes[note] += 1
                break
    if not notes:
        return annotations
    return replace(annotations, file_names=np.array(names), notes={**notes, **annotations.notes})


@functools.lru_cache(maxsize=4)
def _located(annotations: Annotations, root: str, folder: str, exif: bool) -> Annotations:
    """The annotations with the sizes that their file does not say, from the headers of the images. An image that cannot
    be opened keeps the size 0: whoever reads it later is told why.

    Raises UserError for a file name that leads out of the data set: whoever wrote the annotations must not choose what
    is read from the rest of the disk.
    """
    allowed = tuple(os.path.join(os.path.abspath(path), "") for path in (root, folder))
    paths = [os.path.abspath(os.path.join(folder, name)) for name in annotations.file_names]
    for index, path in enumerate(paths):
        if not path.startswith(allowed):
            entry = f"image {annotations.image_ids[index]}: file_name={annotations.file_names[index]}"
            raise UserError(f"{annotations.path}: {entry} lies outside root={root}")
    missing = np.flatnonzero((annotations.sizes == 0).any(1))
    if not missing.size:
        return annotations
    sizes = annotations.sizes.copy()
    for index in missing:
        try:
            sizes[index] = image_size(paths[index], exif)
        except UnreadableSample:
            continue
    sized = replace(annotations, sizes=sizes)
    taken = {"images without width and height, the file's taken": len(missing)}
    return replace(sized, notes={**taken, **annotations.notes, **box_notes(sized)})
