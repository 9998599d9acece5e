"""The table of members at the end of a zip file (PKWARE's APPNOTE 6.3.10, 4.3.12 to 4.3.16), chunk by chunk: zipfile
makes an object of each member, for which a million take most of a gigabyte."""

from __future__ import annotations

import os
import stat
import struct
import zlib
from collections.abc import Callable, Iterator

from tdaf.media.tar import CUT, Add, clean, shown

STORED, DEFLATED = 1, 2  # behind a member's own header
LOCAL = 30  # bytes of that, before its name
CHUNK = 1 << 20  # bytes; an entry has at most a fifth of it
END = struct.Struct("<4s 8x L L 2x")  # of the table bytes and place
LOCATOR = struct.Struct("<4s 4x Q 4x")  # place of what follows
END64 = struct.Struct("<4s 36x Q Q")
# system, flags, method, CRC, bytes stored and whole, bytes of name, extra fields and comment, attributes, place
ENTRY = struct.Struct("<4s x B 2x H H 4x L L L H H H 4x L L")
UNIX, ENCRYPTED, UTF8 = 3, 1, 1 << 11
ZIP64, UNICODE_PATH = 1, 0x7075  # extra fields


def scan(file: int, size: int, add: Add, advance: Callable[..., None]) -> str:
    """As `scan` of tar.py, for a zip file: in the order of its table."""
    fault = ""
    try:
        begin, end, moved = _table(file, size)
        for entry, name, extra in _entries(file, begin, end, lambda share: advance(steps=int(share * (size >> 20)))):
            system, flags, method, check, stored, whole, *_, attributes, offset = entry
            if not (flags & UTF8 or name.isascii()):
                name = name.decode("cp437").encode()
            if extra:
                name, whole, stored, offset = _extended(extra, name, whole, stored, offset)
            if flags & ENCRYPTED:
                raise ValueError(f"{shown(name)} is encrypted; pack the files again without a password")
            if method not in (0, 8):
                how = f"{shown(name)} is compressed by method {method}"
                raise ValueError(f"{how}, neither stored nor deflated; pack the files again")
            if system == UNIX and stat.S_ISLNK(attributes >> 16):
                raise ValueError(f"{shown(name)} is a link; pack the files themselves")
            if not method and whole != stored:
                sizes = f"{whole} bytes and is stored in {stored}"
                raise ValueError(f"{shown(name)} claims {sizes}; bring the archive again")
            offset += moved
            clean_name = clean(name.replace(b"\\", b"/"))
            if 0 <= offset <= size - LOCAL - stored:
                add(clean_name, offset, stored, whole, check, DEFLATED if method else STORED)
            else:
                fault = f"{shown(name)} lies beyond the end of the archive"
                add(clean_name, 0, 0, 0, check, CUT)
    except struct.error as error:
        raise ValueError("cut off, or no zip file: its table of members, at its end, cannot be read") from error
    return fault


def _table(file: int, size: int) -> tuple[int, int, int]:
    """Where the table begins and ends, and by how much all lies behind where it says. Raises struct.error."""
    start = max(0, size - END.size - 0xFFFF)  # a comment may follow
    tail = os.pread(file, size - start, start)
    at = tail.rfind(b"PK\5\6")
    if at < 0:
        raise struct.error
    _, length, place = END.unpack_from(tail, at)
    end = start + at
    if end >= LOCATOR.size + END64.size:
        magic, place64 = LOCATOR.unpack(os.pread(file, LOCATOR.size, end - LOCATOR.size))
        if magic == b"PK\6\7":
            # right before the locator, unless it is longer than those that are written today
            place = end - LOCATOR.size - END64.size
            ends = [at for at in (place, place64) if os.pread(file, 4, min(at, size)) == b"PK\6\6"]
            if not ends:
                raise struct.error
            end = ends[0]
            _, length, place = END64.unpack(os.pread(file, END64.size, end))
    if length > end:
        raise struct.error
    return end - length, end, end - length - place


def _entries(
    file: int, begin: int, end: int, passed: Callable[[float], None]
) -> Iterator[tuple[tuple[int, ...], bytes, bytes]]:
    """(numbers, name, extra fields) of each member. Raises struct.error where the table is none."""
    whole = end - begin
    while begin < end:
        chunk, at = os.pread(file, min(CHUNK, end - begin), begin), 0
        while at + ENTRY.size <= len(chunk):
            magic, *entry = ENTRY.unpack_from(chunk, at)
            name_end = at + ENTRY.size + entry[6]
            extra_end = name_end + entry[7]
            if magic != b"PK\1\2":
                raise struct.error
            if extra_end > len(chunk):
                break
            yield entry, chunk[at + ENTRY.size : name_end], chunk[name_end:extra_end]
            at = extra_end + entry[8]
        if not at:
            raise struct.error
        begin += at
        passed(at / whole)


def _extended(extra: bytes, name: bytes, whole: int, stored: int, offset: int) -> tuple[bytes, int, int, int]:
    """Name, sizes and place, with what the extra fields say of them. Raises struct.error."""
    at = 0
    while at + 4 <= len(extra):
        kind, length = struct.unpack_from("<HH", extra, at)
        at += 4 + length
        if at > len(extra):
            raise struct.error
        field = extra[at - length : at]
        if kind == ZIP64:
            numbers = iter(struct.unpack(f"<{length // 8}Q", field[: length // 8 * 8]))
            whole, stored, offset = (
                next(numbers, -1) if number == 0xFFFFFFFF else number for number in (whole, stored, offset)
            )
            if min(whole, stored, offset) < 0:
                raise struct.error
        elif kind == UNICODE_PATH and field[:5] == struct.pack("<BL", 1, zlib.crc32(name)):
            name = field[5:]
    return name, whole, stored, offset
