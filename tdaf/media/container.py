"""Opening a video file: one way for all who read it, and one line for each way in which it cannot be opened."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager

import av
from av.stream import Disposition

from tdaf.errors import UnreadableSample

Path = str | os.PathLike[str]


@contextmanager
def opened(path: Path) -> Iterator[tuple[av.container.InputContainer, av.VideoStream]]:
    """The container and its first stream of pictures that is no cover image; closed afterwards.

    The decoder has one thread: frame threads have been seen to hang, and more than one only pays for large pictures.
    Raises UnreadableSample for what is missing, empty, not a regular file, no video, or without a stream of pictures.
    """
    try:
        about = os.stat(path)
        if not stat.S_ISREG(about.st_mode):
            raise UnreadableSample(f"not a file ({path})")
        if not about.st_size:
            raise UnreadableSample(f"the file is empty ({path})")
        # "file:" because a colon in a name would be taken for a protocol; no list of addresses is followed
        only = {"protocol_whitelist": "file"}
        container = av.open(f"file:{os.fspath(path)}", container_options=only, metadata_errors="ignore")
    except (av.FFmpegError, OSError) as error:
        if isinstance(error, av.InvalidDataError) or error.errno == errno.EIO:
            raise UnreadableSample(f"no video, or its header is cut off or damaged ({path})") from error
        raise UnreadableSample(f"{error.strerror or error} ({path})") from error
    with container:
        pictures = (s for s in container.streams.video if not s.disposition & Disposition.attached_pic)
        stream = next(pictures, None)
        if stream is None:
            raise UnreadableSample(f"it has no pictures, only {_kinds(container)} ({path})")
        if stream.codec_context is None:
            raise UnreadableSample(f"no decoder for its pictures ({path})")
        stream.thread_type, stream.codec_context.thread_count = "SLICE", 1
        yield container, stream


def _kinds(container: av.container.InputContainer) -> str:
    names = {"audio": "sound", "video": "a cover image"}
    return " and ".join(sorted({names.get(s.type, s.type) for s in container.streams})) or "a header"
