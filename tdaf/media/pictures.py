"""Image files and videos as one row of pictures (protocol: tdaf/task.py)."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from fractions import Fraction
from itertools import accumulate
from pathlib import Path

from torch import Tensor

from tdaf.errors import UnreadableSample
from tdaf.media.image import read_image
from tdaf.media.suffixes import is_video
from tdaf.media.video import Video


class Media:
    """The pictures of `paths` in their order: one of each image file, all frames of each video.

    videos: whether there is a video among them; reading is then fast in order only, and so belongs into one process.
    faults: what is wrong with a video, by its path. One without a readable frame has no picture here; one that is
    damaged on its way has those before the damage. Image files are opened only when they are read, and of an animated
    one the first picture is taken.
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        self.videos = any(map(is_video, paths))
        self.faults: dict[Path, str] = {}
        counts = {path: self._count(path) for path in paths}
        self._files = [path for path, count in counts.items() if count]
        self._ends = list(accumulate(counts[path] for path in self._files))
        self._open: Video | None = None
        self._last: tuple[int, Tensor] | None = None

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def read(self, index: int) -> Tensor:
        if self._last is None or self._last[0] != index:
            self._last = index, self._read(index)
        return self._last[1].clone()  # the next sample of the same picture must find it as it was

    def file(self, index: int) -> Path:
        return self._files[bisect_right(self._ends, index)]

    def frame(self, index: int) -> int | None:
        place = bisect_right(self._ends, index)
        if not is_video(self._files[place]):
            return None
        return index - (self._ends[place - 1] if place else 0)

    def name(self, index: int) -> str:
        """What a person finds the picture by."""
        frame = self.frame(index)
        return str(self.file(index)) if frame is None else f"{self.file(index)}, frame {frame}"

    def fps(self, path: Path) -> Fraction:
        """Frames a second of one of the videos."""
        return Video(path).fps

    def _count(self, path: Path) -> int:
        if not is_video(path):
            return 1
        film = Video(path)
        try:
            count, fault = len(film), film.fault
        except UnreadableSample as error:
            count, fault = 0, str(error)
        if fault is not None:
            self.faults[path] = fault
        return count

    def _read(self, index: int) -> Tensor:
        path, frame = self.file(index), self.frame(index)
        if frame is None:
            return read_image(path)
        if self._open is None or self._open.path != path:
            if self._open is not None:
                self._open.close()
            self._open = Video(path)
        return self._open.read(frame)
