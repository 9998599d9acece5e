"""Frames of a video file to pixels: all in their order (`Video`), or some (`read_clip`), exactly those that a plain
decode of the whole file would give. And pixels to a file (`VideoWriter`).

An index says which frame lies where without decoding anything. Frames are counted as they are shown, from 0, without
those that an edit list cuts away, which is how a plain decode numbers them. Time stamps are only compared, never
computed with, so a variable rate is as exact as a constant one.
"""

from __future__ import annotations

import os
import pathlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from fractions import Fraction
from functools import cached_property
from itertools import chain, islice
from typing import Any

import av
import numpy as np
import torch
from av.video.reformatter import VideoReformatter
from torch import Tensor

from tdaf.errors import UnreadableSample
from tdaf.media import video
from tdaf.media.video import FrameIndex, Survey

Path = str | os.PathLike[str]
# The frames to read, counted from 0, in any order and also repeated; or what chooses them, given how many there are.
FrameChoice = Sequence[int] | Callable[[int], Sequence[int]]

CLOCK = Fraction(1, 90_000)  # seconds; MPEG's
MARGIN = 32  # packets; more than the distance by which an encoder changes the order of frames
_CONVERTER = VideoReformatter()  # keeps its tables; one for reading too would lose them where both go in turn


class IndexMismatch(Exception):
    """What was decoded is not what the file's header or index promised."""


