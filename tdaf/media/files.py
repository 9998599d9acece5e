"""Files of pictures by their names: images and videos, lists of those to leave out, and many files as one sequence.

Imports nothing that takes time: neither torch nor PyAV is needed to tell a user that a file is no video.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING

from tdaf.errors import UnreadableSample, UserError

if TYPE_CHECKING:
    from torch import Tensor

    from tdaf.media.clip import Video

IMAGES = (
    ".jpg", ".jpeg", ".jfif", ".png", ".bmp", ".webp", ".gif", ".tif", ".tiff", ".ppm", ".pgm", ".pnm", ".jp2", ".avif",
)  # fmt: skip
# what FFmpeg opens as a video, without GIF, which may be either
VIDEOS = (
    ".mp4", ".m4v", ".mov", ".qt", ".f4v", ".3gp", ".3g2", ".mj2", ".avi", ".divx", ".xvid", ".mkv", ".mk3d", ".webm",
    ".mpg", ".mpeg", ".mpe", ".mpv", ".m1v", ".m2v", ".m2p", ".vob", ".mod", ".dat", ".ts", ".mts", ".m2ts", ".m2t",
    ".tod", ".trp", ".wmv", ".asf", ".wtv", ".dvr-ms", ".flv", ".rm", ".rmvb", ".ogv", ".ogm", ".ogg", ".mxf", ".dv",
    ".nut", ".amv", ".y4m", ".ivf", ".h261", ".h263", ".h264", ".264", ".avc", ".h265", ".265", ".hevc", ".mjpg",
    ".mjpeg", ".obu",
)  # fmt: skip
MOVING = (*VIDEOS, ".gif")


def is_video(path: Path) -> bool:
    """By its ending; of GIF, whether it moves."""
    suffix = path.suffix.lower()
    return suffix in VIDEOS or (suffix == ".gif" and _moves(path))


def is_data(name: str) -> bool:
    """Whether a file or folder is more than what an operating system or a notebook left."""
    return not name.startswith(".") and name not in ("@eaDir", "__MACOSX")


def files_below(
    folder: str | os.PathLike[str],
    endings: tuple[str, ...],
    deep: bool = True,
    onerror: Callable[[OSError], None] | None = None,
    without: Path | None = None,
) -> tuple[list[str], Counter[str]]:
    """Files with one of these endings, in any case.

    Args:
        folder: the folder, also of or in an archive; links are followed.
        endings: small letters, with their dots.
        deep: whether those in its sub-folders too.
        onerror: told of folders that cannot be read; by default that is a UserError.
        without: a sub-folder that is not looked into.

    Returns:
        Paths below the folder, with / between their parts, in torchvision's order: its own files, then those of each
        sub-folder. And how many files have other endings, by their endings.
    """
    from tdaf.media import archive  # and with it NumPy

    found, others = [], Counter()
    for parent, folders, files in archive.walk(folder, onerror or refuse_unreadable):
        folders[:] = filter(is_data, folders) if deep else ()
        if without is not None:
            folders[:] = [name for name in folders if Path(parent, name).resolve() != without.resolve()]
        below = os.path.relpath(parent, folder).replace(os.sep, "/") + "/" if parent != os.fspath(folder) else ""
        files = sorted(filter(is_data, files))
        names = [name for name in files if name.lower().endswith(endings)]
        found.append((parent, [below + name for name in names]))
        if len(names) < len(files):
            others.update(os.path.splitext(name)[1].lower() for name in set(files).difference(names))
    return [name for _, names in sorted(found) for name in names], others


def folders_in(folder: str | os.PathLike[str]) -> list[str]:
    """Sorted names of the folders in one, also of or in an archive. UserError where it cannot be read."""
    from tdaf.media import archive

    return sorted(filter(is_data, archive.inside(folder, refuse_unreadable)[0]))


def left_out(others: Counter[str], kind: str) -> dict[str, int]:
    """The note that counts files of other endings than those of images or videos, the kind."""
    some = ", ".join(f"{count} {ending or 'without an ending'}" for ending, count in others.most_common(5))
    return {f"files that are no {kind} by their endings, left out ({some})": others.total()} if others else {}


def write_skip_list(path: str | os.PathLike[str], names: Iterable[str]) -> None:
    """Writes a list of files to leave out, sorted, each name once: paths below the data set's root, with / between
    their parts. A name that would not be read again (line breaks, backslashes, bytes that are no text, blanks at an
    end) stands as a JSON string. Raises UserError: the list cannot be written."""
    lines = (name if _is_plain(name) else json.dumps(name) for name in sorted(set(names)))
    try:
        Path(path).expanduser().write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror}") from error


def read_skip_list(path: str | None, folders: tuple[str, ...] = (), example: str | None = None) -> frozenset[str]:
    """The names in a list that `write_skip_list` or a person wrote; a plain line may have backslashes for /, blanks
    around it and Windows' line ends. Of no list (None) there are none.

    folders: how a path below the data set's root begins; without them, it must only not begin with /. example: such a
    path, for the message. Raises UserError: the list cannot be read, or has a path that is not below the root.
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


