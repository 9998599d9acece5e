"""Some frames of a video to pixels, exactly those that a plain decode of the whole file would give."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, islice

import av
import numpy as np
import torch
from av.video.reformatter import VideoReformatter
from torch import Tensor

from tdaf.errors import UnreadableSample
from tdaf.media.container import Path, opened
from tdaf.media.cut import missing_bytes
from tdaf.media.droppable import droppable
from tdaf.media.frame_index import FrameIndex, frame_index, leaders

# The frames wanted, counted from 0, in any order and also repeated; or what chooses them, told how many there are.
Wanted = Sequence[int] | Callable[[int], Sequence[int]]

MARGIN = 32  # packets; more than the distance by which an encoder changes the order of frames
_CONVERTER = VideoReformatter()  # keeps its tables from frame to frame; with its own threads it takes much longer


class _Doubt(Exception):
    """A key frame did not lead to the frames that the index promised."""


@dataclass(frozen=True)
class Facts:
    """Of a video. width, height: in pixels, as shown. fps: frames a second, the mean where `varies`. duration: in
    seconds as the file says, None where it does not."""

    frames: int
    width: int
    height: int
    fps: float | None
    duration: float | None
    codec: str
    varies: bool


def read_clip(path: Path, wanted: Wanted, short_side: int | None = None) -> Tensor:
    """uint8 RGB (T, 3, H, W), the memory behind it (T, H, W, 3). short_side: scaled to it while colours are converted.

    Decoding begins at the last key frame before the clip. Where a file's time stamps do not say for certain which frame
    is which (h264 in AVI has none), or did not keep what they promised, it begins at the start of the file. A turn by a
    multiple of 90 degrees that the file asks for is made, as players make it; mirroring is not, and pixels that are
    not square are taken as square. Where the size changes on the way, frames are scaled to what the header says.
    Raises UnreadableSample when one of the frames cannot be decoded; no frame ever stands for another.
    """
    with opened(path) as (container, stream):
        if missing_bytes(path):
            decode_whole(path)  # tells how much is there
        index = _indexed(path, container, stream)
        total = index.frames
        if total is None and callable(wanted):
            total = count_frames(path)
        if total is not None:
            _some(path, total)
        places = list(wanted(total) if callable(wanted) else wanted)
        if total is not None and places and max(places) >= total:
            raise UnreadableSample(f"it has {total} frames, and so no frame {max(places)} ({path})")
        try:
            return _Clip(places, stream, short_side).filled(_from_key(container, stream, index, places))
        except (_Doubt, av.FFmpegError):
            pass
    with opened(path) as (container, stream):
        try:
            return _Clip(places, stream, short_side).filled(_from_start(path, container, stream, index.frames))
        except _Doubt as error:
            raise UnreadableSample(f"it ends before frame {max(places)} ({path})") from error


def count_frames(path: Path) -> int:
    """Read from the file's table or packets, and by decoding all of it only where these do not tell.
    Raises UnreadableSample."""
    with opened(path) as (container, stream):
        frames = None if missing_bytes(path) else _indexed(path, container, stream).frames
    return decode_whole(path) if frames is None else _some(path, frames)


def decode_whole(path: Path) -> int:
    """Decodes every frame and returns how many there are. UnreadableSample where one is damaged or missing, or where
    the file ends before its container says so."""
    with opened(path) as (container, stream):
        promised = _indexed(path, container, stream).frames
    with opened(path) as (container, stream):
        frames = sum(1 for _ in _from_start(path, container, stream, promised))
    missing = missing_bytes(path)
    if missing:
        raise UnreadableSample(f"cut off: {missing} bytes and all after frame {frames} are missing ({path})")
    return _some(path, frames)


def inspect(path: Path) -> Facts:
    """Raises UnreadableSample, also where the first frame cannot be decoded."""
    frames = count_frames(path)
    with opened(path) as (container, stream):
        _, first = next(_from_start(path, container, stream, frames))
        sides = (first.width, first.height)[:: -1 if _turns(first) % 2 else 1]
        rate = stream.average_rate or stream.guessed_rate
        if stream.duration is not None:
            duration = float(stream.duration * stream.time_base)
        else:
            duration = None if container.duration is None else container.duration / av.time_base
        codec, varies = stream.codec_context.name, _indexed(path, container, stream).varies
    return Facts(frames, *sides, float(rate) if rate else None, duration, codec, varies)


def _indexed(path: Path, container: av.container.InputContainer, stream: av.VideoStream) -> FrameIndex:
    try:
        return frame_index(container, stream)
    except av.FFmpegError as error:
        raise UnreadableSample(f"cut off or damaged: {error.strerror} ({path})") from error


def _some(path: Path, frames: int) -> int:
    if not frames:
        raise UnreadableSample(f"not one frame in it ({path})")
    return frames


def _from_key(
    container: av.container.InputContainer, stream: av.VideoStream, index: FrameIndex, places: Sequence[int]
) -> Iterator[tuple[int, av.VideoFrame]]:
    """Frames with their numbers, from the key frame that the first of `places` depends on to the last of them."""
    first, last = min(places), max(places)
    key, before = index.key(first), first + 1
    while before > first:
        if key < 0:
            raise _Doubt
        packets = _packets_from(container, stream, index, key)
        head, leading = leaders(packets)
        start, before = head[0].pts, int(index.before[key]) + leading
        key -= 1
    group = [*head, *islice(packets, max(0, last - before) + MARGIN)]
    if any(packet.size and (packet.pts is None or packet.is_corrupt) for packet in group):
        raise _Doubt
    group = [packet for packet in group if packet.size]
    shown = sorted(packet.pts for packet in group if packet.pts >= start and not packet.is_discard)
    numbers = {pts: number for number, pts in enumerate(shown, before)}
    end = max((place for place, p in enumerate(group) if first <= numbers.get(p.pts, -1) <= last), default=-1)
    if end < 0 or len(numbers) < len(shown):
        raise _Doubt
    wanted = (p for p in group[: end + 1] if numbers.get(p.pts, first) >= first or not droppable(p, stream))
    # None: what the decoder holds back to sort it, without decoding more
    for packet in chain(wanted, [None]):
        for frame in stream.decode(packet):
            if frame.is_corrupt:
                raise _Doubt
            if frame.pts in numbers:
                yield numbers[frame.pts], frame


def _packets_from(
    container: av.container.InputContainer, stream: av.VideoStream, index: FrameIndex, key: int
) -> Iterator[av.Packet]:
    """The packets of the stream from that key frame on."""
    stamp = int(index.stamps[key])
    for ahead in dict.fromkeys((index.ahead, 0)):  # a seek that goes too far is made again
        container.seek(stamp + ahead, stream=stream)
        packets = container.demux(stream)
        for packet in packets:
            at = getattr(packet, index.by)
            if packet.size and at == stamp and packet.pts is not None:
                yield packet
                yield from packets
                return
            if at is None or at > stamp:
                break
    raise _Doubt


def _from_start(
    path: Path, container: av.container.InputContainer, stream: av.VideoStream, promised: int | None
) -> Iterator[tuple[int, av.VideoFrame]]:
    """All frames with their numbers; UnreadableSample where the file is damaged, or has fewer than it promised."""
    frames = 0
    promise = "" if promised is None else f" of {promised}"
    try:
        for packet in container.demux(stream):
            if packet.is_corrupt:
                raise UnreadableSample(f"damaged or cut off: only {frames}{promise} frames can be decoded ({path})")
            for frame in packet.decode():
                if frame.is_corrupt:
                    raise UnreadableSample(f"frame {frames}{promise} is damaged ({path})")
                yield frames, frame
                frames += 1
    except av.FFmpegError as error:
        reason = f"only {frames}{promise} frames can be decoded: {error.strerror}"
        raise UnreadableSample(f"{reason} ({path})") from error
    if promised is not None and frames < promised:
        raise UnreadableSample(f"cut off: only {frames} of {promised} frames can be decoded ({path})")


class _Clip:
    """Collects the frames of a clip as they are decoded."""

    def __init__(self, places: list[int], stream: av.VideoStream, short_side: int | None) -> None:
        self.places, self.short_side = places, short_side
        self.rows = {place: row for row, place in enumerate(sorted(set(places)))}
        self.size = (stream.codec_context.width, stream.codec_context.height)
        self.turns = 0

    def filled(self, frames: Iterator[tuple[int, av.VideoFrame]]) -> Tensor:
        """Takes from `frames` until it has what it needs; _Doubt where that was not in them."""
        pixels, missing = None, set(self.rows)
        for number, frame in frames:
            if number not in missing:
                continue
            if pixels is None:
                width, height = self._scaled(frame)
                pixels = np.empty((len(self.rows), height, width, 3), np.uint8)
                self.turns = _turns(frame)
            self._convert(frame, pixels[self.rows[number]])
            missing.remove(number)
            if not missing:
                break
        if pixels is None or missing:
            raise _Doubt
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


def _turns(frame: av.VideoFrame) -> int:
    """Quarter turns against the clock that the frame is to be shown with."""
    return round(frame.rotation / 90) % 4
