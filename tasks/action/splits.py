"""UCF-101 and HMDB-51: class folders, and text files that say which video belongs to which part of a fold."""

from __future__ import annotations

import os
import re
from pathlib import Path

from tasks.action.listing import Listing, located, missing, some
from tdaf.errors import UserError

UCF = "expected ucfTrainTestlist/ with classInd.txt, trainlist01.txt, testlist01.txt, and UCF-101/<class>/*.avi there"
HMDB = "expected testTrainMulti_7030_splits/ with <class>_test_split1.txt and <class>/*.avi in data.root"


class Ucf101Layout:
    """classInd.txt ("1 ApplyEyeMakeup"), trainlist<fold>.txt and testlist<fold>.txt ("<class>/<video>.avi", then the
    class's number in some), in annotations/, ucfTrainTestlist/ or the root. Videos lie in videos/, UCF-101/, jpg/ or
    the root. "val" is the test list. frames: a video is a folder of frames, named as its file without the ending."""

    def __init__(self, root: Path, annotations: str | None, videos: str | None, fold: int, frames: bool) -> None:
        usual = ("annotations", "ucfTrainTestlist", ".")
        self.lists = located(root, annotations, usual, "classInd.txt", "annotations", UCF)
        entries = [line.split() for line in _lines(self.lists / "classInd.txt")]
        if not entries or not all(len(entry) == 2 and entry[0].isdecimal() for entry in entries):
            raise UserError(f"{self.lists / 'classInd.txt'}: expected a number and a class a line (1 ApplyEyeMakeup)")
        self.classes = [name for _, name in sorted(entries, key=lambda entry: int(entry[0]))]
        self.files = {"train": f"trainlist{fold:02d}.txt", "val": f"testlist{fold:02d}.txt"}
        self.root, self.frames = root, frames
        sign = f"{self.classes[0]}/*"
        self.videos = located(root, videos, ("videos", "UCF-101", "jpg", "."), sign, "videos", UCF)
        _check_fold(self.lists, self.files["val"], "testlist*.txt", fold)

    def listing(self, split: str) -> Listing:
        file = self.lists / self.files[split]
        numbers = {name: number for number, name in enumerate(self.classes)}
        listed = []
        for line in _lines(file):
            path = line.rsplit(maxsplit=1)[0] if line.split()[-1].isdecimal() else line
            name = path.partition("/")[0]
            if name not in numbers or "/" not in path:
                raise UserError(f"{file}: '{line}' does not begin with a class of classInd.txt and /")
            listed.append((path, numbers[name]))
        return _present(self.root, self.videos, listed, self.frames, file)


class Hmdb51Layout:
    """A file <class>_test_split<fold>.txt for each class, in annotations/, testTrainMulti_7030_splits/ or the root,
    with "<video>.avi 1" for training, 2 for "val", 0 for neither. Videos lie in <class>/ in videos/, hmdb51_org/,
    hmdb51/, jpg/ or the root. frames: as in `Ucf101Layout`."""

    def __init__(self, root: Path, annotations: str | None, videos: str | None, fold: int, frames: bool) -> None:
        usual = ("annotations", "testTrainMulti_7030_splits", ".")
        self.lists = located(root, annotations, usual, "*_test_split*.txt", "annotations", HMDB)
        ending = f"_test_split{fold}.txt"
        self.files = {path.name.removesuffix(ending): path for path in sorted(self.lists.glob(f"*{ending}"))}
        _check_fold(self.lists, next((path.name for path in self.files.values()), ending), "*_test_split*.txt", fold)
        self.classes = sorted(self.files)
        self.root, self.frames = root, frames
        usual = ("videos", "hmdb51_org", "hmdb51", "jpg", ".")
        self.videos = located(root, videos, usual, f"{self.classes[0]}/*", "videos", HMDB)

    def listing(self, split: str) -> Listing:
        flag, listed = {"train": "1", "val": "2"}[split], []
        for number, name in enumerate(self.classes):
            for line in _lines(self.files[name]):
                video, _, kind = line.rpartition(" ")
                if kind not in ("0", "1", "2") or not video:
                    raise UserError(f"{self.files[name]}: '{line}' is not a video's name and 0, 1 or 2")
                if kind == flag:
                    listed.append((f"{name}/{video.strip()}", number))
        return _present(self.root, self.videos, listed, self.frames, self.lists)


def _lines(file: Path) -> list[str]:
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise UserError(f"{file} cannot be read: {error}") from error
    return [line.strip() for line in text.splitlines() if line.strip()]


def _check_fold(lists: Path, file: str, pattern: str, fold: int) -> None:
    if not (lists / file).is_file():
        there = {re.findall(r"\d+", path.stem)[-1].lstrip("0") for path in lists.glob(pattern)}
        raise UserError(f"data.fold={fold}: no {file} in {lists}; there are folds {some(there) or 'none'}")


def _present(root: Path, videos: Path, listed: list[tuple[str, int]], frames: bool, where: Path) -> Listing:
    """Those of the listed videos that are there."""
    below = videos.relative_to(root).as_posix()
    prefix = "" if below == "." else f"{below}/"
    found = Listing()
    for path, label in listed:
        name = prefix + (os.path.splitext(path)[0] if frames else path)
        there = os.path.isdir if frames else os.path.isfile
        if there(os.path.join(root, name)):
            found.names.append(name)
            found.labels.append(label)
    if not found.names:
        raise UserError(f"none of the {len(listed)} videos listed in {where} is in {videos}")
    found.notes = missing(len(found.names), len(listed))
    return found
