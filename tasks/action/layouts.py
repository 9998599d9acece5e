"""How Kinetics, UCF-101 and HMDB-51 lie on a disk: from a folder to lists of videos with their classes."""

from __future__ import annotations

import csv
import os
import re
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from tasks.common import some
from tdaf.errors import UserError
from tdaf.media import archive
from tdaf.media.files import MOVING, files_below, folders_in, left_out

KINETICS = (
    "expected train/<class>/<id>.mp4 and val/<class>/<id>.mp4 in it (also <id>_000010_000020.mp4, other video files, "
    "and, beside train.csv and val.csv, no class folders), each also as a .tar or .zip; without data, try recipe=demo"
)
UCF = "expected ucfTrainTestlist/ with classInd.txt, trainlist01.txt, testlist01.txt, and UCF-101/<class>/*.avi there"
HMDB = "expected testTrainMulti_7030_splits/ with <class>_test_split1.txt and <class>/*.avi in the root"
KINETICS_FOLDERS = {"train": ("train",), "val": ("val", "validate", "validation")}


@dataclass
class Listing:
    """names: paths below the data set's root, with /. labels: classes, one a name. notes: as a Dataset has them. place:
    where `folder`, with which all names begin, lies, if not there."""

    names: list[str] = field(default_factory=list)
    labels: list[int] = field(default_factory=list)
    notes: dict[str, int] = field(default_factory=dict)
    folder: str = ""
    place: str = ""


