"""Some frames of a video to pixels, exactly those that a plain decode of the whole file would give."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, islice

import av
from torch import Tensor

from tdaf.errors import UnreadableSample
from tdaf.media.collected import Collected, Doubt, turns
from tdaf.media.container import Path, opened, whole_table
from tdaf.media.cut import missing_bytes
from tdaf.media.droppable import droppable
from tdaf.media.frame_index import FrameIndex, frame_index, leaders

# The frames wanted, counted from 0, in any order and also repeated; or what chooses them, told how many there are.
Wanted = Sequence[int] | Callable[[int], Sequence[int]]

MARGIN = 32  # packets; more than the distance by which an encoder changes the order of frames


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
    places, promised = None, None
    for tried in (False, True):
        with opened(path, tried) as (container, stream):
            if missing_bytes(path):
                decode_whole(path)  # tells how much is there
            index = _indexed(path, container, stream)
            if places is None:
                places, promised = _places(path, wanted, index.frames), index.frames
            sized = tried or not whole_table(container, stream)
            try:
                return Collected(places, stream, short_side, sized).filled(_from_key(container, stream, index, places))
            except (Doubt, av.FFmpegError):
                if sized:
                    break  # opening it with a first frame decoded would change nothing
    with opened(path) as (container, stream):
        try:
            return Collected(places, stream, short_side).filled(_from_start(path, container, stream, promised))
        except Doubt as error:
            raise UnreadableSample(f"it ends before frame {max(places)} ({path})") from error


def count_frames(path: Path) -> int:
    """Read from the file's table or packets, and by decoding all of it only where these do not tell.
    Raises UnreadableSample."""
    with opened(path, tried=False) as (container, stream):
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
        sides = (first.width, first.height)[:: -1 if turns(first) % 2 else 1]
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


def _places(path: Path, wanted: Wanted, total: int | None) -> list[int]:
    """total: of frames, None where only decoding tells."""
    if total is None and callable(wanted):
        total = count_frames(path)
    if total is not None:
        _some(path, total)
    places = list(wanted(total) if callable(wanted) else wanted)
    if total is not None and places and max(places) >= total:
        raise UnreadableSample(f"it has {total} frames, and so no frame {max(places)} ({path})")
    return places


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
            raise Doubt
        packets = _packets_from(container, stream, index, key)
        head, leading = leaders(packets)
        start, before = head[0].pts, int(index.before[key]) + leading
        key -= 1
    group = [*head, *islice(packets, max(0, last - before) + MARGIN)]
    if any(packet.size and (packet.pts is None or packet.is_corrupt) for packet in group):
        raise Doubt
    group = [packet for packet in group if packet.size]
    shown = sorted(packet.pts for packet in group if packet.pts >= start and not packet.is_discard)
    numbers = {pts: number for number, pts in enumerate(shown, before)}
    needed = set(places)
    end = max((place for place, p in enumerate(group) if numbers.get(p.pts) in needed), default=-1)
    if end < 0 or len(numbers) < len(shown):
        raise Doubt
    wanted = (p for p in group[: end + 1] if numbers.get(p.pts, first) in needed or not droppable(p, stream))
    # None: what the decoder holds back to sort it, without decoding more
    for packet in chain(wanted, [None]):
        for frame in stream.decode(packet):
            if frame.is_corrupt:
                raise Doubt
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
    raise Doubt


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