def _moves(path: Path) -> bool:
    from PIL import Image

    from tdaf.media import archive

    try:
        with archive.open_file(path) as file, Image.open(file) as image:
            return getattr(image, "is_animated", False)
    except Exception:  # PIL's plug-ins let many kinds of exception out of a damaged file
        return False


def refuse_unreadable(error: OSError) -> None:
    """For walks: raises UserError for a folder that cannot be listed."""
    raise UserError(f"{error.filename}: {error.strerror}; it must be readable, with all that is in it") from error


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

    Image files are opened only when they are read, and turned as their EXIF tag says; an animated GIF counts as a
    video, and of other files with several pictures the first is taken. Videos are counted at once. background: see
    `read_image`.

    Attributes:
        reading: exif and background, with which images are read.
        videos: whether there is a video among them; reading is then fast in order only, so in one process.
        faults: what is wrong with a video, by its path. One without a readable frame has no picture here; one that is
            damaged on its way has those before the damage.
    """

    def __init__(self, paths: Sequence[Path], background: Sequence[int] | None = None) -> None:
        self.reading = {"exif": True, "background": background}
        self._videos = {path: _video(path) for path in paths if is_video(path)}
        self.videos = bool(self._videos)
        self.faults: dict[Path, str] = {}
        frames = {path: self._frames(path) if path in self._videos else [None] for path in paths}
        self._places = [(path, frame) for path, own in frames.items() for frame in own]
        self._open: Video | None = None
        self._last: tuple[int, Tensor] | None = None

    def __len__(self) -> int:
        return len(self._places)

    def read(self, index: int) -> Tensor:
        """uint8 RGB (3, H, W). Raises UnreadableSample."""
        if self._last is None or self._last[0] != index:
            self._last = index, self._read(index)
        return self._last[1].clone()  # the next sample of the same picture must find it as it was

    def file(self, index: int) -> Path:
        return self._places[index][0]

    def frame(self, index: int) -> int | None:
        """The frame in its video, from 0; None for an image file."""
        return self._places[index][1]

    def name(self, index: int) -> str:
        """What a person finds the picture by."""
        frame = self.frame(index)
        return str(self.file(index)) if frame is None else f"{self.file(index)}, frame {frame}"

    def seconds(self, path: Path, frame: int) -> float:
        """When a frame of one of the videos is shown, after its first one; of one past the last, when that ends."""
        return self._videos[path].survey.seconds(frame)

    def stamp(self, index: int) -> float | None:
        """The same of a picture, where the rate of its video varies; else None."""
        survey = self._videos[self.file(index)].survey
        return survey.times[self.frame(index)] if survey.times else None

    def fps(self, path: Path) -> Fraction:
        """Frames a second of one of the videos."""
        return self._videos[path].survey.fps

    def _frames(self, path: Path) -> Sequence[int]:
        try:
            survey = self._videos[path].survey
        except UnreadableSample as error:
            self.faults[path] = str(error)
            return ()
        if survey.fault is not None:
            self.faults[path] = survey.fault
        return range(survey.frames)

    def _read(self, index: int) -> Tensor:
        path, frame = self._places[index]
        if frame is None:
            from tdaf.media.image import read_image

            return read_image(path, **self.reading)
        if self._open is not self._videos[path]:
            if self._open is not None:
                self._open.close()
            self._open = self._videos[path]
        return self._open.read(frame)


def _video(path: Path) -> Video:
    from tdaf.media.clip import Video  # and with it PyAV, which images do not need

    return Video(path)