class KineticsLayout:
    """`root`/train/ and `root`/val/ (or validate/), with or without class folders, which may have sub-folders;
    each also as a tar or zip file.

    The annotations of a split are the file `<split>.csv` in annotations/ or in `root` itself, or else the only one
    there called kinetics..._<split>.csv (kinetics-400_train.csv), with a line that names the columns label, youtube_id,
    time_start and time_end, in any order. A video whose file is not there is left out and counted, and so is one
    without a line, or with lines of several classes. Without such a file the folders say the classes. A class folder
    may have _ for spaces, in any case. Classes come from the validation split and are numbered by their names.

    Args:
        root: of the data set.
        annotations: another folder below it for the CSV files.
        videos: another folder below it for train/ and val/.
        frames: each video is a folder of frames.
        max_bad: above 0, an archive that is cut off is used as far as it goes.

    Raises:
        UserError: there is no validation split, or it says no classes.
    """

    def __init__(self, root: Path, annotations: str | None, videos: str | None, frames: bool, max_bad: int = 0) -> None:
        self.root, self.frames, self.base, self.max_bad = root, frames, root / (videos or "."), max_bad
        self.csv_folders = (root / annotations,) if annotations is not None else (root / "annotations", root)
        if annotations is not None and not self.csv_folders[0].is_dir():
            raise UserError(f"annotations={annotations}: no such folder ({self.csv_folders[0].absolute()})")
        file = self._csv_file("val")
        where = file or self._folder("val")[0]
        labels = {label for label, _ in _kinetics_rows(file)} if file else set(folders_in(where))
        if not labels:
            fault = "lists no video" if file else f"holds neither class folders nor annotations; {KINETICS}"
            raise UserError(f"{where} {fault}")
        self.classes = sorted((label.replace("_", " ") for label in labels), key=_plain)
        self.numbers = {_plain(name): number for number, name in enumerate(self.classes)}
        if len(self.numbers) < len(labels):
            twice = some(label for label in labels if sum(_plain(label) == _plain(other) for other in labels) > 1)
            raise UserError(f"{where} has one class under two names: {twice}; rename one")

    def listing(self, split: str) -> Listing:
        """The split "train" or "val"; raises UserError where it cannot be had."""
        (folder, below), file = self._folder(split), self._csv_file(split)
        archive.check_whole(folder, self.max_bad)
        listing = self._annotated(folder, file) if file else self._in_classes(folder)
        listing.names = [f"{below}/{name}" for name in listing.names]
        listing.folder, listing.place = below, str(folder)
        return listing

    def _in_classes(self, folder: Path) -> Listing:
        classes = folders_in(folder)
        self._check_known(folder, classes)
        found = {name: _videos_in(folder / name, self.frames) for name in classes}
        videos = [(name, video) for name in classes for video in found[name][0]]
        if not videos:
            raise UserError(f"there is no video in the class folders of {folder}; {KINETICS}")
        notes = left_out(sum((others for _, others in found.values()), Counter()), "videos")
        return Listing(list(map("/".join, videos)), [self.numbers[_plain(name)] for name, _ in videos], notes)

    def _annotated(self, folder: Path, file: Path) -> Listing:
        rows = _kinetics_rows(file)
        self._check_known(file, [label for label, _ in rows])
        files, others = self._files_by_stem(folder, {stem for _, stems in rows for stem in stems})
        elsewhere, used = 0, {}  # used: the classes that a video's rows say
        for label, stems in rows:
            candidates = [file for stem in stems for file in files.get(stem, ())]
            if not candidates:
                continue
            own = [(name, video) for name, video in candidates if _plain(name) == _plain(label)]
            name, video = (own or candidates)[0]
            elsewhere += bool(name) and not own
            used.setdefault("/".join(filter(None, (name, video))), []).append(self.numbers[_plain(label)])
        several = {name: labels for name, labels in used.items() if len(set(labels)) > 1}
        kept = [name for name in used if name not in several]
        listing = Listing(kept, [used[name][0] for name in kept])
        if not used:
            raise UserError(f"none of the {len(rows)} videos of {file} is in {folder}; {KINETICS}")
        notes = {
            **_missing(sum(map(len, used.values())), len(rows)),
            f"videos have rows of several classes and are left out ({some(several)})": len(several),
            "rows name a video again, with its class": sum(len(used[name]) - 1 for name in kept),
            "videos lie in the folder of another class than annotated, which counts": elsewhere,
            "videos are there without an annotation and left out": sum(map(len, files.values())) - len(used),
            **left_out(others, "videos"),
        }
        listing.notes = {note: count for note, count in notes.items() if count}
        return listing

    def _files_by_stem(self, folder: Path, stems: set[str]) -> tuple[dict[str, list[tuple[str, str]]], Counter[str]]:
        """(class folder or "", video below it) by the video's name without its ending, and how many other files there
        are; of folders in `folder`, those that are called as an annotated video hold its frames, and the others are
        class folders."""
        flat, others = _videos_in(folder, self.frames, deep=False)
        flat = [video for video in flat if not self.frames or video in stems]
        files: dict[str, list[tuple[str, str]]] = {}
        for name in ("", *sorted(set(folders_in(folder)) - set(flat))):
            videos, more = _videos_in(folder / name, self.frames) if name else (flat, Counter())
            others += more
            for video in videos:
                stem = video if self.frames else os.path.splitext(os.path.basename(video))[0]
                files.setdefault(stem, []).append((name, video))
        return files, others

    def _check_known(self, where: Path, labels: list[str]) -> None:
        unknown = {label for label in labels if _plain(label) not in self.numbers}
        if unknown:
            raise UserError(f"{where} has {len(unknown)} class(es) that the validation split lacks: {some(unknown)}")

    def _folder(self, split: str) -> tuple[Path, str]:
        """Where it lies, and its path below the root."""
        for name in KINETICS_FOLDERS[split]:
            place = Path(archive.locate(self.base, name))
            if archive.is_folder(place):
                return place, (self.base / name).relative_to(self.root).as_posix()
        raise UserError(
            f"root={self.root}: there is no {split}/ in {self.base}{archive.hint(self.base, split)}; {KINETICS}"
        )

    def _csv_file(self, split: str) -> Path | None:
        names = KINETICS_FOLDERS[split]
        official = re.compile(rf"kinetics.*[-_]({'|'.join(names)})\.csv", re.IGNORECASE)
        for folder in self.csv_folders:
            files = [folder / f"{name}.csv" for name in names if (folder / f"{name}.csv").is_file()][:1]
            files = files or [path for path in sorted(folder.glob("*.csv")) if official.fullmatch(path.name)]
            if len(files) > 1:
                many = " and ".join(path.name for path in files)
                raise UserError(f"{folder} holds {many}: rename the one to use to {split}.csv")
            if files:
                return files[0]
        return None


