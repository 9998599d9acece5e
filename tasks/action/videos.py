"""Labelled videos: Kinetics, UCF-101, HMDB-51, and any own set in one of their layouts."""

from __future__ import annotations

import csv
import os
import re
import sys
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torchvision.transforms.v2.functional import resize

from tasks.action.layouts import KINETICS, Hmdb51Layout, KineticsLayout, Listing, Ucf101Layout
from tasks.common import Names, check_num_classes, data_root
from tdaf.errors import UnreadableSample, UserError
from tdaf.media import archive
from tdaf.media.clip import FrameChoice, read_clip
from tdaf.media.files import is_data, read_skip_list
from tdaf.media.image import read_image
from tdaf.media.video import count_frames, decode_whole
from tdaf.ranges import within
from tdaf.streams import Bar

FRAME_FILE = re.compile(r"(.*\D)?(\d+)\.(?:jpe?g|png)", re.IGNORECASE)
COUNTS_FILE = "frame_counts.csv"
COUNTS_HEAD = ["frames", "bytes", "changed_ns", "video"]


class ActionVideos:
    """A data set's folder (protocol: `Source` in tasks/common.py). Videos themselves are looked at only when they are
    read.

    Args:
        root: the folder.
        layout: "kinetics", "ucf101" or "hmdb51" (what each expects: `KineticsLayout`, `Ucf101Layout`, `Hmdb51Layout`).
        fold: the split of UCF-101 and HMDB-51, from 1.
        frames: videos are folders of images, one a frame (`read_frames`).
        short_side: pixels to which frames are scaled while they are decoded; None leaves them as they are.
        annotations, videos: folders below `root`, where they are not the usual ones.
        num_classes: checked when given.
        skip_list: a list of paths below `root` (val/abseiling/abc.mp4); these videos are left out and counted.
        max_bad: above 0, an archive of layout "kinetics" that is cut off is used as far as it goes.

    Raises:
        UserError: the folder cannot be used.
    """

    def __init__(
        self,
        root: str | None,
        layout: str = "kinetics",
        fold: int = 1,
        frames: bool = False,
        short_side: int | None = None,
        annotations: str | None = None,
        videos: str | None = None,
        num_classes: int | None = None,
        skip_list: str | None = None,
        max_bad: int = 0,
    ) -> None:
        layouts = {"kinetics": KineticsLayout, "ucf101": Ucf101Layout, "hmdb51": Hmdb51Layout}
        if layout not in layouts:
            raise UserError(f"layout={layout}: give {', '.join(layouts)}")
        within("[1, inf)", fold=fold, short_side=short_side)
        self.root = data_root(root, "the folder of videos", KINETICS)
        only = {"max_bad": max_bad} if layout == "kinetics" else {"fold": fold}
        self.layout = layouts[layout](self.root, annotations, videos, frames, **only)
        self.classes, self.frames, self.short_side = self.layout.classes, frames, short_side
        check_num_classes(num_classes, len(self.classes), self.root)
        self.skip = read_skip_list(skip_list, example="val/abseiling/abc.mp4")
        self._splits: dict[str, ListedVideos] = {}

    def split(self, name: str) -> ListedVideos:
        """The split "train" or "val", listed when it is first asked for."""
        if name not in self._splits:
            listing = self.layout.listing(name)
            self._splits[name] = ListedVideos(self.root, listing, self.skip, self.frames, self.short_side)
        return self._splits[name]


class ListedVideos:
    """The videos of one split (`files` of a Dataset, too; scan "quick": their frames are counted, not decoded, which
    takes a fraction of the time). Names are paths below the root, as a skip list has them."""

    scans = ("full", "quick")

    def __init__(
        self, root: Path, listing: Listing, skip: frozenset[str], frames: bool, short_side: int | None
    ) -> None:
        self.root, self.short_side, self.notes = root, short_side, listing.notes
        self.folder, self.place = listing.folder, listing.place or root / listing.folder
        self._read, self._read_whole, self._count = (
            (read_frames, read_all_frames, count_images) if frames else (read_clip, decode_whole, count_frames)
        )
        kept = [pair for pair in zip(listing.names, listing.labels, strict=True) if pair[0] not in skip]
        self.skipped = len(listing.names) - len(kept)
        if not kept:
            raise UserError(f"skip_list leaves no video in {root}")
        self.names = Names([name for name, _ in kept])
        self.labels = np.array([label for _, label in kept], np.int32)

    def __len__(self) -> int:
        return len(self.labels)

    def label(self, index: int) -> int:
        return int(self.labels[index])

    def name(self, index: int) -> str:
        return self.names[index]

    def path(self, index: int) -> Path:
        return Path(self.place, self.names[index].removeprefix(self.folder).lstrip("/"))

    def read(self, index: int, frames: FrameChoice) -> Tensor:
        """Frames of video `index` as uint8 RGB (T, 3, H, W); raises UnreadableSample."""
        return self._read(self.path(index), frames, self.short_side)

    def check(self, index: int, scan: str) -> list[str]:
        (self._count if scan == "quick" else self._read_whole)(self.path(index))
        return []

    def counts(self) -> np.ndarray:
        """The number of frames of each video, 0 where it cannot be told: (N,) int64.

        Found once and kept beside the data in `COUNTS_FILE`, where a line holds for as long as the file has the size
        and the time of change that it had. Finding them takes milliseconds a video, in which it mostly waits for the
        disk. Where the file cannot be written, that is said."""
        file = self.root / COUNTS_FILE
        kept = _kept_counts(file)

        def line(index: int) -> tuple[int, int, int]:
            """(frames, bytes, ns of the last change) of a video; all 0 where it is gone."""
            try:
                about, known = archive.about(self.path(index)), kept.get(self.name(index), ())
                return known if known[1:] == about else (self._count(self.path(index)), *about)
            except UnreadableSample:
                return 0, *about
            except OSError:
                return 0, 0, 0

        names = [self.name(index) for index in range(len(self))]
        new = len(set(names) - kept.keys())
        if new:
            print(f"counting the frames of {new} videos, kept in {file}", file=sys.stderr, flush=True)
        bar, lines = Bar("frames", len(names)), {}
        with ThreadPoolExecutor(min(32, 4 * (os.cpu_count() or 1))) as pool:
            for name, found in zip(names, pool.map(line, range(len(self))), strict=True):
                lines[name] = found
                bar.advance()
        bar.stop()
        if not lines.items() <= kept.items():
            _keep_counts(file, kept | lines)
        return np.array([lines[name][0] for name in names], np.int64)


