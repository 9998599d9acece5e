"""Video files through PyAV: opened, indexed, decoded in the order in which their frames are shown. Without torch."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from itertools import islice, pairwise
from typing import BinaryIO

import av
import numpy as np
from av.stream import Discard, Disposition
from av.video.reformatter import VideoReformatter

from tdaf.errors import UnreadableSample
from tdaf.media import archive

Path = str | os.PathLike[str]

USUAL_FPS = Fraction(25)  # where a file does not say a rate, or one that no camera has
# "file:" because a colon in a name would be taken for a protocol; no list of addresses is followed
LOCAL = {"protocol_whitelist": "file"}
# whether rows become columns, and then whether up and down, left and right change places
Orientation = tuple[bool, bool, bool]
AS_IT_LIES = (False, False, False)
# containers that say when a frame is shown
STAMPED = {"mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm", "mpegts", "flv"}
DELAYED = {"h264", "hevc", "vvc"}  # decoded by FFmpeg with a delay that their packets do not tell
RIFF_SLACK = 16  # bytes; writers of AVI differ in what they count
# RFC 8794 and 9559: an element is an identifier, a size, and that many bytes; live recordings leave the size open
EBML, MATROSKA_SEGMENT, OPEN_END = b"\x1aE\xdf\xa3", b"\x18S\x80g", b"\xff" * 7
# IndexError is PyAV's, where a damaged transport stream turns out to have more streams than its header
DEMUX_ERRORS = (av.FFmpegError, IndexError)
_TO_RGB = VideoReformatter()  # keeps its tables from frame to frame


@dataclass(frozen=True)
class FrameIndex:
    """Where the key frames of a file lie.

    Args:
        frames: how many are to be shown, None where only decoding tells.
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


@dataclass(frozen=True)
class Survey:
    """What all of a file holds.

    frames: how many can be decoded, up to the first damage. fps: frames a second, the mean where the rate varies.
    times: of each frame, in seconds from the first one; None where they follow evenly, or are not known. fault: why the
    file holds less than it should; None where it is sound.
    """

    frames: int
    fps: Fraction
    times: list[float] | None
    fault: str | None

    def seconds(self, index: int) -> float:
        """When frame `index` is shown, after the first one; one more than the last gives the end."""
        if self.times is None:
            return float(index / self.fps)
        past = max(0, index - self.frames + 1)
        return self.times[index - past] + float(past / self.fps)


@contextmanager
def opened(path: Path, probe: bool = True) -> Iterator[tuple[av.container.InputContainer, av.VideoStream]]:
    """A video file while it is open: its container, and its first stream of pictures that is no cover image.

    probe: whether FFmpeg decodes a first frame for what the header may leave out. Without it mp4 files that have a
    frame table (`has_frame_table`) open in less than half the time; the size of their pictures is then only what they
    say. Other files are probed all the same. Raises UnreadableSample: no such file, empty, or no video.
    """
    try:
        size, _ = archive.about(path)
        if not archive.is_file(path):
            raise UnreadableSample(f"not a file ({path})")
        if not size:
            raise UnreadableSample(f"the file is empty ({path})")
        container = _open(path, probe)
    except (av.FFmpegError, OSError) as error:
        if isinstance(error, av.InvalidDataError) or error.errno == errno.EIO:
            raise UnreadableSample(f"no video, or its header is cut off or damaged ({path})") from error
        raise UnreadableSample(f"{error.strerror or error} ({path})") from error
    with container:
        stream = next(_picture_streams(container), None)
        if stream is None:
            names = {"audio": "sound", "video": "a cover image"}
            kinds = " and ".join(sorted({names.get(s.type, s.type) for s in container.streams})) or "a header"
            raise UnreadableSample(f"it has no pictures, only {kinds} ({path})")
        if stream.codec_context is None:
            raise UnreadableSample(f"no decoder for its pictures ({path})")
        # frame threads have been seen to hang, and more than one only pays for large pictures
        stream.thread_type, stream.codec_context.thread_count = "SLICE", 1
        for other in container.streams:
            if other is not stream:
                other.discard = Discard.all
        yield container, stream