class SplitLists:
    """Lists of videos in several splits, as UCF-101 and HMDB-51 have them. These say in `_files` which are the lists of
    a fold, in `_classes` and `_listed` what they hold: (path below the videos' folder, class) of a split's videos.

    Args:
        root, annotations, videos, frames: as of `KineticsLayout`; a folder of frames is named as its video's file
            without the ending.
        fold: which of the splits, from 1.

    Raises:
        UserError: there are no such lists or no videos.
    """

    expected: str  # for messages
    list_folders: tuple[str, ...]  # where lists and videos may lie below the root
    video_folders: tuple[str, ...]
    sign: str  # a glob of what is among the lists
    pattern: str  # of the lists of all folds

    def __init__(self, root: Path, annotations: str | None, videos: str | None, frames: bool, fold: int) -> None:
        self.root, self.frames = root, frames
        self.lists = self._located(annotations, self.list_folders, self.sign, "annotations")
        self.files = self._files(fold)
        if not any(path.is_file() for path in list(self.files.values())[-1:]):  # training lists may be absent
            there = {re.findall(r"\d+", path.stem)[-1].lstrip("0") for path in self.lists.glob(self.pattern)}
            raise UserError(f"fold={fold}: not in {self.lists}; there are folds {some(there) or 'none'}")
        self.classes = self._classes()
        self.videos = self._located(videos, self.video_folders, f"{self.classes[0]}/*", "videos")

    def listing(self, split: str) -> Listing:
        """The split "train" or "val"; raises UserError where it cannot be had."""
        listed, exists = self._listed(split), os.path.isdir if self.frames else os.path.isfile
        prefix = "" if self.videos == self.root else f"{self.videos.relative_to(self.root).as_posix()}/"
        named = [(prefix + (os.path.splitext(path)[0] if self.frames else path), label) for path, label in listed]
        there = [(name, label) for name, label in named if exists(os.path.join(self.root, name))]
        if not there:
            raise UserError(f"none of the {len(listed)} videos listed in {self.lists} is in {self.videos}")
        return Listing(*map(list, zip(*there, strict=True)), _missing(len(there), len(listed)))

    def _located(self, given: str | None, usual: tuple[str, ...], sign: str, argument: str) -> Path:
        """The folder that holds something like `sign`: the one given, else one of the usual ones."""
        folders = [self.root / name for name in ((given,) if given is not None else usual)]
        for folder in folders:
            if any(folder.glob(sign)):
                return folder
        said = f"no {sign} in {', '.join(map(str, folders))}; {self.expected}"
        raise UserError(f"{said}, or name its folder with {argument}=")


class Ucf101Layout(SplitLists):
    """classInd.txt ("1 ApplyEyeMakeup"), trainlist<fold>.txt and testlist<fold>.txt ("<class>/<video>.avi", then the
    class's number in some), in annotations/, ucfTrainTestlist/ or the root. Videos lie in videos/, UCF-101/, jpg/ or
    the root. "val" is the test list."""

    expected = UCF
    list_folders, video_folders = ("annotations", "ucfTrainTestlist", "."), ("videos", "UCF-101", "jpg", ".")
    sign, pattern = "classInd.txt", "testlist*.txt"

    def _files(self, fold: int) -> dict[str, Path]:
        return {
            split: self.lists / f"{name}list{fold:02d}.txt" for split, name in (("train", "train"), ("val", "test"))
        }

    def _classes(self) -> list[str]:
        entries = [line.split() for line in _lines(self.lists / self.sign)]
        if not entries or not all(len(entry) == 2 and entry[0].isdecimal() for entry in entries):
            raise UserError(f"{self.lists / self.sign}: expected a number and a class a line (1 ApplyEyeMakeup)")
        return [name for _, name in sorted(entries, key=lambda entry: int(entry[0]))]

    def _listed(self, split: str) -> list[tuple[str, int]]:
        listed, numbers = [], {name: number for number, name in enumerate(self.classes)}
        for line in _lines(self.files[split]):
            path = line.rsplit(maxsplit=1)[0] if line.split()[-1].isdecimal() else line
            name = path.partition("/")[0]
            if name not in numbers or "/" not in path:
                raise UserError(f"{self.files[split]}: '{line}' does not begin with a class of classInd.txt and /")
            listed.append((path, numbers[name]))
        return listed


