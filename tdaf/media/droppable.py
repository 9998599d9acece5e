"""Which packets hold a frame that no other frame is predicted from. These need no decoding where they are not wanted.

FFmpeg's own skip_frame does the same but then says nothing of packets that it cannot decode, so that damage on the way
would go unnoticed into the frames that follow.
"""

from __future__ import annotations

import av

SLICES, PARAMETERS = {1, 2, 5}, {7, 8}  # types of NAL units (ITU-T H.264, table 7-1)


def droppable(packet: av.Packet, stream: av.VideoStream) -> bool:
    """False where it cannot be told."""
    codec, extra = stream.codec_context.name, stream.codec_context.extradata
    if codec == "h264" and extra and extra[0] == 1:  # ISO/IEC 14496-15: units come with their lengths
        return _h264(bytes(packet), (extra[4] & 3) + 1)
    if codec == "mpeg4":
        return _mpeg4(bytes(packet))
    return False


def _h264(data: bytes, width: int) -> bool:
    """width: bytes of a length."""
    begin, free = 0, False
    while begin + width < len(data):
        header = data[begin + width]
        kind = header & 31
        if kind in PARAMETERS:
            return False
        if kind in SLICES:
            if header >> 5 & 3:  # nal_ref_idc
                return False
            free = True
        begin += width + int.from_bytes(data[begin : begin + width], "big")
    return free


def _mpeg4(data: bytes) -> bool:
    """Whether its only picture is a B-VOP (ISO/IEC 14496-2, 6.2.5)."""
    start = data.find(b"\0\0\1\xb6")
    only = data.find(b"\0\0\1\xb6", start + 4) < 0
    return start == 0 and only and len(data) > 4 and data[4] >> 6 == 2
