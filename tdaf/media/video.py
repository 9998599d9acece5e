"""Video files through PyAV: opened, decoded in the order in which their frames are shown, and written.

torch is imported only where a tensor is made: scripts/prepare_kinetics.py needs none, in any of its processes.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import av
import numpy as np
from av.stream import Discard, Disposition
from av.video.reformatter import VideoReformatter

from tdaf.errors import UnreadableSample
from tdaf.media import archive

if TYPE_CHECKING:
    from torch import Tensor

USUAL_FPS = Fraction(25)  # where a file does not say a rate, or one that no camera has
# "file:" because a colon in a name would be taken for a protocol; no list of addresses is followed
LOCAL = {"protocol_whitelist": "file"}
RIFF_SLACK = 16  # bytes; writers of AVI differ in what they count
# RFC 8794 and 9559: an element is an identifier, a size, and that many bytes; live recordings leave the size open
EBML, MATROSKA_SEGMENT, OPEN_END = b"\x1aE\xdf\xa3", b"\x18S\x80g", b"\xff" * 7
# IndexError is PyAV's, where a damaged transport stream turns out to have more streams than its header
DEMUX_ERRORS = (av.FFmpegError, IndexError)
# each keeps its tables from frame to frame; predict reads and writes in turn, and so one for both would lose them
_TO_RGB, _TO_YUV = VideoReformatter(), VideoReformatter()


class Video:
    """The frames of a video file in the order in which they are shown.

    A turn by 90, 180 or 270 degrees that the file asks for is made, as players make it; mirroring and pixels that are
    not square are left as they are. Where the size changes on the way, frames are scaled to the first one's. The file
    is opened when it is first used, in each process anew, and closed at its end and by `close`.

    Args:
        path: of the file. Nothing is read yet.

    Raises:
        UnreadableSample: by all but the constructor: a missing or empty file, one without a picture, or one that cannot
            be decoded.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self._counted: tuple[int, str | None] | None = None
        self._frames: Any = None  # a generator of frames
        self._next, self._size, self._process = 0, (0, 0), 0

    def __len__(self) -> int:
        """How many frames can be decoded, up to the first damage. What a file says of its length is often missing or
        wrong, so all of it is decoded, once, which takes about as long as reading it."""
        return self._count()[0]

    @property
    def fault(self) -> str | None:
        """Why the file holds less than it should; None where it is sound."""
        return self._count()[1]

    @property
    def fps(self) -> Fraction:
        """Frames a second, the mean where the rate varies."""
        with opened(self.path) as (_, stream):
            rates = (stream.average_rate, stream.guessed_rate)
            return next((Fraction(rate) for rate in rates if rate and 0 < rate <= 1000), USUAL_FPS)

    def read(self, index: int) -> Tensor:
        """Frame `index`, from 0, as uint8 RGB (3, H, W). Going on from the last one read is fast; going back begins at
        the start again."""
        import torch

        if self._frames is None or index < self._next or self._process != os.getpid():
            self.close()
            self._frames, self._process = _frames_of(self.path), os.getpid()
        for frame in self._frames:
            if self._next == 0:
                self._size = (frame.width, frame.height)
            self._next += 1
            if self._next > index:
                return torch.from_numpy(upright(frame, *self._size)).permute(2, 0, 1)
        raise UnreadableSample(f"it has {self._next} frames, and so no frame {index} ({self.path})")

    def close(self) -> None:
        if self._frames is not None:
            self._frames.close()
        self._frames, self._next = None, 0

    def __enter__(self) -> Video:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_frames": None, "_next": 0}

    def _count(self) -> tuple[int, str | None]:
        if self._counted is None:
            count, fault = 0, None
            try:
                for _ in _frames_of(self.path):
                    count += 1
                with opened(self.path) as (_, stream):
                    check_whole(self.path, stream)
            except UnreadableSample as error:
                if not count:
                    raise
                fault = str(error)
            self._counted = count, fault
        return self._counted


