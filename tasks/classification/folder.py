"""ImageNet, and any own folder of images in the same layout, unpacked or in archives."""

from __future__ import annotations

import os
import re
import zlib
from bisect import bisect_right
from collections import Counter
from collections.abc import Sequence
from itertools import accumulate, chain
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from tasks.classification import ilsvrc
from tasks.common import ImageFiles, Names, check_num_classes, data_root, existing, some
from tdaf.errors import UnreadableSample, UserError
from tdaf.media import archive
from tdaf.media.files import IMAGES, files_below, folders_in, left_out, read_skip_list
from tdaf.media.image import QUALITY, BoxOf, Colour, bounded, checked_background, jpeg, read_box, read_image
from tdaf.ranges import within

LAYOUT = (
    "expected train/<class>/*.JPEG and val/<class>/*.JPEG (also .jpg, .png, ...), each also as a .tar or .zip, or "
    "ImageNet's archives as delivered; without data, try recipe=demo"
)


class ImageFolder:
    """`root`/train/<class>/ and `root`/val/<class>/ with image files, also in sub-folders of a class.

    Either may be in an archive instead, train.tar or train.zip, or as ImageNet's archives are delivered
    (tasks/classification/ilsvrc.py); a sample there has the name and the place that it would have unpacked.

    Classes are numbered in the order of their folders' names, and images sorted, as torchvision's ImageFolder does, so
    published weights for ImageNet fit. What an operating system or a notebook leaves between them (names that begin
    with a dot, @eaDir, __MACOSX) is neither a class nor an image.

    Args:
        root: the folder. Evaluation needs no train/ in it.
        num_classes: checked against the folders when given.
        skip_list: a text file with one path a line, relative to `root` (train/n01440764/n01440764_18.JPEG); these
            images are left out and counted.
        exif, background: see `read_image`.
        max_bad: above 0, an archive that is cut off is used as far as it goes.
        every: 10: of the sorted classes only the first, the eleventh and so on.
        cache: "ram": training's images are kept in this machine's memory once they are read (tdaf/media/cache.py).
        cache_side: pixels that the short side of what is kept has at most: larger images are made smaller (`bounded`),
            and so have other pixels from the first epoch on.
        decode: "gpu": training's images are decoded there (tasks/classification/encoded.py).

    Attributes:
        classes: names for people: from `root`/classes.txt ("<folder> <name>" a line) where there is one, for ImageNet's
            own 1000 classes from torchvision, else the folders' own.

    Raises:
        UserError: the folder cannot be used; files themselves are looked at only when they are read.
    """

    def __init__(
        self,
        root: str | None,
        num_classes: int | None = None,
        skip_list: str | None = None,
        exif: bool = False,
        background: Colour | None = None,
        max_bad: int = 0,
        every: int = 1,
        cache: str | None = None,
        cache_side: int = 480,
        decode: str = "cpu",
    ) -> None:
        self.background = checked_background(background)
        self.reading = {"exif": exif, "background": self.background}
        self.root = data_root(root, "the image folder", LAYOUT)
        within("[1, inf)", every=every, cache_side=cache_side)
        if cache not in (None, "ram"):
            raise UserError(f"cache={cache}: give ram or null")
        if decode not in ("cpu", "gpu") or (decode == "gpu" and exif):
            raise UserError(f"decode={decode}: give cpu, or gpu without exif=true, as a GPU's decoder turns no image")
        self.cache_side, self.decode = cache_side if cache else None, decode
        self.places = {split: ilsvrc.place(self.root, split) for split in ("train", "val")}
        for place in self.places.values():
            archive.check_whole(place, max_bad)
        self.labels: dict[str, str] = {}  # of flat validation images
        folders = self._class_folders("val")
        if archive.is_folder(self.places["train"]):
            _check_same(self.root, self._class_folders("train"), folders)
        self.folders = folders[::every]
        check_num_classes(num_classes, len(self.folders), self.root)
        self.classes = _names(self.root, folders)[::every]
        self.skip = read_skip_list(skip_list, ("train/", "val/"))

    def reorder(self, classes: Sequence[str]) -> None:
        """Numbers the classes in this order of their names, a checkpoint's."""
        self.folders = [self.folders[self.classes.index(name)] for name in classes]
        self.classes = list(classes)

    def split(self, name: str) -> FolderImages:
        """The images of "train" or "val"."""
        place = self._existing(name)
        labels = self.labels if name == "val" else {}
        side = self.cache_side if name == "train" else None
        return FolderImages(place, name, self.folders, self.skip, self.reading, labels, side)

    def _existing(self, split: str) -> str:
        return existing(self.root, self.places[split], split, LAYOUT)

    def _class_folders(self, split: str) -> list[str]:
        place = self._existing(split)
        folders = folders_in(place)
        if folders:
            return folders
        if not files_below(place, IMAGES, deep=False)[0]:
            raise UserError(f"{place} holds no class folders; {LAYOUT}")
        if split == "val":
            self.labels = ilsvrc.val_labels(self.root)
        if not self.labels:
            raise UserError(
                f"{place} holds images but no class folders, as ImageNet's {split}/ is delivered; put the devkit "
                f"({ilsvrc.DEVKITS[1]}) or Kaggle's {ilsvrc.SOLUTION} beside it, or sort it once with: "
                f"python scripts/prepare_imagenet.py root={self.root} devkit=PATH"
            )
        return sorted(set(self.labels.values()))


