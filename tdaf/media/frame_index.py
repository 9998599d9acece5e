"""Which frame lies where in a video, known without decoding it.

Frames are counted as they are shown, from 0, without those that an edit list cuts away: as a plain decode of the whole
file numbers them. Time stamps are only compared, never computed with, so a variable rate is as exact as a constant one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import av
import numpy as np

from tdaf.media.container import whole_table

KEY, DISCARD = 1, 2  # FFmpeg's AVINDEX_KEYFRAME and AVINDEX_DISCARD_FRAME
STAMPED = {"mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm", "mpegts", "flv"}  # these say when a frame is shown
# decoded by FFmpeg with a delay that their packets do not tell
DELAYED = {"h264", "hevc", "vvc"}


@dataclass(frozen=True)
class FrameIndex:
    """frames: how many there are to be, None where only decoding tells. varies: whether their distance in time does.

    Of each key frame: `before`, the frames to be shown that precede it in the file, and `stamps`, its time stamp in
    the stream's units, of the kind `by` ("dts" or "pts"). No key frame: the file can only be read from its start.
    ahead: what a seek adds to a stamp, as FFmpeg takes a time to seek in mp4 for one of presentation.
    """

    frames: int | None
    before: Sequence[int]
    stamps: Sequence[int]
    by: str
    varies: bool
    ahead: int = 0

    def key(self, frame: int) -> int:
        """The last key frame that has at most `frame` frames before it; -1 where there is none."""
        return int(np.searchsorted(self.before, frame, side="right")) - 1


UNKNOWN = FrameIndex(None, [], [], "pts", False)


def frame_index(container: av.container.InputContainer, stream: av.VideoStream) -> FrameIndex:
    """From the table that an mp4 file begins or ends with, else from the headers of all packets, which reads the file
    once. The container stands anywhere afterwards. Raises av.FFmpegError where the packets cannot be read."""
    mov = "mp4" in container.format.name
    if whole_table(container, stream):
        entries = stream.index_entries
        # one at a time: hundreds of small objects at once set off Python's search for garbage
        stamps = np.fromiter((entry.timestamp for entry in entries), np.int64, len(entries))
        flags = np.fromiter((entry.flags for entry in entries), np.int64, len(entries))
        (first, *_), before = leaders(container.demux(stream))
        if before or first.pts is None or first.dts is None:
            return UNKNOWN
        ahead = first.pts - first.dts
        return _index(stamps, flags & KEY > 0, flags & DISCARD == 0, "dts", _varies(stamps), ahead)
    packets = [
        (packet.pts, packet.dts, packet.is_keyframe, not packet.is_discard)
        for packet in container.demux(stream)
        if packet.size
    ]
    known = [pts for pts, _, _, shown in packets if shown]
    if None in (pts for pts, *_ in packets) or not _trusted(container.format.name, stream.codec_context.name, known):
        return UNKNOWN
    by = "dts" if mov and all(dts is not None for _, dts, *_ in packets) else "pts"
    stamps = np.array([dts if by == "dts" else pts for pts, dts, *_ in packets], np.int64)
    keys, shown = (np.array([packet[field] for packet in packets], bool) for field in (2, 3))
    ahead = packets[0][0] - packets[0][1] if by == "dts" else 0
    return _index(stamps, keys, shown, by, _varies(np.sort(np.array(known, np.int64))), ahead)


def leaders(packets: Iterator[av.Packet]) -> tuple[list[av.Packet], int]:
    """The first packet, a key frame's, and those up to the next one that is shown after it; and how many of these are
    shown before it, though they come behind it in the file."""
    head = [next(packets)]
    for packet in packets:
        head.append(packet)
        if not packet.size or packet.pts is None or head[0].pts is None or packet.pts > head[0].pts:
            break
    return head, sum(not p.is_discard for p in head[1:-1])


def _index(stamps: np.ndarray, keys: np.ndarray, shown: np.ndarray, by: str, varies: bool, ahead: int) -> FrameIndex:
    before = np.cumsum(shown) - shown
    return FrameIndex(int(shown.sum()), before[keys], stamps[keys], by, varies, ahead)


def _trusted(container: str, codec: str, pts: list[int]) -> bool:
    """Whether packets carry the time at which their frame is shown. AVI knows no such time: FFmpeg fills it in, rightly
    where frames are shown in the order of their packets and the decoder's delay is known, wrongly for h264."""
    if not pts or len(set(pts)) < len(pts) or min(pts) < pts[0]:
        return False
    return container in STAMPED or (codec not in DELAYED and pts == sorted(pts))


def _varies(stamps: np.ndarray) -> bool:
    """By more than rounding to milliseconds does."""
    steps = np.diff(stamps)
    return len(steps) > 1 and bool(np.ptp(steps) > 0.2 * np.median(steps))