def read_frames(folder: Path, frames: FrameChoice, short_side: int | None = None) -> Tensor:
    """As `read_clip` of a video file, from a folder of images, one a frame, as kenshohara/3D-ResNets-PyTorch makes them
    (image_00001.jpg).

    Returns:
        uint8 RGB (T, 3, H, W), frames counted from 0 in the order of the numbers in their names.

    Raises:
        UnreadableSample: a frame cannot be read, is missing among the numbers, or is not of the others' size.
    """
    names = _frame_files(folder)
    numbers = list(frames(len(names)) if callable(frames) else frames)
    if numbers and max(numbers) >= len(names):
        raise UnreadableSample(f"it has {len(names)} frames, and so no frame {max(numbers)} ({folder})")
    images = {number: read_image(folder / names[number]) for number in set(numbers)}
    if len({image.shape for image in images.values()}) > 1:
        raise UnreadableSample(f"its frames are not of one size ({folder})")
    clip = torch.stack([images[number] for number in numbers])
    return clip if short_side is None else resize(clip, [short_side])


def read_all_frames(folder: Path) -> None:
    """Reads every frame, one after the other. Raises UnreadableSample."""
    for name in _frame_files(folder):
        read_image(folder / name)


def count_images(folder: Path) -> int:
    return len(_frame_files(folder))


def _frame_files(folder: Path) -> list[str]:
    """Names in the order of their numbers. Of several series in one folder it is the only one that is no optical flow
    (img_ beside flow_x_ and flow_y_)."""
    series: dict[str, dict[int, str]] = {}
    try:
        for match in filter(None, map(FRAME_FILE.fullmatch, filter(is_data, archive.inside(folder)[1]))):
            series.setdefault(match[1] or "", {})[int(match[2])] = match[0]
    except OSError as error:
        raise UnreadableSample(f"{error.strerror} ({folder})") from error
    if not series:
        raise UnreadableSample(f"no frame in it, such as image_00001.jpg ({folder})")
    pictures = [name for name in series if not name.lower().startswith("flow")] if len(series) > 1 else list(series)
    if len(pictures) != 1:
        some = ", ".join(f"{name}*" for name in sorted(series)[:5])
        raise UnreadableSample(f"{len(series)} series of frames in one folder: {some}; leave one there ({folder})")
    files = series[pictures[0]]
    missing = sorted(set(range(min(files), max(files))) - set(files))
    if missing:
        raise UnreadableSample(f"{len(missing)} frames are missing, number {missing[0]} first ({folder})")
    return [files[number] for number in sorted(files)]


def _kept_counts(path: Path) -> dict[str, tuple[int, int, int]]:
    """Nothing where the file is missing or damaged."""
    try:
        with path.open(newline="", encoding="utf-8", errors="surrogateescape") as text:
            lines = csv.reader(text)
            if next(lines, None) != COUNTS_HEAD:
                return {}
            return {name: (int(frames), int(size), int(changed)) for frames, size, changed, name in lines}
    except (OSError, ValueError, csv.Error):
        return {}


def _keep_counts(path: Path, counts: Mapping[str, tuple[int, int, int]]) -> None:
    part = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with part.open("w", newline="", encoding="utf-8", errors="surrogateescape") as text:
            csv.writer(text).writerows([COUNTS_HEAD, *((*line, name) for name, line in sorted(counts.items()))])
        part.replace(path)
    except OSError as error:
        print(f"{path} cannot be written ({error.strerror}): the next run counts again", file=sys.stderr, flush=True)
        part.unlink(missing_ok=True)
