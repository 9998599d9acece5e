"""Videos to frames in their order, and frames to a video, through PyAV."""

from __future__ import annotations

import os
from collections.abc import Generator
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Any

import av
import numpy as np
import torch
from av.video.reformatter import VideoReformatter
from torch import Tensor

from tdaf.errors import UnreadableSample
from tdaf.media.container import opened

USUAL_FPS = Fraction(25)  # where a file does not say a rate, or one that no camera has
# each keeps its tables from frame to frame; predict reads and writes in turn, and so one for both would lose them
_TO_RGB, _TO_YUV = VideoReformatter(), VideoReformatter()


class Video:
    """The frames of a video in the order in which they are shown, as uint8 RGB (3, H, W).

    A turn by 90, 180 or 270 degrees that the file asks for is made, as players make it; mirroring and pixels that are
    not square are left as they are. Where the size changes on the way, frames are scaled to the first one's. The file
    is opened when it is first used, in each process anew, and closed at its end and by `close`.

    All but the constructor raise UnreadableSample, for a missing or empty file, one without a picture, and one that
    cannot be decoded.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self._counted: tuple[int, str | None] | None = None
        self._frames: Generator[av.VideoFrame, None, None] | None = None
        self._next, self._size, self._owner = 0, (0, 0), 0

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
        """Frame `index`, from 0. Going on from the last one read is fast; going back begins at the start again."""
        if self._frames is None or index < self._next or self._owner != os.getpid():
            self.close()
            self._frames, self._owner = _decoded(self.path), os.getpid()
        for frame in self._frames:
            if self._next == 0:
                self._size = (frame.width, frame.height)
            self._next += 1
            if self._next > index:
                return _pixels(frame, *self._size)
        raise UnreadableSample(f"it has {self._next} frames, and so no frame {index} ({self.path})")

    def close(self) -> None:
        if self._frames is not None:
            self._frames.close()
        self._frames, self._next = None, 0

    def __enter__(self) -> Video:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_frames": None, "_next": 0}

    def _count(self) -> tuple[int, str | None]:
        if self._counted is None:
            count, fault = 0, None
            try:
                for _ in _decoded(self.path):
                    count += 1
            except UnreadableSample as error:
                if not count:
                    raise
                fault = str(error)
            self._counted = count, fault
        return self._counted


class VideoWriter:
    """Frames to an mp4 file (h264, 4:2:0), which appears under its name when all is written, and not if that fails.

    fps: of the file. Odd sizes get another row or column, the last one again. Frames of another size than the first
    are scaled to it. No frame, no file. Raises OSError where the disk refuses.
    """

    def __init__(self, path: str | os.PathLike[str], fps: Fraction | float) -> None:
        self.path = Path(path)
        self.fps = Fraction(fps).limit_denominator(100_000)
        self._aside = self.path.with_name(f".{self.path.name}.{os.getpid()}")
        self._container: av.container.OutputContainer | None = None
        self._written = 0

    def write(self, picture: Tensor) -> None:
        """picture: uint8 RGB (3, H, W)."""
        pixels = picture.permute(1, 2, 0).numpy()
        odd = [(0, side % 2) for side in pixels.shape[:2]]
        frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(np.pad(pixels, [*odd, (0, 0)], "edge")), "rgb24")
        try:
            if self._container is None:
                self._open(frame.width, frame.height)
            size = {"width": self._stream.width, "height": self._stream.height}
            frame = _TO_YUV.reformat(frame, **size, format="yuv420p", threads=1)
            frame.pts, frame.time_base = self._written, 1 / self.fps
            self._container.mux(self._stream.encode(frame))
        except av.FFmpegError as error:
            raise OSError(error.errno, error.strerror, str(self.path)) from error
        self._written += 1

    def __enter__(self) -> VideoWriter:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._container is None:
            return
        try:
            if kind is None:
                self._container.mux(self._stream.encode())
            self._container.close()
            if kind is None:
                os.replace(self._aside, self.path)
        except av.FFmpegError as fault:
            raise OSError(fault.errno, fault.strerror, str(self.path)) from fault
        finally:
            self._aside.unlink(missing_ok=True)

    def _open(self, width: int, height: int) -> None:
        self._container = av.open(f"file:{self._aside}", "w", format="mp4")
        self._stream = self._container.add_stream("libx264", rate=self.fps, options={"preset": "veryfast", "crf": "20"})
        self._stream.width, self._stream.height, self._stream.pix_fmt = width, height, "yuv420p"


def _decoded(path: Path) -> Generator[av.VideoFrame, None, None]:
    """Every frame; UnreadableSample where the file is damaged or holds fewer packets than it says."""
    frames = packets = 0
    with opened(path) as (container, stream):
        promise = f" of {stream.frames}" if stream.frames else ""
        try:
            for packet in container.demux(stream):
                packets += packet.size > 0
                for frame in packet.decode():
                    if frame.is_corrupt:
                        raise UnreadableSample(f"damaged after {frames}{promise} frames ({path})")
                    frames += 1
                    yield frame
        except av.FFmpegError as error:
            raise UnreadableSample(f"damaged after {frames}{promise} frames: {error.strerror} ({path})") from error
        if packets < stream.frames:
            raise UnreadableSample(f"cut off after {frames} of {stream.frames} frames ({path})")
    if not frames:
        raise UnreadableSample(f"not one frame in it ({path})")


def _pixels(frame: av.VideoFrame, width: int, height: int) -> Tensor:
    rgb = _TO_RGB.reformat(frame, width=width, height=height, format="rgb24", threads=1).to_ndarray()
    turns = round(frame.rotation / 90) % 4
    if turns:
        rgb = np.ascontiguousarray(np.rot90(rgb, turns))
    return torch.from_numpy(rgb).permute(2, 0, 1)
