"""Whether a file ends before its container says it does. No decoder tells, where a format has no table of frames."""

from __future__ import annotations

import os
from typing import IO

SLACK = 16  # bytes; writers of AVI differ in what they count
BULK = {b"mdat", b"moov", b"moof"}  # mp4's parts with pictures and tables; what else lies at an end may be padding


def missing_bytes(path: str | os.PathLike[str]) -> int:
    """How many bytes mp4, mov, matroska, webm and AVI files lack at their end; 0 for whole ones and other formats.
    Raises OSError."""
    with open(path, "rb") as file:
        length = os.fstat(file.fileno()).st_size
        start = file.read(12)
        if start[:4] == b"\x1aE\xdf\xa3":
            end = _matroska(file)
        elif start[:4] == b"RIFF":
            end = int.from_bytes(start[4:8], "little") + 8 - SLACK
        else:
            end = _mp4(file, length) if start[4:8] in (b"ftyp", *BULK) else 0
    return max(0, end - length)


def _mp4(file: IO[bytes], length: int) -> int:
    """Where its last large box ends (ISO/IEC 14496-12, 4.2)."""
    begin = end = 0
    while begin + 8 <= length:
        file.seek(begin)
        head = file.read(16)
        size, kind = int.from_bytes(head[:4], "big"), head[4:8]
        if size == 1:
            size = int.from_bytes(head[8:16], "big")
        if size < 8:  # 0: up to the end of the file
            break
        begin += size
        end = begin if kind in BULK else end
    return end


def _matroska(file: IO[bytes]) -> int:
    """Where its segment ends (RFC 8794: an element is an identifier, a size, and that many bytes)."""
    file.seek(4)
    header = _size(file)
    if header is None:
        return 0
    file.seek(header, os.SEEK_CUR)
    if file.read(4) != b"\x18S\x80g":
        return 0
    segment = _size(file)
    return 0 if segment is None else file.tell() + segment


def _size(file: IO[bytes]) -> int | None:
    """None where it is left open, as live recordings do."""
    first = file.read(1)
    if not first or not first[0]:
        return None
    more = 8 - first[0].bit_length()
    value = int.from_bytes(bytes([first[0] & (1 << (7 - more)) - 1]) + file.read(more), "big")
    return None if value == (1 << 7 * (more + 1)) - 1 else value
