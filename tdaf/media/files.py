"""Files of pictures by their names: images and videos, lists of those to leave out, and many files as one sequence.

Imports nothing that takes time: neither torch nor PyAV is needed to tell a user that a file is no video.
"""

from __future__ import annotations

import json
import os
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from fractions import Fraction
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING

from tdaf.errors import UnreadableSample, UserError

if TYPE_CHECKING:
    from torch import Tensor

    from tdaf.media.video import Video

IMAGES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".gif", ".tif", ".tiff")
VIDEOS = (
    ".mp4", ".m4v", ".mov", ".avi", ".mkv", ".webm", ".mpg", ".mpeg", ".wmv", ".flv", ".ts", ".mts", ".m2ts",
    ".3gp", ".ogv",
)  # fmt: skip


def is_video(path: Path) -> bool:
    return path.suffix.lower() in VIDEOS


def write_skip_list(path: str | os.PathLike[str], names: Iterable[str]) -> None:
    """Writes a list of files to leave out, sorted, each name once.

    A name stands in a line as it is; where that would not be read again (line breaks, backslashes, bytes that are no
    text, blanks at an end), it stands as a JSON string.

    Args:
        path: of the list.
        names: the files' paths below the data set's root, with / between their parts.

    Raises:
        UserError: the list cannot be written.
    """
    lines = (name if _is_plain(name) else json.dumps(name) for name in sorted(set(names)))
    try:
        Path(path).expanduser().write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror}") from error


def read_skip_list(path: str | None, folders: tuple[str, ...] = (), example: str | None = None) -> frozenset[str]:
    """The names in a list that `write_skip_list` or a person wrote; a plain line may have backslashes for /, blanks
    around it and Windows' line ends.

    Args:
        path: of the list; None: no names.
        folders: how a path below the data set's root begins; without them, it must only not begin with /.
        example: such a path, for the message; by default the folders.

    Raises:
        UserError: the list cannot be read, or has a path that is not below the root.
    """
    if path is None:
        return frozenset()
    try:
        text = Path(path).expanduser().read_text(encoding="utf-8-sig", errors="surrogateescape")
    except OSError as error:
        said = f"skip_list={path}: {error.strerror}; scripts/check_data.py writes such a list"
        raise UserError(said) from error
    names = frozenset(_name(line) for line in map(str.strip, text.split("\n")) if line)
    for name in names:
        if not name.startswith(folders) if folders else name.startswith("/"):
            like = example or " or ".join(f"{folder}..." for folder in folders)
            raise UserError(f"skip_list={path}: '{name}' is not a path below the data set's root ({like})")
    return names


def _is_plain(name: str) -> bool:
    return name.isprintable() and name == name.strip() and not name.startswith('"') and "\\" not in name


def _name(line: str) -> str:
    if line.startswith('"'):
        try:
            return json.loads(line)
        except ValueError:
            pass  # a person wrote it
    return line.replace("\\", "/")


class Media:
    """Image files and videos as one sequence of pictures (protocol: tdaf/task.py): one of each image file, all frames
    of each video.

    Image files are opened only when they are read, and of an animated one the first picture is taken. Videos are
    counted at once.

    Args:
        paths: the files, in their order.

    Attributes:
        videos: whether there is a video among them; reading is then fast in order only, and so belongs into one
            process.
        faults: what is wrong with a video, by its path. One without a readable frame has no picture here; one that is
            damaged on its way has those before the damage.
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        self.videos = any(map(is_video, paths))
        self.faults: dict[Path, str] = {}
        counts = {path: self._count(path) if is_video(path) else 1 for path in paths}
        self._files = [path for path, count in counts.items() if count]
        self._ends = list(accumulate(counts[path] for path in self._files))
        self._video: Video | None = None
        self._last: tuple[int, Tensor] | None = None

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def read(self, index: int) -> Tensor:
        """uint8 RGB (3, H, W). Raises UnreadableSample."""
        if self._last is None or self._last[0] != index:
            self._last = index, self._read(index)
        return self._last[1].clone()  # the next sample of the same picture must find it as it was

    def file(self, index: int) -> Path:
        return self._files[bisect_right(self._ends, index)]

    def frame(self, index: int) -> int | None:
        """The frame in its video, from 0; None for an image file."""
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
        return _video(path).fps

    def _count(self, path: Path) -> int:
        video = _video(path)
        try:
            count, fault = len(video), video.fault
        except UnreadableSample as error:
            count, fault = 0, str(error)
        if fault is not None:
            self.faults[path] = fault
        return count

    def _read(self, index: int) -> Tensor:
        path, frame = self.file(index), self.frame(index)
        if frame is None:
            from tdaf.media.image import read_image

            return read_image(path)
        if self._video is None or self._video.path != path:
            if self._video is not None:
                self._video.close()
            self._video = _video(path)
        return self._video.read(frame)


def _video(path: Path) -> Video:
    from tdaf.media.video import Video  # and with it PyAV, which images do not need

    return Video(path)
