"""Videos that a user gives to predict, cut into the windows that the network takes."""

from __future__ import annotations

from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import default_collate

from tasks.action.transforms import Transform
from tdaf.errors import UserError
from tdaf.media.files import Media
from tdaf.media.files import is_video
from tdaf.task import Batch


class Windows:
    """One sample a window: "input" uint8 ([V,] 3, T, H, W), "frames", its first one in the video and the one after its
    last, and the same in "seconds".

    Windows of `frames` frames, `stride` apart, cover each video one after the other; in the last one, where it is
    shorter, its frames are repeated. Raises UserError where there is no video among `paths`; of other files it says so
    in the faults of `pictures`.
    """

    skipped = 0
    notes: dict[str, int] = {}
    groups = None

    def __init__(self, paths: list[Path], transform: Transform, frames: int, stride: int) -> None:
        videos = [path for path in paths if is_video(path)]
        if not videos:
            raise UserError(f"input: there is no video among {len(paths)} files; this checkpoint wants videos")
        self.pictures, self.transform, self.frames, self.stride = Media(videos), transform, frames, stride
        for path in paths:
            if not is_video(path):
                self.pictures.faults[path] = "not a video"
        self.windows: list[tuple[int, int, int]] = []  # pictures: the first of the video, of the window, after its last
        self.rates: dict[Path, float] = {}  # frames a second
        for path, group in groupby(range(len(self.pictures)), self.pictures.file):
            places, span = list(group), frames * stride
            self.rates[path] = float(self.pictures.fps(path))
            self.windows += [(places[0], first, min(first + span, places[-1] + 1)) for first in places[::span]]

    def __len__(self) -> int:
        return len(self.windows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        start, first, end = self.windows[index]
        found = [self.pictures.read(place) for place in range(first, end, self.stride)]
        clip = torch.stack([found[place % len(found)] for place in range(self.frames)])
        ends, rate = torch.tensor([first - start, end - start]), self.rates[self.pictures.file(first)]
        return {"input": self.transform(clip), "frames": ends, "seconds": ends.double() / rate}

    def name(self, index: int) -> str:
        start, first, end = self.windows[index]
        return f"{self.pictures.file(first)}, frames {first - start} to {end - start - 1}"

    def shown(self, index: int) -> range:
        return range(*self.windows[index][1:])

    def collate(self, samples: list[dict[str, Any]]) -> Batch:
        return default_collate(samples)