class VideoWriter:
    """Frames to an mp4 file (h264, 4:2:0), which appears under its name when all is written, and not if that fails.

    A context manager. Odd sizes get another row or column, the last one again. Frames of another size than the first
    are scaled to it. No frame, no file.

    Args:
        path: of the file.
        fps: its frames a second.

    Raises:
        OSError: where the disk refuses.
    """

    def __init__(self, path: str | os.PathLike[str], fps: Fraction | float) -> None:
        self.path = Path(path)
        self.fps = Fraction(fps).limit_denominator(100_000)
        self._part = self.path.with_name(f".{self.path.name}.{os.getpid()}")
        self._container: av.container.OutputContainer | None = None
        self._written = 0

    def write(self, picture: Tensor) -> None:
        """picture: uint8 RGB (3, H, W)."""
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
            size = {"width": self._stream.width, "height": self._stream.height}
            frame = _TO_YUV.reformat(frame, **size, format="yuv420p", threads=1)
            frame.pts, frame.time_base = self._written, 1 / self.fps
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


@contextmanager
def opened(
    path: str | os.PathLike[str], probe: bool = True
) -> Iterator[tuple[av.container.InputContainer, av.VideoStream]]:
    """A video file while it is open: its container, and its first stream of pictures that is no cover image.

    The decoder has one thread: frame threads have been seen to hang, and more than one only pays for large pictures.
    Packets of other streams are not read.

    Args:
        path: of the file.
        probe: whether FFmpeg decodes a first frame for what the header may leave out. Without it mp4 files that have a
            frame table (`has_frame_table`) open in less than half the time; they leave nothing out, but the size of
            their pictures is then only what they say. Other files are probed all the same.

    Raises:
        UnreadableSample: what is missing, empty, not a regular file, no video, or without a stream of pictures.
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
        stream.thread_type, stream.codec_context.thread_count = "SLICE", 1
        for other in container.streams:
            if other is not stream:
                other.discard = Discard.all
        yield container, stream


def decode(
    path: str | os.PathLike[str],
    container: av.container.InputContainer,
    stream: av.VideoStream,
    promised: int | None = None,
) -> Iterator[av.VideoFrame]:
    """Every frame of an `opened` file, from its start.

    Raises:
        UnreadableSample: where it is damaged, holds no frame, or fewer than `promised`.
    """
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


def upright(frame: av.VideoFrame, width: int, height: int) -> np.ndarray:
    """RGB uint8 (height, width, 3), turned as the file asks for: (width, height, 3) after an odd quarter turn."""
    pixels = np.empty((height, width, 3), np.uint8)
    to_rgb(frame, pixels)
    return np.ascontiguousarray(np.rot90(pixels, quarter_turns(frame)))


def to_rgb(frame: av.VideoFrame, out: np.ndarray) -> None:
    """The frame as it lies in the file, scaled to the size of `out`: uint8 (H, W, 3), contiguous."""
    height, width, _ = out.shape
    # with threads of its own it takes much longer
    plane = _TO_RGB.reformat(frame, width=width, height=height, format="rgb24", threads=1).planes[0]
    rows = np.frombuffer(plane, np.uint8).reshape(height, plane.line_size)
    out.reshape(height, 3 * width)[:] = rows[:, : 3 * width]  # rows are padded


def quarter_turns(frame: av.VideoFrame) -> int:
    """Against the clock, with which the frame is to be shown."""
    return round(frame.rotation / 90) % 4


def has_frame_table(container: av.container.InputContainer, stream: av.VideoStream) -> bool:
    """Whether the file began or ended with a table of all frames, as mp4 files that are not in fragments do."""
    return "mp4" in container.format.name and 0 < len(stream.index_entries) == stream.frames


def check_whole(path: str | os.PathLike[str], stream: av.VideoStream) -> None:
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


def _open(path: str | os.PathLike[str], probe: bool) -> av.container.InputContainer:
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


def _frames_of(path: Path) -> Iterator[av.VideoFrame]:
    with opened(path) as (container, stream):
        yield from decode(path, container, stream)
