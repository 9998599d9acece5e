"""Which frames of a video a network sees: windows of `frames` frames, every `stride`-th of the video.

A video that ends before its window is full is looped: what there is of the window is repeated from its beginning
(kenshohara/3D-ResNets-PyTorch temporal_transforms.py, LoopPadding).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Protocol

import numpy as np
import torch


class Timing(Protocol):
    needs_counts: bool  # whether `number` must be told how long the videos are

    def number(self, totals: np.ndarray | None) -> int | np.ndarray:
        """How many windows a video has: one number for all videos, or one each from their numbers of frames."""

    def window(self, total: int, place: int) -> list[int]:
        """The frames of window `place` of a video with `total` frames."""


@dataclass(frozen=True)
class RandomWindow:
    """One window a video; all starts that leave it full are equally likely. Hara's TemporalRandomCrop never takes the
    last of them, and here it is taken. Draws from torch's global generator."""

    frames: int
    stride: int = 1
    needs_counts: ClassVar[bool] = False

    def number(self, totals: np.ndarray | None) -> int:
        return 1

    def window(self, total: int, place: int) -> list[int]:
        last = max(0, total - span(self.frames, self.stride))
        return looped(int(torch.randint(last + 1, ())), total, self.frames, self.stride)


@dataclass(frozen=True)
class EvenWindows:
    """`windows` of a video, their starts spread evenly from its first frame to the last one that leaves a window full;
    a single one lies in the middle. Hara's TemporalEvenCrop has the same starts to within a frame, but takes fewer of a
    short video, which here counts as much as a long one."""

    windows: int
    frames: int
    stride: int = 1
    needs_counts: ClassVar[bool] = False

    def number(self, totals: np.ndarray | None) -> int:
        return self.windows

    def window(self, total: int, place: int) -> list[int]:
        last = max(0, total - span(self.frames, self.stride))
        start = last * place // (self.windows - 1) if self.windows > 1 else last // 2
        return looped(start, total, self.frames, self.stride)


@dataclass(frozen=True)
class AllWindows:
    """All windows of a video one after the other, none overlapping; the last one may be shorter, and is looped (Hara's
    TemporalSlidingWindow). A video whose frames cannot be counted has one, so that reading it says why."""

    frames: int
    stride: int = 1
    needs_counts: ClassVar[bool] = True

    def number(self, totals: np.ndarray | None) -> np.ndarray:
        return np.maximum(1, -(-totals // (self.frames * self.stride)))

    def window(self, total: int, place: int) -> list[int]:
        return looped(place * self.frames * self.stride, total, self.frames, self.stride)


def span(frames: int, stride: int) -> int:
    """From the first frame of a full window to its last, both counted."""
    return (frames - 1) * stride + 1


def looped(start: int, total: int, frames: int, stride: int) -> list[int]:
    """The frames of a window; total: of the video."""
    there = range(start, min(start + frames * stride, total), stride)
    return [there[place % len(there)] for place in range(frames)]