class Video:
    """The frames of a video file in the order in which they are shown.

    Quarter turns and mirroring that the file asks for are made, as players make them; pixels that are not square are
    left as they are. Where the size changes on the way, frames are scaled to the first one's. The file is opened when
    it is first used, in each process anew; UnreadableSample is raised then.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._frames: Any = None  # a generator of frames
        self._next, self._size, self._process = 0, (0, 0), 0

    def __len__(self) -> int:
        """How many frames can be decoded, up to the first damage."""
        return self.survey.frames

    @cached_property
    def survey(self) -> Survey:
        """What a file says of its length is often missing or wrong, so all of it is decoded, once."""
        return video.survey(self.path)

    def read(self, index: int) -> Tensor:
        """Frame `index`, from 0, as uint8 RGB (3, H, W). Going on from the last one read is fast; going back begins at
        the start again."""
        if self._frames is None or index < self._next or self._process != os.getpid():
            self.close()
            self._frames, self._process = _frames_of(self.path), os.getpid()
        for frame in self._frames:
            if self._next == 0:
                self._size = (frame.width, frame.height)
            self._next += 1
            if self._next > index:
                return torch.from_numpy(video.upright(frame, *self._size)).permute(2, 0, 1)
        raise UnreadableSample(f"it has {self._next} frames, and so no frame {index} ({self.path})")

    def close(self) -> None:
        if self._frames is not None:
            self._frames.close()
        self._frames, self._next = None, 0

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_frames": None, "_next": 0}


class VideoWriter:
    """Frames to an mp4 file (h264, 4:2:0), which appears under its name when all is written, and not if that fails.

    A context manager. Odd sizes get another row or column, the last one again. Frames of another size than the first
    are scaled to it. No frame, no file. fps: frames a second, where `write` is not told when one is shown. Raises
    OSError where the disk refuses.
    """

    def __init__(self, path: Path, fps: Fraction | float) -> None:
        self.path = pathlib.Path(path)
        self.fps = Fraction(fps).limit_denominator(100_000)
        self._part = self.path.with_name(f".{self.path.name}.{os.getpid()}")
        self._container: av.container.OutputContainer | None = None
        self._written = 0

    def write(self, picture: Tensor, at: float | None = None) -> None:
        """picture: uint8 RGB (3, H, W). at: seconds from the beginning, rising; of all frames or of none."""
        pixels = picture.permute(1, 2, 0).numpy()
        odd = [(0, side % 2) for side in pixels.shape[:2]]
        frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(np.pad(pixels, [*odd, (0, 0)], "edge")), "rgb24")
        try:
            if self._container is None:
                self._container = av.open(f"file:{self._part}", "w", format="mp4")
                options = {"preset": "veryfast", "crf": "20"}
                self._stream = self._container.add_stream("libx264", rate=self.fps, options=options)
                self._stream.width, self._stream.height = frame.width, frame.height
                self._stream.pix_fmt = "yuv420p"
                self._stream.codec_context.time_base = 1 / self.fps if at is None else CLOCK
            size = {"width": self._stream.width, "height": self._stream.height}
            frame = _CONVERTER.reformat(frame, **size, format="yuv420p", threads=1)
            frame.time_base = self._stream.codec_context.time_base
            frame.pts = self._written if at is None else round(at / frame.time_base)
            self._container.mux(self._stream.encode(frame))
        except av.FFmpegError as error:
            raise OSError(error.errno, error.strerror, str(self.path)) from error
        self._written += 1

    def __enter__(self) -> VideoWriter:
        return self

    def __exit__(self, kind: type | None, *_: object) -> None:
        if self._container is None:
            return
        try:
            if kind is None:
                self._container.mux(self._stream.encode())
            self._container.close()
            if kind is None:
                os.replace(self._part, self.path)
        except av.FFmpegError as error:
            raise OSError(error.errno, error.strerror, str(self.path)) from error
        finally:
            self._part.unlink(missing_ok=True)


def read_clip(path: Path, frames: FrameChoice, short_side: int | None = None) -> Tensor:
    """Reads frames of a video file, turned as `Video`'s; of another size than the header says, they are scaled to that.

    Decoding begins at the last key frame before the clip. Where a file's time stamps do not say for certain which frame
    is which (h264 in AVI has none), or did not keep what they promised, it begins at the start of the file.

    Args:
        frames: which frames, from 0, in any order and also repeated; or a function that chooses them, called once with
            the number of frames.
        short_side: pixels of the frames' short side, to which they are scaled while colours are converted.

    Returns:
        uint8 RGB (T, 3, H, W), the memory behind it (T, H, W, 3).

    Raises:
        UnreadableSample: one of the frames cannot be decoded, or the file is cut off; no frame ever stands for another.
    """
    with video.opened(path, probe=False) as (container, stream):
        index = video.index_of(path, container, stream)
        numbers = _chosen(path, frames, index.frames)
        # a header that was not probed may lie of the size
        size = (
            (stream.codec_context.width, stream.codec_context.height)
            if video.has_frame_table(container, stream)
            else None
        )
        try:
            return _collect(_from_key_frame(container, stream, index, numbers), numbers, stream, short_side, size)
        except (IndexMismatch, *video.DEMUX_ERRORS):
            pass
    with video.opened(path) as (container, stream):
        try:
            return _collect(enumerate(video.decode(path, container, stream, index.frames)), numbers, stream, short_side)
        except IndexMismatch as error:
            raise UnreadableSample(f"it ends before frame {max(numbers)} ({path})") from error


def _chosen(path: Path, frames: FrameChoice, total: int | None) -> list[int]:
    """total: of frames, None where only decoding tells."""
    if total is None and callable(frames):
        total = video.decode_whole(path)
    numbers = list(frames(total) if callable(frames) else frames)
    if total is not None and numbers and max(numbers) >= total:
        raise UnreadableSample(f"it has {total} frames, and so no frame {max(numbers)} ({path})")
    return numbers


def _from_key_frame(
    container: av.container.InputContainer, stream: av.VideoStream, index: FrameIndex, numbers: Sequence[int]
) -> Iterator[tuple[int, av.VideoFrame]]:
    """Frames with their numbers, from the key frame that the first of `numbers` depends on to the last of them."""
    first, last = min(numbers), max(numbers)
    key = int(np.searchsorted(index.before, first, side="right"))  # the one after it
    start_number = first + 1
    while start_number > first:
        # the frames that lead a key frame's group, shown before it though they come behind it in the file, belong to
        # the group before
        key -= 1
        if key < 0:
            raise IndexMismatch
        before = int(index.before[key])
        packets = list(islice(_packets_from(container, stream, index, key), last - before + MARGIN))
        if any(packet.size and (packet.pts is None or packet.is_corrupt) for packet in packets):
            raise IndexMismatch
        packets = [packet for packet in packets if packet.size]
        start = packets[0].pts
        start_number = before + sum(packet.pts < start and not packet.is_discard for packet in packets)
    shown = sorted(packet.pts for packet in packets if packet.pts >= start and not packet.is_discard)
    number_of = {pts: number for number, pts in enumerate(shown, start_number)}
    needed = set(numbers)
    end = max((place for place, packet in enumerate(packets) if number_of.get(packet.pts) in needed), default=-1)
    if end < 0 or len(number_of) < len(shown):
        raise IndexMismatch
    to_decode = [
        p for p in packets[: end + 1] if number_of.get(p.pts, first) in needed or not _is_disposable(p, stream)
    ]
    # None: what the decoder holds back to sort it, without decoding more
    for packet in (*to_decode, None):
        for frame in stream.decode(packet):
            if frame.is_corrupt:
                raise IndexMismatch
            if frame.pts in number_of:
                yield number_of[frame.pts], frame


def _packets_from(
    container: av.container.InputContainer, stream: av.VideoStream, index: FrameIndex, key: int
) -> Iterator[av.Packet]:
    """The packets of the stream from that key frame on."""
    stamp = int(index.stamps[key])
    container.seek(stamp + index.seek_offset, stream=stream)
    packets = container.demux(stream)
    for packet in packets:
        at = getattr(packet, index.kind)
        if packet.size and at == stamp and packet.pts is not None:
            return chain([packet], packets)
        if at is None or at > stamp:
            break
    raise IndexMismatch


def _is_disposable(packet: av.Packet, stream: av.VideoStream) -> bool:
    """Whether no other frame is predicted from this one, so that it need not be decoded where it is not wanted; told
    of H.264 with lengths before its units (ISO/IEC 14496-15): each slice has a nal_ref_idc of 0 (ITU-T H.264, 7.4.1),
    and no unit brings parameters. FFmpeg's own skip_frame says nothing of packets that it cannot decode."""
    extra = stream.codec_context.extradata
    if stream.codec_context.name != "h264" or not extra or extra[0] != 1:
        return False
    data, width, at, has_slice = bytes(packet), (extra[4] & 3) + 1, 0, False
    while at + width < len(data):
        header = data[at + width]
        is_slice, is_reference, is_parameters = header & 31 in (1, 2, 5), header >> 5 & 3 > 0, header & 31 in (7, 8)
        if is_parameters or (is_slice and is_reference):
            return False
        has_slice |= is_slice
        at += width + int.from_bytes(data[at : at + width], "big")
    return has_slice


