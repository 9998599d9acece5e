"""Kinetics, UCF-101, HMDB-51, and any own set of labelled videos in one of their layouts."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from torch import Tensor

from tasks.action import frames as images
from tasks.action.counts import frame_counts
from tasks.action.kinetics import LAYOUT, KineticsLayout
from tasks.action.listing import Layout, Listing
from tasks.action.splits import Hmdb51Layout, Ucf101Layout
from tdaf.errors import UserError
from tdaf.media.clip import Wanted, count_frames, decode_whole, read_clip
from tdaf.media.files import read_skip_list

LAYOUTS = ("kinetics", "ucf101", "hmdb51")


class ActionVideos:
    """layout: "kinetics", "ucf101" or "hmdb51" (what each expects: `KineticsLayout`, `Ucf101Layout`, `Hmdb51Layout`).

    fold: the split of UCF-101 and HMDB-51, from 1. frames: videos are folders of images, one a frame (`read_frames`).
    short_side: frames are scaled to it while they are decoded; None leaves them as they are. annotations, videos:
    folders below `root`, where they are not the usual ones. num_classes: checked when given. skip_list: a text file
    with one path a line, relative to `root` (val/abseiling/abc.mp4); these videos are left out and counted.
    Raises UserError when the folder cannot be used; videos themselves are looked at only when they are read.
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
    ) -> None:
        if layout not in LAYOUTS:
            raise UserError(f"data.layout={layout}: give {', '.join(LAYOUTS)}")
        for name, value in (("fold", fold), ("short_side", short_side)):
            if value is not None and value < 1:
                raise UserError(f"data.{name}={value}: give 1 or more")
        if not root:
            raise UserError(f"data.root is not set; give the folder of videos: {LAYOUT}")
        self.root = Path(root).expanduser()
        if not self.root.is_dir():
            raise UserError(f"data.root={root}: no such folder ({self.root.absolute()}); {LAYOUT}")
        self.layout: Layout = {
            "kinetics": lambda: KineticsLayout(self.root, annotations, videos, frames),
            "ucf101": lambda: Ucf101Layout(self.root, annotations, videos, fold, frames),
            "hmdb51": lambda: Hmdb51Layout(self.root, annotations, videos, fold, frames),
        }[layout]()
        self.classes, self.frames, self.short_side = self.layout.classes, frames, short_side
        if num_classes is not None and num_classes != len(self.classes):
            raise UserError(
                f"data.num_classes={num_classes}, but {self.root} has {len(self.classes)} classes; "
                "correct it, or leave it out to have it found"
            )
        self.skip = read_skip_list(skip_list, example="val/abseiling/abc.mp4")
        self._splits: dict[str, ListedVideos] = {}

    def split(self, name: str) -> ListedVideos:
        """The split "train" or "val", listed when it is first asked for."""
        if name not in self._splits:
            listing = self.layout.listing(name)
            self._splits[name] = ListedVideos(self.root, listing, self.skip, self.frames, self.short_side)
        return self._splits[name]


class ListedVideos:
    """The videos of one split (protocol: `Videos`). All names lie in one string: 240,000 of them in a list would be
    copied into every worker, because counting references writes to each."""

    def __init__(
        self, root: Path, listing: Listing, skip: frozenset[str], frames: bool, short_side: int | None
    ) -> None:
        self.root, self.frames, self.short_side, self.notes = root, frames, short_side, listing.notes
        kept = [place for place, name in enumerate(listing.names) if name not in skip]
        self.skipped = len(listing.names) - len(kept)
        if not kept:
            raise UserError(f"data.skip_list leaves no video in {root}")
        names = [listing.names[place] for place in kept]
        self.ends = np.cumsum([len(name) for name in names])
        self.names = "".join(names)
        self.labels = np.array(listing.labels, np.int32)[kept]

    def __len__(self) -> int:
        return len(self.labels)

    def label(self, index: int) -> int:
        return int(self.labels[index])

    def name(self, index: int) -> str:
        """The path below the root, as a skip list has it."""
        return self.names[int(self.ends[index - 1]) if index else 0 : int(self.ends[index])]

    def path(self, index: int) -> Path:
        return self.root / self.name(index)

    def read(self, index: int, wanted: Wanted) -> Tensor:
        read = images.read_frames if self.frames else read_clip
        return read(self.path(index), wanted, self.short_side)

    def check(self, index: int, full: bool) -> None:
        whole, counted = (images.read_all, images.count_images) if self.frames else (decode_whole, count_frames)
        (whole if full else counted)(self.path(index))

    def counts(self) -> np.ndarray:
        count = images.count_images if self.frames else count_frames
        return frame_counts(self.root, [self.name(i) for i in range(len(self))], count)