def decode(
    path: Path,
    container: av.container.InputContainer,
    stream: av.VideoStream,
    promised: int | None = None,
) -> Iterator[av.VideoFrame]:
    """Every frame of an `opened` file, from its start. Raises UnreadableSample where it is damaged, holds no frame, or
    fewer than `promised`."""
    count = 0
    total = f" of {promised or stream.frames}" if promised or stream.frames else ""

    def damaged(reason: str = "") -> UnreadableSample:
        return UnreadableSample(f"damaged after {count}{total} frames{reason} ({path})")

    try:
        for packet in container.demux(stream):
            if packet.is_corrupt:
                raise damaged()
            for frame in packet.decode():
                if frame.is_corrupt:
                    raise damaged()
                yield frame
                count += 1
    except DEMUX_ERRORS as error:
        raise damaged(f": {getattr(error, 'strerror', error)}") from error
    if promised is not None and count < promised:
        raise UnreadableSample(f"cut off after {count}{total} frames ({path})")
    if not count:
        raise UnreadableSample(f"not one frame in it ({path})")


def count_frames(path: Path) -> int:
    """How many frames a file has, from its table or packets, and by decoding all of it only where these do not tell.
    Raises UnreadableSample: no video, no frame in it, or cut off."""
    with opened(path, probe=False) as (container, stream):
        frames = index_of(path, container, stream).frames
    return decode_whole(path) if frames is None else frames


def decode_whole(path: Path) -> int:
    """Decodes every frame and returns how many there are. Raises UnreadableSample: one is damaged or missing."""
    found = survey(path)
    if found.fault is not None:
        raise UnreadableSample(found.fault)
    return found.frames


def promised_frames(path: Path) -> int | None:
    """How many frames the packets say that there are; None where only decoding tells. Raises UnreadableSample."""
    with opened(path) as (container, stream):
        return index_of(path, container, stream).frames


def survey(path: Path) -> Survey:
    """Decodes a file as far as it is sound. This is what "whole" means to training, check_data and predict alike.
    Raises UnreadableSample: no video, or not one frame in it."""
    promised, faults, stamps, rate = None, [], [], USUAL_FPS
    try:
        promised = promised_frames(path)
    except UnreadableSample as error:
        faults.append(str(error))
    try:
        with opened(path) as (container, stream):
            rate = frame_rate(stream)
            for frame in decode(path, container, stream, promised):
                stamps.append(frame.time)
    except UnreadableSample as error:
        faults.append(str(error))
    fault = "; ".join(text.removesuffix(f" ({path})") for text in dict.fromkeys(faults)) + f" ({path})"
    if not stamps:
        raise UnreadableSample(fault)
    return Survey(len(stamps), rate, _uneven(stamps, float(rate)), fault if faults else None)


def _uneven(stamps: list[float | None], rate: float) -> list[float] | None:
    """Seconds from the first frame on, where they are known, rise, and are not those of an even `rate`."""
    if None in stamps or any(later <= earlier for earlier, later in pairwise(stamps)):
        return None
    times = [stamp - stamps[0] for stamp in stamps]
    even = all(abs(time - place / rate) < 0.5 / rate for place, time in enumerate(times))
    return None if even else times


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


def index_of(path: Path, container: av.container.InputContainer, stream: av.VideoStream) -> FrameIndex:
    """`frame_index`, with faults as UnreadableSample: also a file that ends too early, and one without a frame."""
    check_whole(path, stream)
    try:
        index = frame_index(container, stream)
    except DEMUX_ERRORS as error:
        raise UnreadableSample(f"cut off or damaged: {getattr(error, 'strerror', error)} ({path})") from error
    if index.frames == 0:
        raise UnreadableSample(f"not one frame in it ({path})")
    return index


def frame_rate(stream: av.VideoStream) -> Fraction:
    """Frames a second, the mean where the rate varies."""
    rates = (stream.average_rate, stream.guessed_rate)
    return next((Fraction(rate) for rate in rates if rate and 0 < rate <= 1000), USUAL_FPS)