class FolderImages(ImageFiles):
    """One split of an `ImageFolder`, sorted by class and then by path."""

    def __init__(
        self,
        place: str,
        split: str,
        folders: list[str],
        skip: frozenset[str],
        reading: dict[str, Any],
        labels: dict[str, str],
        cache_side: int | None = None,
    ) -> None:
        """place: of the split. labels: of flat images, by their names without an ending, the class. cache_side: see
        `ImageFolder`; None: nothing is kept."""
        self.folder, self.split, self.folders, self.reading, self.flat = place, split, folders, reading, bool(labels)
        if labels:
            found = [files_below(place, IMAGES, deep=False)]
            files = _by_class(place, found[0][0], labels, folders)
        else:
            found = [files_below(os.path.join(place, folder), IMAGES) for folder in folders]
            files = [names for names, _ in found]
        self.notes = left_out(sum((others for _, others in found), Counter()), "images")
        empty = [folder for folder, inside in zip(folders, files, strict=True) if not inside]
        if empty:
            raise UserError(
                f"{len(empty)} class folder(s) in {self.folder} without an image ({', '.join(IMAGES)}): "
                f"{some(empty)}; fill or remove them; {LAYOUT}"
            )
        total = sum(map(len, files))
        if any(path.startswith(f"{split}/") for path in skip):
            files = [
                [file for file in inside if f"{split}/{folder}/{file}" not in skip]
                for folder, inside in zip(folders, files, strict=True)
            ]
        self.class_ends = list(accumulate(len(inside) for inside in files))
        self.skipped = total - len(self)
        if not len(self):
            raise UserError(f"the skip list leaves no image in {self.folder}")
        self.files = Names(list(chain(*files)))
        self.cache_side, self.cache = cache_side, None
        if cache_side is not None:
            from tdaf.media.cache import SharedCache

            names = zlib.crc32("".join(chain(*files)).encode(errors="surrogateescape"))
            key = (os.path.realpath(place), folders, self.class_ends, names, cache_side, QUALITY, reading)
            self.cache = SharedCache(key, len(self), self._bytes)

    def __len__(self) -> int:
        return self.class_ends[-1]

    def label(self, index: int) -> int:
        return bisect_right(self.class_ends, index)

    def name(self, index: int) -> str:
        """The path below the root, as a skip list has it."""
        return f"{self.split}/{self.folders[self.label(index)]}/{self.files[index]}"

    def read(self, index: int) -> tuple[Tensor, int]:
        """uint8 RGB (3, H, W) and the class. Raises UnreadableSample."""
        return read_image(self.path(index), **self.reading, data=self._kept(index)), self.label(index)

    def read_box(self, index: int, box: BoxOf) -> tuple[Tensor, int]:
        """As `read`, of the image only the pixels in a box; see tdaf/media/image.py."""
        return read_box(self.path(index), box, **self.reading, data=self._kept(index)), self.label(index)

    def encoded(self, index: int) -> tuple[np.ndarray, int, int, int]:
        """As a JPEG, uint8, its height and width, and the class. Raises UnreadableSample."""
        return *jpeg(self.path(index), self.reading["background"], self._kept(index)), self.label(index)

    def _kept(self, index: int) -> np.ndarray | None:
        """The content from the cache, into which it is put at first; None where there is no cache."""
        content = self.cache and self.cache.get(index)
        if self.cache and content is None:
            content = self._bounded(index)
            self.cache.put(index, content)
        return content

    def _bounded(self, index: int) -> np.ndarray:
        return bounded(self.path(index), self.cache_side, **self.reading)

    def _bytes(self, index: int) -> int:
        try:
            return self._bounded(index).size
        except UnreadableSample:
            return 0

    def path(self, index: int) -> str:
        """Where it lies."""
        below = self.files[index] if self.flat else self.name(index).removeprefix(f"{self.split}/")
        return f"{self.folder}/{below}"


def _by_class(place: str, images: list[str], labels: dict[str, str], folders: list[str]) -> list[list[str]]:
    """Flat images by their classes. Raises UserError where images and labels are not of each other."""
    files: dict[str, list[str]] = {folder: [] for folder in labels.values()}
    for name in images:
        label = labels.get(os.path.splitext(name)[0])
        if label is None:
            raise UserError(f"{place}: nothing says the class of {name}")
        files[label].append(name)
    if len(images) < len(labels):
        missing = f"{place} lacks {len(labels) - len(images)} of the {len(labels)} images whose classes are given"
        raise UserError(f"{missing}; bring it again")
    return [files[folder] for folder in folders]


def _check_same(root: Path, train: list[str], val: list[str]) -> None:
    only_train, only_val = sorted(set(train) - set(val)), sorted(set(val) - set(train))
    if only_train or only_val:
        sides = (("train", only_train), ("val", only_val))
        parts = "; ".join(f"only in {split}/: {some(names)}" for split, names in sides if names)
        raise UserError(f"train/ and val/ of {root} must have the same class folders; {parts}")


def _names(root: Path, folders: list[str]) -> list[str]:
    listed = root / "classes.txt"
    if listed.is_file():
        names, known = {}, set(folders)
        for line in listed.read_text(encoding="utf-8-sig", errors="replace").splitlines():
            words = line.split()
            # a folder's own name may have blanks: the longest that there is
            cuts = (cut for cut in range(len(words) - 1, 0, -1) if " ".join(words[:cut]) in known)
            cut = next(cuts, len(words))
            names[" ".join(words[:cut])] = " ".join(words[cut:])
        return [names.get(folder) or folder for folder in folders]
    if len(folders) == 1000 and all(re.fullmatch(r"n\d{8}", folder) for folder in folders):
        from torchvision.models import ResNet50_Weights

        return list(ResNet50_Weights.IMAGENET1K_V1.meta["categories"])
    return folders
