"""The frames of a clip, put together as they are decoded."""

from __future__ import annotations

from collections.abc import Iterator

import av
import numpy as np
import torch
from av.video.reformatter import VideoReformatter
from torch import Tensor

_CONVERTER = VideoReformatter()  # keeps its tables from frame to frame; with its own threads it takes much longer


class Doubt(Exception):
    """What was decoded is not what the file's header or index promised."""


class Collected:
    """places: the frames wanted, by number. short_side: as in `read_clip`. sized: whether the stream's size is surely
    that of its pictures; where it is not, and one has another, that is a `Doubt`."""

    def __init__(self, places: list[int], stream: av.VideoStream, short_side: int | None, sized: bool = True) -> None:
        self.places, self.short_side, self.sized = places, short_side, sized
        self.rows = {place: row for row, place in enumerate(sorted(set(places)))}
        self.size = (stream.codec_context.width, stream.codec_context.height)
        self.turns = 0

    def filled(self, frames: Iterator[tuple[int, av.VideoFrame]]) -> Tensor:
        """uint8 (T, 3, H, W). Takes from `frames`, each with its number, until it has what it needs; raises Doubt where
        that was not in them."""
        pixels, missing = None, set(self.rows)
        for number, frame in frames:
            if number not in missing:
                continue
            if not self.sized and (frame.width, frame.height) != self.size:
                raise Doubt
            if pixels is None:
                width, height = self._scaled(frame)
                pixels = np.empty((len(self.rows), height, width, 3), np.uint8)
                self.turns = turns(frame)
            self._convert(frame, pixels[self.rows[number]])
            missing.remove(number)
            if not missing:
                break
        if pixels is None or missing:
            raise Doubt
        if self.places != list(self.rows):
            pixels = pixels[[self.rows[place] for place in self.places]]
        if self.turns:
            pixels = np.ascontiguousarray(np.rot90(pixels, self.turns, axes=(1, 2)))
        return torch.from_numpy(pixels).permute(0, 3, 1, 2)

    def _scaled(self, frame: av.VideoFrame) -> tuple[int, int]:
        width, height = self.size if all(self.size) else (frame.width, frame.height)
        if self.short_side is None:
            return width, height
        short = min(width, height)
        return width * self.short_side // short, height * self.short_side // short

    def _convert(self, frame: av.VideoFrame, out: np.ndarray) -> None:
        height, width, _ = out.shape
        rgb = _CONVERTER.reformat(frame, width=width, height=height, format="rgb24", threads=1)
        plane = rgb.planes[0]
        # rows are padded
        out[:] = np.frombuffer(plane, np.uint8).reshape(height, plane.line_size)[:, : 3 * width].reshape(out.shape)


def turns(frame: av.VideoFrame) -> int:
    """Quarter turns against the clock that the frame is to be shown with."""
    return round(frame.rotation / 90) % 4
