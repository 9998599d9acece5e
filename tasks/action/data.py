"""Which frames of videos a network sees: windows in time, and the data sets that are made of them.

A window is `frames` frames of a video, every `stride`-th. A video that ends before its window is full is looped: what
there is of the window is repeated from its beginning (kenshohara/3D-ResNets-PyTorch temporal_transforms.py,
LoopPadding).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tasks.action.transforms import Transform
from tasks.action.videos import ListedVideos
from tdaf.errors import UserError
from tdaf.media.files import Media, is_video
from tdaf.task import Dataset


@dataclass(frozen=True)
class Timing:
    """Which windows of a video are samples.

    Args:
        frames, stride: of a window.
        windows: of each video, their starts spread evenly from its first frame to the last one that leaves a window
            full; a single one lies in the middle. Hara's TemporalEvenCrop has the same starts to within a frame, but
            takes fewer of a short video, which here counts as much as a long one. None: all windows one after the
            other, none overlapping, of which the last may be shorter (Hara's TemporalSlidingWindow).
        random: one window, and all starts that leave it full are equally likely. Hara's TemporalRandomCrop never takes
            the last of them, and here it is taken. Draws from torch's global generator.
    """

    frames: int
    stride: int = 1
    windows: int | None = 1
    random: bool = False

    def count(self, totals: np.ndarray | None) -> int | np.ndarray:
        """Windows a video: one number for all, or where `windows` is None one each, from their numbers of frames. A
        video whose frames cannot be counted (0) has one, so that reading it says why."""
        return self.windows or np.maximum(1, -(-totals // (self.frames * self.stride)))

    def window(self, total: int, number: int) -> list[int]:
        """The frames of window `number`, from 0, of a video with `total` frames."""
        last = max(0, total - (self.frames - 1) * self.stride - 1)  # start that leaves a window full
        if self.random:
            start = int(torch.randint(last + 1, ()))
        elif self.windows is None:
            start = number * self.frames * self.stride
        else:
            start = last * number // (self.windows - 1) if self.windows > 1 else last // 2
        taken = range(start, min(start + self.frames * self.stride, total), self.stride)
        return [taken[frame % len(taken)] for frame in range(self.frames)]


class Clips(Dataset):
    """Windows of labelled videos.

    A sample is a window: "input" uint8 ([V,] 3, T, H, W), "label", "video" (its number in the split) and "window" (its
    number in the video). Windows of one video follow each other, and any rank may have any of them.

    Args:
        videos: of a split.
        timing: which windows of each. Where their number depends on the length of a video, all are counted when this is
            made (`ListedVideos.counts`).
        transform: from the frames of a window to an input.
    """

    def __init__(self, videos: ListedVideos, timing: Timing, transform: Transform) -> None:
        self.videos, self.timing, self.transform, self.files = videos, timing, transform, videos
        self.skipped, self.notes = videos.skipped, videos.notes
        self.totals = videos.counts() if timing.windows is None else None
        self.ends = np.cumsum(np.broadcast_to(timing.count(self.totals), len(videos)))

    def __len__(self) -> int:
        return int(self.ends[-1])

    def __getitem__(self, index: int) -> dict[str, Any]:
        video, window = self.locate(index)
        total = 0 if self.totals is None else int(self.totals[video])
        choose = partial(self.timing.window, number=window)
        frames = self.videos.read(video, choose(total) if total else choose)
        return {"input": self.transform(frames), "label": self.videos.label(video), "video": video, "window": window}

    def locate(self, index: int) -> tuple[int, int]:
        """(video, window in it) of a sample."""
        video = int(np.searchsorted(self.ends, index, side="right"))
        return video, index - (int(self.ends[video - 1]) if video else 0)

    def name(self, index: int) -> str:
        """The video's path below the root, as a skip list has it."""
        return self.videos.name(self.locate(index)[0])


class Windows(Dataset):
    """Videos that a user gives to predict (protocol: PredictDataset in tdaf/task.py), covered by windows one after the
    other; in the last one of a video, where it is shorter, its frames are repeated.

    A sample is a window: "input" uint8 ([V,] 3, T, H, W), "frames", its first one in the video and the one after its
    last, and the same in "seconds".

    Args:
        paths: the files; what is wrong with one, or that it is no video, stands in the faults of `pictures`.
        transform: from the frames of a window to an input.
        frames, stride: of a window.

    Raises:
        UserError: there is no video among `paths`.
    """

    def __init__(self, paths: list[Path], transform: Transform, frames: int, stride: int) -> None:
        videos = list(filter(is_video, paths))
        if not videos:
            raise UserError(f"input: there is no video among {len(paths)} files; this checkpoint wants videos")
        self.pictures, self.transform, self.frames, self.stride = Media(videos), transform, frames, stride
        self.pictures.faults.update({path: "not a video" for path in paths if path not in videos})
        self.windows: list[tuple[int, int, int]] = []  # pictures: the first of the video, of the window, after its last
        for _, group in groupby(range(len(self.pictures)), self.pictures.file):
            own, length = list(group), frames * stride
            self.windows += [(own[0], first, min(first + length, own[-1] + 1)) for first in own[::length]]

    def __len__(self) -> int:
        return len(self.windows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        start, first, end = self.windows[index]
        frames = [self.pictures.read(picture) for picture in range(first, end, self.stride)]
        clip = torch.stack([frames[frame % len(frames)] for frame in range(self.frames)])
        ends, path = [first - start, end - start], self.pictures.file(first)
        seconds = torch.tensor([self.pictures.seconds(path, frame) for frame in ends], dtype=torch.float64)
        return {"input": self.transform(clip), "frames": torch.tensor(ends), "seconds": seconds}

    def name(self, index: int) -> str:
        start, first, end = self.windows[index]
        return f"{self.pictures.file(first)}, frames {first - start} to {end - start - 1}"

    def shown(self, index: int) -> range:
        return range(*self.windows[index][1:])