class Hmdb51Layout(SplitLists):
    """A file <class>_test_split<fold>.txt for each class, in annotations/, testTrainMulti_7030_splits/ or the root,
    with "<video>.avi 1" for training, 2 for "val", 0 for neither. Videos lie in <class>/ in videos/, hmdb51_org/,
    hmdb51/, jpg/ or the root."""

    expected = HMDB
    list_folders = ("annotations", "testTrainMulti_7030_splits", ".")
    video_folders = ("videos", "hmdb51_org", "hmdb51", "jpg", ".")
    sign = pattern = "*_test_split*.txt"

    def _files(self, fold: int) -> dict[str, Path]:
        ending = f"_test_split{fold}.txt"
        return {path.name.removesuffix(ending): path for path in sorted(self.lists.glob(f"*{ending}"))}

    def _classes(self) -> list[str]:
        return sorted(self.files)

    def _listed(self, split: str) -> list[tuple[str, int]]:
        flag, listed = {"train": "1", "val": "2"}[split], []
        for number, name in enumerate(self.classes):
            for line in _lines(self.files[name]):
                video, _, kind = line.rpartition(" ")
                if kind not in ("0", "1", "2") or not video:
                    raise UserError(f"{self.files[name]}: '{line}' is not a video's name and 0, 1 or 2")
                if kind == flag:
                    listed.append((f"{name}/{video.strip()}", number))
        return listed


def _kinetics_rows(file: Path) -> list[tuple[str, tuple[str, str]]]:
    """Of each line of an annotation file its class, and the names that its video's file may have without an ending."""
    table, rows = csv.DictReader(_lines(file), skipinitialspace=True), []
    try:
        lines = list(table)
    except csv.Error as error:
        raise UserError(f"{file}, line {table.line_num}: {error}; is it a table of texts?") from error
    for name in ("label", "youtube_id"):
        if name not in (table.fieldnames or ()):
            head = "expected a first line label,youtube_id,time_start,time_end as in Kinetics' own files"
            raise UserError(f"{file} has no column {name}; {head}")
    for number, line in enumerate(lines, start=2):
        label, key = ((line[name] or "").strip() for name in ("label", "youtube_id"))
        times = [line.get(name) or "0" for name in ("time_start", "time_end")]
        if not label or not key or not all(re.fullmatch(r"\d+(\.\d*)?", time) for time in times):
            shown = ", ".join(map(repr, (label, key, *times)))
            said = f"label, youtube_id, time_start and time_end are {shown}: give names and seconds"
            raise UserError(f"{file}, line {number}: {said}; is the file cut off?")
        begin, end = (int(float(time)) for time in times)
        rows.append((label, (f"{key}_{begin:06d}_{end:06d}", key)))
    return rows


def _plain(label: str) -> str:
    return label.replace("_", " ").strip().casefold()


def _videos_in(folder: Path, frames: bool, deep: bool = True) -> tuple[list[str], Counter[str]]:
    """Paths of the videos in a folder, and how many other files there are; frames: each a folder of its frames."""
    return (folders_in(folder), Counter()) if frames else files_below(folder, MOVING, deep)


def _lines(file: Path) -> list[str]:
    try:
        text = file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeError) as error:
        raise UserError(f"{file} cannot be read: {error}") from error
    return [line.strip() for line in text.splitlines() if line.strip()]


def _missing(found: int, listed: int) -> dict[str, int]:
    """The note that says how many of the annotated videos are there."""
    gone = listed - found
    return {f"of the {listed} annotated videos are missing and left out, {found} are there": gone} if gone else {}
