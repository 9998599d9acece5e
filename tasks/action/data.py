"""Windows of labelled videos as the engine sees them (protocol: Dataset in tdaf/task.py)."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import torch
from torch.utils.data import default_collate

from tasks.action.sources import Videos
from tasks.action.timing import AllWindows, EvenWindows, RandomWindow, Timing
from tasks.action.transforms import Transform
from tdaf.task import Batch


class Clips:
    """One sample a window: "input" uint8 ([V,] 3, T, H, W), "label", "video" (its place in the split) and "window" (its
    place in the video). Windows of one video follow each other, and any rank may have any of them.

    Where the number of windows depends on the length of a video, all are counted when this is made (`Videos.counts`).
    """

    groups = None

    def __init__(self, videos: Videos, timing: Timing, transform: Transform) -> None:
        self.videos, self.timing, self.transform = videos, timing, transform
        self.skipped, self.notes = videos.skipped, videos.notes
        self.totals = videos.counts() if timing.needs_counts else None
        number = timing.number(self.totals)
        self.ends = np.cumsum(number) if self.totals is not None else np.arange(1, len(videos) + 1) * number

    def __len__(self) -> int:
        return int(self.ends[-1])

    def __getitem__(self, index: int) -> dict[str, Any]:
        video, place = self.place(index)
        counted = 0 if self.totals is None else int(self.totals[video])
        choose = partial(self.timing.window, place=place)
        frames = self.videos.read(video, choose(counted) if counted else choose)
        return {"input": self.transform(frames), "label": self.videos.label(video), "video": video, "window": place}

    def place(self, index: int) -> tuple[int, int]:
        """(video, window in it) of a sample."""
        video = int(np.searchsorted(self.ends, index, side="right"))
        return video, index - (int(self.ends[video - 1]) if video else 0)

    def name(self, index: int) -> str:
        """The video's path below the root, as a skip list has it."""
        return self.videos.name(self.place(index)[0])

    def collate(self, samples: list[dict[str, Any]]) -> Batch:
        return default_collate(samples)

    def checked(self, full: bool) -> WholeVideos:
        """What scripts/check_data.py reads instead: each video once, all of it or (full=False) its table of frames."""
        return WholeVideos(self.videos, full)


class WholeVideos:
    """One sample a video, which is read, and of which nothing is kept."""

    groups = None

    def __init__(self, videos: Videos, full: bool) -> None:
        self.videos, self.full, self.skipped, self.notes = videos, full, videos.skipped, videos.notes

    def __len__(self) -> int:
        return len(self.videos)

    def __getitem__(self, index: int) -> dict[str, Any]:
        self.videos.check(index, self.full)
        return {"input": torch.empty(0)}

    def name(self, index: int) -> str:
        return self.videos.name(index)

    def collate(self, samples: list[dict[str, Any]]) -> Batch:
        return default_collate(samples)


def training_clips(videos: Videos, transform: Transform, frames: int, stride: int) -> Clips:
    """A random window of each video."""
    return Clips(videos, RandomWindow(frames, stride), transform)


def evaluation_clips(videos: Videos, transform: Transform, frames: int, stride: int, protocol: str) -> Clips:
    """protocol: "clip", three windows a video; "hara", all that do not overlap; "30view", ten, of which the transform
    makes three views each."""
    timing = {
        "clip": EvenWindows(3, frames, stride),
        "hara": AllWindows(frames, stride),
        "30view": EvenWindows(10, frames, stride),
    }[protocol]
    return Clips(videos, timing, transform)
