"""Some frames of a video file to pixels, exactly those that a plain decode of the whole file would give.

An index says which frame lies where without decoding anything. Frames are counted as they are shown, from 0, without
those that an edit list cuts away, which is how a plain decode numbers them. Time stamps are only compared, never
computed with, so a variable rate is as exact as a constant one.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, islice

import av
import numpy as np
import torch
from torch import Tensor

from tdaf.errors import UnreadableSample
from tdaf.media.video import DEMUX_ERRORS, check_whole, decode, has_frame_table, opened, quarter_turns, to_rgb

Path = str | os.PathLike[str]
# The frames to read, counted from 0, in any order and also repeated; or what chooses them, given how many there are.
FrameChoice = Sequence[int] | Callable[[int], Sequence[int]]

MARGIN = 32  # packets; more than the distance by which an encoder changes the order of frames
# containers that say when a frame is shown
STAMPED = {"mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm", "mpegts", "flv"}
DELAYED = {"h264", "hevc", "vvc"}  # decoded by FFmpeg with a delay that their packets do not tell


class IndexMismatch(Exception):
    """What was decoded is not what the file's header or index promised."""


@dataclass(frozen=True)
class FrameIndex:
    """Where the key frames of a file lie.

    Args:
        frames: how many frames are to be shown, None where only decoding tells.
        before: of each key frame, the frames to be shown that precede it in the file. Without any key frame the file
            can only be read from its start.
        stamps: of each key frame, its time stamp in the stream's units.
        kind: of these stamps, "dts" or "pts".
        seek_offset: what a seek adds to a stamp, as FFmpeg takes a time to seek in mp4 for one of presentation.
    """

    frames: int | None = None
    before: Sequence[int] = ()
    stamps: Sequence[int] = ()
    kind: str = "pts"
    seek_offset: int = 0


def read_clip(path: Path, frames: FrameChoice, short_side: int | None = None) -> Tensor:
    """Reads frames of a video file.

    Decoding begins at the last key frame before the clip. Where a file's time stamps do not say for certain which frame
    is which (h264 in AVI has none), or did not keep what they promised, it begins at the start of the file. A turn by a
    multiple of 90 degrees that the file asks for is made, as players make it; mirroring is not, and pixels that are
    not square are taken as square. Where the size changes on the way, frames are scaled to what the header says.

    Args:
        path: of the file.
        frames: which frames, from 0, in any order and also repeated; or a function that chooses them, called once with
            the number of frames.
        short_side: pixels of the frames' short side, to which they are scaled while colours are converted.

    Returns:
        uint8 RGB (T, 3, H, W), the memory behind it (T, H, W, 3).

    Raises:
        UnreadableSample: one of the frames cannot be decoded, or the file is cut off; no frame ever stands for another.
    """
    with opened(path, probe=False) as (container, stream):
        index = _index(path, container, stream)
        numbers = _chosen(path, frames, index.frames)
        # a header that was not probed may lie of the size
        size = (stream.codec_context.width, stream.codec_context.height) if has_frame_table(container, stream) else None
        try:
            return _collect(_from_key_frame(container, stream, index, numbers), numbers, stream, short_side, size)
        except (IndexMismatch, *DEMUX_ERRORS):
            pass
    with opened(path) as (container, stream):
        try:
            return _collect(enumerate(decode(path, container, stream, index.frames)), numbers, stream, short_side)
        except IndexMismatch as error:
            raise UnreadableSample(f"it ends before frame {max(numbers)} ({path})") from error


def count_frames(path: Path) -> int:
    """How many frames a file has, from its table or packets, and by decoding all of it only where these do not tell.

    Raises:
        UnreadableSample: no video, no frame in it, or cut off.
    """
    with opened(path, probe=False) as (container, stream):
        frames = _index(path, container, stream).frames
    return decode_whole(path) if frames is None else frames


def decode_whole(path: Path) -> int:
    """Decodes every frame and returns how many there are.

    Raises:
        UnreadableSample: one is damaged or missing, or the file ends before its container says so.
    """
    with opened(path) as (container, stream):
        promised = _index(path, container, stream).frames
    with opened(path) as (container, stream):
        return sum(1 for _ in decode(path, container, stream, promised))


def frame_index(container: av.container.InputContainer, stream: av.VideoStream) -> FrameIndex:
    """From the table that an mp4 file begins or ends with, else from the headers of all packets, which reads the file
    once. The container stands anywhere afterwards. Raises av.FFmpegError where the packets cannot be read."""
    if has_frame_table(container, stream):
        entries = stream.index_entries
        # one at a time: hundreds of small objects at once set off Python's search for garbage
        stamps = np.fromiter((entry.timestamp for entry in entries), np.int64, len(entries))
        keys = np.fromiter((entry.is_keyframe for entry in entries), bool, len(entries))
        shown = np.fromiter((not entry.is_discard for entry in entries), bool, len(entries))
        (pts, dts), *second = [(packet.pts, packet.dts) for packet in islice(container.demux(stream), 2)]
        if pts is None or dts is None or any(later is not None and later < pts for later, _ in second):
            return FrameIndex()
        kind, offset = "dts", pts - dts
    else:
        packets = [(p.pts, p.is_keyframe, not p.is_discard) for p in container.demux(stream) if p.size]
        times = [pts for pts, _, shown in packets if shown or pts is None]
        if not _are_shown_at(times, container.format.name, stream.codec_context.name):
            return FrameIndex()
        stamps, keys, shown = map(np.array, zip(*packets, strict=True))
        kind, offset = "pts", 0
    before = np.cumsum(shown) - shown
    return FrameIndex(int(shown.sum()), before[keys], stamps[keys], kind, offset)


def _are_shown_at(pts: list[int | None], container: str, codec: str) -> bool:
    """Whether packets carry the time at which their frame is shown. AVI knows no such time: FFmpeg fills it in, rightly
    where frames are shown in the order of their packets and the decoder's delay is known, wrongly for h264."""
    if not pts or None in pts or len(set(pts)) < len(pts) or min(pts) < pts[0]:
        return False
    return container in STAMPED or (codec not in DELAYED and pts == sorted(pts))


def _index(path: Path, container: av.container.InputContainer, stream: av.VideoStream) -> FrameIndex:
    check_whole(path, stream)
    try:
        index = frame_index(container, stream)
    except DEMUX_ERRORS as error:
        raise UnreadableSample(f"cut off or damaged: {getattr(error, 'strerror', error)} ({path})") from error
    if index.frames == 0:
        raise UnreadableSample(f"not one frame in it ({path})")
    return index


def _chosen(path: Path, frames: FrameChoice, total: int | None) -> list[int]:
    """total: of frames, None where only decoding tells."""
    if total is None and callable(frames):
        total = decode_whole(path)
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
    pixels, missing, turns = None, set(rows), 0
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
            pixels, turns = np.empty((len(rows), height, width, 3), np.uint8), quarter_turns(frame)
        to_rgb(frame, pixels[rows[number]])
        missing.remove(number)
        if not missing:
            break
    if pixels is None or missing:
        raise IndexMismatch
    if numbers != list(rows):
        pixels = pixels[[rows[number] for number in numbers]]
    if turns:
        pixels = np.ascontiguousarray(np.rot90(pixels, turns, axes=(1, 2)))
    return torch.from_numpy(pixels).permute(0, 3, 1, 2)
