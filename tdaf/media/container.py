"""Opening a video file: one way for all who read it, and one line for each way in which it cannot be opened."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager

import av
from av.stream import Discard, Disposition

from tdaf.errors import UnreadableSample

Path = str | os.PathLike[str]

# "file:" because a colon in a name would be taken for a protocol; no list of addresses is followed
ONLY = {"protocol_whitelist": "file"}
UNTRIED = ({"skip_frame": "all"}, {"probesize": "32"})  # of the decoder and the container: one packet is read


@contextmanager
def opened(path: Path, tried: bool = True) -> Iterator[tuple[av.container.InputContainer, av.VideoStream]]:
    """The container and its first stream of pictures that is no cover image; closed afterwards.

    tried: whether FFmpeg decodes a first frame for what the header may leave out. Without it mp4 files with a
    `whole_table` open in less than half the time; they leave nothing out, but the size of their pictures is then only
    what they say. Other files are tried all the same.
    The decoder has one thread: frame threads have been seen to hang, and more than one only pays for large pictures.
    Packets of other streams are not read.
    Raises UnreadableSample for what is missing, empty, not a regular file, no video, or without a stream of pictures.
    """
    try:
        about = os.stat(path)
        if not stat.S_ISREG(about.st_mode):
            raise UnreadableSample(f"not a file ({path})")
        if not about.st_size:
            raise UnreadableSample(f"the file is empty ({path})")
        container = _container(path, tried)
    except (av.FFmpegError, OSError) as error:
        if isinstance(error, av.InvalidDataError) or error.errno == errno.EIO:
            raise UnreadableSample(f"no video, or its header is cut off or damaged ({path})") from error
        raise UnreadableSample(f"{error.strerror or error} ({path})") from error
    with container:
        stream = next(_pictures(container), None)
        if stream is None:
            raise UnreadableSample(f"it has no pictures, only {_kinds(container)} ({path})")
        if stream.codec_context is None:
            raise UnreadableSample(f"no decoder for its pictures ({path})")
        stream.thread_type, stream.codec_context.thread_count = "SLICE", 1
        for other in container.streams:
            if other is not stream:
                other.discard = Discard.all
        yield container, stream


def whole_table(container: av.container.InputContainer, stream: av.VideoStream) -> bool:
    """Whether the file began or ended with a table of all frames, as mp4 files that are not in fragments do."""
    return "mp4" in container.format.name and 0 < len(stream.index_entries) == stream.frames


def _container(path: Path, tried: bool) -> av.container.InputContainer:
    url = f"file:{os.fspath(path)}"
    if not tried and _mp4(path):
        decoder, reading = UNTRIED
        container = av.open(url, options=decoder, container_options=ONLY | reading, metadata_errors="ignore")
        if all(whole_table(container, stream) for stream in _pictures(container)):
            return container
        container.close()
    return av.open(url, container_options=ONLY, metadata_errors="ignore")


def _mp4(path: Path) -> bool:
    with open(path, "rb") as file:
        return file.read(8)[4:] == b"ftyp"


def _pictures(container: av.container.InputContainer) -> Iterator[av.VideoStream]:
    return (s for s in container.streams.video if not s.disposition & Disposition.attached_pic)


def _kinds(container: av.container.InputContainer) -> str:
    names = {"audio": "sound", "video": "a cover image"}
    return " and ".join(sorted({names.get(s.type, s.type) for s in container.streams})) or "a header"