def _collect(
    frames: Iterable[tuple[int, av.VideoFrame]],
    numbers: list[int],
    stream: av.VideoStream,
    short_side: int | None,
    size: tuple[int, int] | None = None,
) -> Tensor:
    """uint8 (T, 3, H, W): `numbers` of the numbered frames, of which it takes until it has all.

    Raises IndexMismatch where that was not in them, or one is not of `size`, (width, height), where that is given."""
    width, height = stream.codec_context.width, stream.codec_context.height  # before a frame changes them
    rows = {number: row for row, number in enumerate(sorted(set(numbers)))}
    pixels, missing, how = None, set(rows), video.AS_IT_LIES
    for number, frame in frames:
        if number not in missing:
            continue
        if size is not None and (frame.width, frame.height) != size:
            raise IndexMismatch
        if pixels is None:
            width, height = width or frame.width, height or frame.height
            if short_side is not None:
                short = min(width, height)
                width, height = width * short_side // short, height * short_side // short
            pixels, how = np.empty((len(rows), height, width, 3), np.uint8), video.orientation(frame)
        video.to_rgb(frame, pixels[rows[number]])
        missing.remove(number)
        if not missing:
            break
    if pixels is None or missing:
        raise IndexMismatch
    if numbers != list(rows):
        pixels = pixels[[rows[number] for number in numbers]]
    pixels = video.as_shown(pixels, how)
    return torch.from_numpy(pixels).permute(0, 3, 1, 2)


def _frames_of(path: Path) -> Iterator[av.VideoFrame]:
    with video.opened(path) as (container, stream):
        yield from video.decode(path, container, stream)
