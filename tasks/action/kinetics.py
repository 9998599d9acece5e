"""Kinetics: its official CSV annotations where they are, else the class folders alone."""

from __future__ import annotations

import csv
import os
import re
from pathlib import Path
from typing import NamedTuple

from tasks.action.listing import Listing, folders_in, missing, some, videos_in
from tdaf.errors import UserError

LAYOUT = (
    "expected train/<class>/<id>.mp4 and val/<class>/<id>.mp4 in it (also <id>_000010_000020.mp4, other video files, "
    "and, beside train.csv and val.csv, no class folders); without data, try recipe=demo"
)
FOLDERS = {"train": ("train",), "val": ("val", "validate", "validation")}


class Row(NamedTuple):
    """A line of an annotation file. stems: the names that its video's file may have, without the ending."""

    label: str
    stems: tuple[str, ...]


class KineticsLayout:
    """`root`/train/ and `root`/val/ (or validate/), with or without class folders.

    The annotations of a split are the file `<split>.csv` in annotations/ or in `root` itself, or else the only one
    there called kinetics..._<split>.csv (kinetics-400_train.csv), with a line that names the columns label, youtube_id,
    time_start and time_end, in any order. A video whose file is not there is left out and counted, and one without a
    line too. Without such a file the folders say the classes. A class folder may have _ for spaces, in any case.
    frames: each video is a folder of frames. annotations: another folder for the CSV files. videos: another folder
    for train/ and val/. Classes come from the validation split and are numbered by their names.
    """

    def __init__(self, root: Path, annotations: str | None, videos: str | None, frames: bool) -> None:
        self.root, self.frames, self.base = root, frames, root / (videos or ".")
        self.places = (root / annotations,) if annotations is not None else (root / "annotations", root)
        if annotations is not None and not self.places[0].is_dir():
            raise UserError(f"data.annotations={annotations}: no such folder ({self.places[0].absolute()})")
        file = self._file("val")
        labels = {row.label for row in _rows(file)} if file else set(folders_in(self._folder("val")))
        if not labels:
            said = "lists no video" if file else f"holds neither class folders nor annotations; {LAYOUT}"
            raise UserError(f"{file or self._folder('val')} {said}")
        self.classes = sorted((label.replace("_", " ") for label in labels), key=_plain)
        self.numbers = {_plain(name): number for number, name in enumerate(self.classes)}
        if len(self.numbers) < len(labels):
            twice = some(label for label in labels if sum(_plain(label) == _plain(other) for other in labels) > 1)
            raise UserError(f"{file or self._folder('val')} has one class under two names: {twice}; rename one")

    def listing(self, split: str) -> Listing:
        folder, file = self._folder(split), self._file(split)
        if file:
            return self._annotated(folder, file)
        found = Listing()
        classes = folders_in(folder)
        self._check_known(folder, classes)
        for name in classes:
            inside = videos_in(folder / name, self.frames)
            found.names += [f"{self._below(folder)}/{name}/{video}" for video in inside]
            found.labels += [self.numbers[_plain(name)]] * len(inside)
        if not found.names:
            raise UserError(f"there is no video in the class folders of {folder}; {LAYOUT}")
        return found

    def _annotated(self, folder: Path, file: Path) -> Listing:
        rows = _rows(file)
        self._check_known(file, [row.label for row in rows])
        files = self._there(folder, {stem for row in rows for stem in row.stems})
        found, elsewhere, used = Listing(), 0, set()
        for row in rows:
            candidates = [place for stem in row.stems for place in files.get(stem, ())]
            if not candidates:
                continue
            own = [place for place in candidates if _plain(place[0]) == _plain(row.label)]
            name, video = (own or candidates)[0]
            elsewhere += bool(name) and not own
            used.add((name, video))
            found.names.append("/".join(part for part in (self._below(folder), name, video) if part))
            found.labels.append(self.numbers[_plain(row.label)])
        if not found.names:
            raise UserError(f"none of the {len(rows)} videos of {file} is in {folder}; {LAYOUT}")
        unlisted = sum(map(len, files.values())) - len(used)
        notes = {"videos lie in the folder of another class than annotated, which counts": elsewhere}
        notes["videos are there without an annotation and left out"] = unlisted
        found.notes = {**missing(len(found.names), len(rows)), **{k: n for k, n in notes.items() if n}}
        return found

    def _there(self, folder: Path, stems: set[str]) -> dict[str, list[tuple[str, str]]]:
        """(class folder or "", video) by the video's name without its ending; of folders in `folder`, those that are
        called as an annotated video hold its frames, and the others are class folders."""
        flat = [video for video in videos_in(folder, self.frames) if not self.frames or video in stems]
        found: dict[str, list[tuple[str, str]]] = {}
        for name in ("", *sorted(set(folders_in(folder)) - set(flat))):
            for video in videos_in(folder / name, self.frames) if name else flat:
                found.setdefault(video if self.frames else os.path.splitext(video)[0], []).append((name, video))
        return found

    def _check_known(self, where: Path, labels: list[str]) -> None:
        unknown = {label for label in labels if _plain(label) not in self.numbers}
        if unknown:
            raise UserError(f"{where} has {len(unknown)} class(es) that the validation split lacks: {some(unknown)}")

    def _folder(self, split: str) -> Path:
        for name in FOLDERS[split]:
            if (self.base / name).is_dir():
                return self.base / name
        raise UserError(f"data.root={self.root}: there is no {split}/ in {self.base.absolute()}; {LAYOUT}")

    def _below(self, folder: Path) -> str:
        return folder.relative_to(self.root).as_posix()

    def _file(self, split: str) -> Path | None:
        for place in self.places:
            for name in FOLDERS[split]:
                if (place / f"{name}.csv").is_file():
                    return place / f"{name}.csv"
            pattern = re.compile(rf"kinetics.*[-_]({'|'.join(FOLDERS[split])})\.csv")
            close = [path for path in sorted(place.glob("*.csv")) if pattern.fullmatch(path.name.lower())]
            if len(close) > 1:
                names = " and ".join(path.name for path in close)
                raise UserError(f"{place} holds {names}: rename the one to use to {split}.csv")
            if close:
                return close[0]
        return None


def _plain(label: str) -> str:
    return label.replace("_", " ").strip().casefold()


def _rows(file: Path) -> list[Row]:
    rows = []
    try:
        with file.open(newline="", encoding="utf-8-sig") as text:
            lines = csv.DictReader(text, skipinitialspace=True)
            lacking = [name for name in ("label", "youtube_id") if name not in (lines.fieldnames or ())]
            if lacking:
                said = f"{file} has no column {lacking[0]}; expected a first line label,youtube_id,time_start,time_end"
                raise UserError(f"{said} as in Kinetics' own files")
            for line in lines:
                label, key = (line["label"] or "").strip(), (line["youtube_id"] or "").strip()
                if not label or not key:
                    raise UserError(f"{file}, line {lines.line_num}: no label or no youtube_id; is the file cut off?")
                times = [line.get(name) or "0" for name in ("time_start", "time_end")]
                if not all(re.fullmatch(r"\d+(\.\d*)?", time) for time in times):
                    shown = " and ".join(map(repr, times))
                    said = f"time_start and time_end are to be seconds, not {shown}"
                    raise UserError(f"{file}, line {lines.line_num}: {said}")
                begin, end = (int(float(time)) for time in times)
                rows.append(Row(label, (f"{key}_{begin:06d}_{end:06d}", key)))
    except (OSError, ValueError, csv.Error) as error:
        raise UserError(f"{file} cannot be read: {error}") from error
    return rows