def upright(frame: av.VideoFrame, width: int, height: int) -> np.ndarray:
    """RGB uint8 (height, width, 3), turned and mirrored as the file asks for: (width, height, 3) by a quarter turn."""
    pixels = np.empty((height, width, 3), np.uint8)
    to_rgb(frame, pixels)
    return as_shown(pixels, orientation(frame))


def to_rgb(frame: av.VideoFrame, out: np.ndarray) -> None:
    """The frame as it lies in the file, scaled to the size of `out`: uint8 (H, W, 3), contiguous."""
    height, width, _ = out.shape
    # with threads of its own it takes much longer
    plane = _TO_RGB.reformat(frame, width=width, height=height, format="rgb24", threads=1).planes[0]
    rows = np.frombuffer(plane, np.uint8).reshape(height, plane.line_size)
    out.reshape(height, 3 * width)[:] = rows[:, : 3 * width]  # rows are padded


def orientation(frame: av.VideoFrame) -> Orientation:
    """How the frame is to be shown, by its display matrix (ISO/IEC 14496-12, 8.5.2: pixel (x, y) is shown at x' = a x +
    c y, y' = b x + d y); turns in between become quarter ones."""
    matrix = frame.side_data.get("DISPLAYMATRIX")
    if matrix is None:
        return AS_IT_LIES
    a, b, _, c, d = np.frombuffer(bytes(matrix), np.int32)[:5].tolist()
    swapped = abs(b) + abs(c) > abs(a) + abs(d)
    return (True, b < 0, c < 0) if swapped else (False, d < 0, a < 0)


def as_shown(pixels: np.ndarray, how: Orientation) -> np.ndarray:
    """Frames (..., H, W, 3) turned and mirrored."""
    swapped, down, across = how
    pixels = pixels.swapaxes(-3, -2) if swapped else pixels
    return np.ascontiguousarray(pixels[..., :: -1 if down else 1, :: -1 if across else 1, :])


def has_frame_table(container: av.container.InputContainer, stream: av.VideoStream) -> bool:
    """Whether the file began or ended with a table of all frames, as mp4 files that are not in fragments do."""
    return "mp4" in container.format.name and 0 < len(stream.index_entries) == stream.frames


def check_whole(path: Path, stream: av.VideoStream) -> None:
    """Raises UnreadableSample where the file of an `opened` stream ends before its table of frames, or a matroska, webm
    or AVI header, says it does; no decoder tells where a format has no table."""
    length, _ = archive.about(path)
    end = max((entry.pos + entry.size for entry in stream.index_entries), default=0)
    with archive.open_file(path) as file:
        head = file.read(64)
    segment = head.find(MATROSKA_SEGMENT) + len(MATROSKA_SEGMENT)
    if head.startswith(b"RIFF"):
        end = int.from_bytes(head[4:8], "little") + 8 - RIFF_SLACK
    elif head.startswith(EBML) and head[segment : segment + 1] == b"\x01":  # a size of seven bytes follows
        size = head[segment + 1 : segment + 8]
        end = 0 if size == OPEN_END else segment + 8 + int.from_bytes(size, "big")
    if end > length:
        raise UnreadableSample(f"cut off: {end - length} bytes are missing at its end ({path})")


def _open(path: Path, probe: bool) -> av.container.InputContainer:
    is_member = archive.through(path) is not None

    def source() -> str | BinaryIO:
        return archive.open_file(path) if is_member else f"file:{os.fspath(path)}"

    with archive.open_file(path) as file:
        mp4 = file.read(8)[4:] == b"ftyp"
    if mp4 and not probe:
        # one packet is read, and none decoded
        options = {"options": {"skip_frame": "all"}, "container_options": LOCAL | {"probesize": "32"}}
        container = av.open(source(), **options, metadata_errors="ignore")
        if all(has_frame_table(container, stream) for stream in _picture_streams(container)):
            return container
        container.close()
    return av.open(source(), container_options=LOCAL, metadata_errors="ignore")


def _picture_streams(container: av.container.InputContainer) -> Iterator[av.VideoStream]:
    return (s for s in container.streams.video if not s.disposition & Disposition.attached_pic)
