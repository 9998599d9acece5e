"""COCO 2017's folders, and any own data set with annotations in COCO's format."""

from __future__ import annotations

import os
from functools import cached_property
from pathlib import Path

import numpy as np
from torch import Tensor

from tasks.coco.annotations import Annotations, read
from tdaf.errors import UnreadableSample, UserError
from tdaf.media.image import read_image
from tdaf.media.skip_list import read_skip_list


class CocoFiles:
    """Two annotation files and two image folders below `root`; the defaults are the layout of COCO 2017.

    For key points: train_annotations=annotations/person_keypoints_train2017.json, and so on. skip_list: a text file
    with one path a line, relative to `root` (train2017/000000000009.jpg); these images are left out and counted.
    Only the files of the split that is asked for are read. The categories are those of the validation file, and the
    training file must have the same ones.
    Raises UserError when something is not there; images themselves are looked at only when they are read.
    """

    def __init__(
        self,
        root: str | None,
        train_annotations: str = "annotations/instances_train2017.json",
        train_images: str = "train2017",
        val_annotations: str = "annotations/instances_val2017.json",
        val_images: str = "val2017",
        skip_list: str | None = None,
    ) -> None:
        self.annotations = {"train": train_annotations, "val": val_annotations}
        self.images = {"train": train_images, "val": val_images}
        names = f"{train_annotations}, {train_images}/, {val_annotations}, {val_images}/"
        self.layout = f"expected {names} in it (settings of data); without data, try recipe=demo"
        if not root:
            raise UserError(f"data.root is not set; give COCO's folder: {self.layout}")
        self.root = Path(root).expanduser()
        if not self.root.is_dir():
            raise UserError(f"data.root={root}: no such folder ({self.root.absolute()}); {self.layout}")
        self._find("val")
        self.skip = read_skip_list(skip_list, tuple(f"{folder}/" for folder in self.images.values()))

    @cached_property
    def classes(self) -> list[str]:
        """Names of the categories, in the order of their ids."""
        return read(self.root / self.annotations["val"]).classes

    def split(self, name: str) -> CocoSplit:
        """The split "train" or "val"."""
        self._find(name)
        found = read(self.root / self.annotations[name])
        if name == "train":
            self._check_same(found, read(self.root / self.annotations["val"]))
        return CocoSplit(self.root, self.images[name], found, self.skip)

    def _find(self, name: str) -> None:
        if not (self.root / self.annotations[name]).is_file():
            raise UserError(f"data.root={self.root}: there is no {self.annotations[name]} in it; {self.layout}")
        if not (self.root / self.images[name]).is_dir():
            raise UserError(f"data.root={self.root}: there is no folder {self.images[name]} in it; {self.layout}")

    def _check_same(self, train: Annotations, val: Annotations) -> None:
        different = sorted(set(train.categories) ^ set(val.categories))
        if different:
            number, text = different[0]
            both = f"{self.annotations['train']} and {self.annotations['val']}"
            where = "train" if (number, text) in train.categories else "val"
            raise UserError(
                f"{both} in {self.root} must have the same categories; only in the {where} file: {number} {text}"
                + (f" and {len(different) - 1} more differ" if len(different) > 1 else "")
            )
        if train.keypoint_names != val.keypoint_names:
            raise UserError(f"the annotation files in {self.root} must have the same key points, in the same order")


class CocoSplit:
    """The images of one split in the order of their ids. skipped: images left out by a skip list; `annotations` does
    not have them either, so that image i is image i of the annotations."""

    def __init__(self, root: Path, folder: str, annotations: Annotations, skip: frozenset[str] = frozenset()) -> None:
        self.folder, self.path, self.annotations = folder, os.path.join(root, folder), annotations
        if any(line.startswith(f"{folder}/") for line in skip):
            kept = [i for i in range(len(annotations)) if f"{folder}/{annotations.file(i)}" not in skip]
            self.annotations = annotations.only(np.array(kept, np.int64))
        self.skipped = len(annotations) - len(self.annotations)
        if not len(self.annotations):
            raise UserError(f"data.skip_list leaves no image in {self.path}")

    def __len__(self) -> int:
        return len(self.annotations)

    def name(self, index: int) -> str:
        """The path below the root, as a skip list has it."""
        return f"{self.folder}/{self.annotations.file(index)}"

    def read(self, index: int) -> Tensor:
        """uint8 RGB (3, H, W). Raises UnreadableSample, also where the image is not of the annotated size."""
        path = os.path.join(self.path, self.annotations.file(index))
        image = read_image(path)
        said, found = tuple(map(int, self.annotations.sizes[index])), tuple(image.shape[1:])
        if found != said:
            sizes = f"the image has {found[1]} x {found[0]} pixels, its annotation says {said[1]} x {said[0]}"
            turned = "; was it turned by its EXIF tag?" if found == said[::-1] else ""
            raise UnreadableSample(f"{sizes}{turned} ({path})")
        return image
