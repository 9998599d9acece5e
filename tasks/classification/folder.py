"""ImageNet, and any own folder of images in the same layout."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from itertools import chain
from pathlib import Path

import numpy as np
from torch import Tensor

from tdaf.errors import UserError
from tdaf.media.files import IMAGES, read_skip_list
from tdaf.media.image import read_image

LAYOUT = "expected train/<class>/*.JPEG and val/<class>/*.JPEG (also .jpg, .png, ...); without data, try recipe=demo"


class ImageFolder:
    """`root`/train/<class>/ and `root`/val/<class>/ with image files, also in sub-folders of a class.

    Classes are numbered in the order of their folders' names, and images sorted, as torchvision's ImageFolder does, so
    published weights for ImageNet fit. What an operating system or a notebook leaves between them (names that begin
    with a dot, @eaDir, __MACOSX) is neither a class nor an image.

    Args:
        root: the folder. Evaluation needs no train/ in it.
        num_classes: checked against the folders when given.
        skip_list: a text file with one path a line, relative to `root` (train/n01440764/n01440764_18.JPEG); these
            images are left out and counted.
        every: 10: of the sorted classes only the first, the eleventh and so on.

    Attributes:
        classes: names for people: from `root`/classes.txt ("<folder> <name>" a line) where there is one, for ImageNet's
            own 1000 classes from torchvision, else the folders' own.

    Raises:
        UserError: the folder cannot be used; files themselves are looked at only when they are read.
    """

    def __init__(
        self, root: str | None, num_classes: int | None = None, skip_list: str | None = None, every: int = 1
    ) -> None:
        if not root:
            raise UserError(f"root is not set; give the image folder: {LAYOUT}")
        self.root = Path(root).expanduser()
        if not self.root.is_dir():
            raise UserError(f"root={root}: no such folder ({self.root.absolute()}); {LAYOUT}")
        if every < 1:
            raise UserError(f"every={every}: give a whole number, 1 or more")
        folders = _class_folders(self.root / "val")
        if (self.root / "train").is_dir():
            _check_same(self.root, _class_folders(self.root / "train"), folders)
        self.folders = folders[::every]
        if num_classes is not None and num_classes != len(self.folders):
            raise UserError(
                f"num_classes={num_classes}, but {self.root} has {len(self.folders)} class folders; "
                "correct it, or leave it out to have it found"
            )
        self.classes = _names(self.root, folders)[::every]
        self.skip = read_skip_list(skip_list, ("train/", "val/"))

    def reorder(self, classes: Sequence[str]) -> None:
        """Numbers the classes in this order of their names, a checkpoint's."""
        self.folders = [self.folders[self.classes.index(name)] for name in classes]
        self.classes = list(classes)

    def split(self, name: str) -> FolderImages:
        """The images of "train" or "val"."""
        if not (self.root / name).is_dir():
            raise UserError(f"root={self.root}: there is no {name}/ in it; {LAYOUT}")
        return FolderImages(self.root, name, self.folders, self.skip)


class FolderImages:
    """One split of an `ImageFolder`, sorted by class and then by path.

    All paths lie in one string: a list of 1.28 million would be copied into every worker, because counting references
    writes to each of them.
    """

    def __init__(self, root: Path, split: str, folders: list[str], skip: frozenset[str]) -> None:
        self.folder = os.path.join(root, split)
        self.split, self.folders = split, folders
        files = [_image_files(os.path.join(self.folder, folder)) for folder in folders]
        empty = [folder for folder, inside in zip(folders, files, strict=True) if not inside]
        if empty:
            raise UserError(
                f"{len(empty)} class folder(s) in {self.folder} without an image ({', '.join(IMAGES)}): "
                f"{_some(empty)}; fill or remove them; {LAYOUT}"
            )
        found = sum(map(len, files))
        if any(path.startswith(f"{split}/") for path in skip):
            files = [
                [file for file in inside if f"{split}/{folder}/{file}" not in skip]
                for folder, inside in zip(folders, files, strict=True)
            ]
        self.class_ends = np.cumsum([len(inside) for inside in files])
        self.skipped = found - len(self)
        if not len(self):
            raise UserError(f"the skip list leaves no image in {self.folder}")
        self.file_ends = np.cumsum([len(file) for file in chain(*files)])
        self.file_names = "".join(chain(*files))

    def __len__(self) -> int:
        return int(self.class_ends[-1])

    def label(self, index: int) -> int:
        return int(np.searchsorted(self.class_ends, index, side="right"))

    def name(self, index: int) -> str:
        """The path below the root, as a skip list has it."""
        begin = int(self.file_ends[index - 1]) if index else 0
        file = self.file_names[begin : int(self.file_ends[index])]
        return f"{self.split}/{self.folders[self.label(index)]}/{file}"

    def read(self, index: int) -> tuple[Tensor, int]:
        """uint8 RGB (3, H, W) and the class. Raises UnreadableSample."""
        path = self.folder + self.name(index).removeprefix(self.split)
        return read_image(path), self.label(index)


def _is_data(name: str) -> bool:
    return not name.startswith(".") and name not in ("@eaDir", "__MACOSX")


def _unreadable(error: OSError) -> None:
    raise UserError(f"{error.filename}: {error.strerror}; it must be readable, with all that is in it") from error


def _image_files(folder: str) -> list[str]:
    """Paths below the folder, in torchvision's order: its own files, then those of each sub-folder."""
    found = []
    for parent, folders, files in os.walk(folder, onerror=_unreadable, followlinks=True):
        folders[:] = filter(_is_data, folders)
        below = os.path.relpath(parent, folder).replace(os.sep, "/") + "/" if parent != folder else ""
        names = sorted(file for file in files if file.lower().endswith(IMAGES) and _is_data(file))
        found.append((parent, [below + name for name in names]))
    return list(chain.from_iterable(names for _, names in sorted(found)))


def _class_folders(split: Path) -> list[str]:
    if not split.is_dir():
        raise UserError(f"root={split.parent}: there is no {split.name}/ in it; {LAYOUT}")
    _, folders, files = next(os.walk(split, onerror=_unreadable))
    folders = sorted(filter(_is_data, folders))
    if folders:
        return folders
    if any(name.lower().endswith(IMAGES) for name in files):
        raise UserError(
            f"{split} holds images but no class folders, as ImageNet's {split.name}/ is delivered; "
            f"sort it once with: python scripts/prepare_imagenet.py root={split.parent} devkit=PATH"
        )
    raise UserError(f"{split} holds no class folders; {LAYOUT}")


def _check_same(root: Path, train: list[str], val: list[str]) -> None:
    only_train, only_val = sorted(set(train) - set(val)), sorted(set(val) - set(train))
    if only_train or only_val:
        sides = (("train", only_train), ("val", only_val))
        parts = "; ".join(f"only in {split}/: {_some(names)}" for split, names in sides if names)
        raise UserError(f"train/ and val/ of {root} must have the same class folders; {parts}")


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


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
