"""The headers of a tar file (POSIX.1-2001 pax, ustar, GNU) as fast as Python reads them: tarfile makes an object of a
member, for which ImageNet's 1.28 million take most of a minute."""

from __future__ import annotations

import os
import re
import struct
import tarfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

BLOCK = 512
LONGEST = 1 << 20  # bytes of a name or of a pax header
DEPTH = 3  # of tars in tars
RAW, CUT = 0, 3  # kinds of members; members.py has the others
NOT_FILES = {
    b"1": "a hard link", b"2": "a link", b"3": "a device", b"4": "a device", b"6": "a pipe", b"S": "a sparse file",
    b"M": "a part of a file",
}  # fmt: skip
PAX = re.compile(rb"(\d+) ([^=]+)=")
HEADER = struct.Struct("100s 24x 12s 12x 8s c 100x 6s 82x 155s 12x")  # name, bytes, sum, kind, magic, name's beginning

# sets: to look for bytes in bytes takes ten times as long
ABOUT_NEXT, FILES = {b"L", b"K", b"x", b"g"}, {b"0", b"\0", b"7"}
DOTS = {b"", b".", b"/"}  # names that begin so are to be cleaned

Add = Callable[[bytes, int, int, int, int], None]  # (name, offset, bytes stored, bytes, CRC-32 << 2 | kind)


class Damaged(Exception):
    """A block that is no header."""


def scan(file: int, size: int, add: Add, advance: Callable[..., None]) -> str:
    """Calls `add` for every file and folder in a tar, with its place in the whole file.

    Args:
        file: descriptor.
        size: bytes of it.
        advance: called with steps=N for every MB that was passed.

    Returns:
        Where it is cut off or damaged, in words; "" where it is whole. A file that the cut goes through is added, CUT.

    Raises:
        ValueError: a member that has no place in a data set.
    """
    return _scan(file, 0, size, b"", add, advance, DEPTH)


def shown(name: bytes | str) -> str:
    """A member's name for a message of one line."""
    text = os.fsdecode(name)
    return text if text.isprintable() else repr(text)


def clean(name: bytes) -> bytes:
    """A member's name as unpacking would make it. Raises ValueError where that is not below the folder."""
    parts = [part for part in name.split(b"/") if part not in (b"", b".")]
    if name.startswith(b"/") or b".." in parts or b"\0" in name:
        raise ValueError(f"its member {shown(name)} leads out of the folder it is unpacked in; do not trust it")
    return b"/".join(parts) + (b"/" if name.endswith(b"/") and parts else b"")


def _scan(file: int, at: int, end: int, prefix: bytes, add: Add, advance: Callable[..., None], depth: int) -> str:
    long_name, pax, fault = b"", {}, ""
    passed = at >> 20
    while at + BLOCK <= end:
        block = os.pread(file, BLOCK, at)
        if not block[0] and not block.strip(b"\0"):
            return fault
        try:
            name, length, kind = _header(block)
        except Damaged:
            return fault or f"is damaged at byte {at}"
        begin, at = at + BLOCK, at + BLOCK + (length + BLOCK - 1) // BLOCK * BLOCK
        if kind in ABOUT_NEXT:
            if length > LONGEST or begin + length > end:
                return fault or f"is damaged or cut off at byte {begin}"
            data = os.pread(file, length, begin)
            if kind == b"L":
                long_name = data.rstrip(b"\0")
            elif kind == b"x":
                pax = _pax(data)
            continue
        if long_name or pax:
            name = pax.get(b"path", long_name or name)
            if b"size" in pax:
                if not pax[b"size"].isdigit():
                    return fault or f"is damaged at byte {begin}"
                length = int(pax[b"size"])
                at = begin + (length + BLOCK - 1) // BLOCK * BLOCK
            if any(key.startswith(b"GNU.sparse") for key in pax):
                kind = b"S"
            long_name, pax = b"", {}
        if kind in NOT_FILES:
            raise ValueError(f"its member {shown(name)} is {NOT_FILES[kind]}; pack the files themselves")
        if name[:1] in DOTS or name.find(b"/.") >= 0 or name.find(b"//") >= 0:
            name = clean(name)
        if kind == b"5" or name[-1:] == b"/":
            if name.strip(b"/"):
                add(prefix + name.rstrip(b"/") + b"/", 0, 0, 0, RAW)
        elif begin + length > end:
            if not (depth and name.lower().endswith(b".tar")):
                add(prefix + name, 0, 0, length, CUT)
                return fault or f"is cut off in {shown(prefix + name)}"
            return fault or _scan(file, begin, end, prefix + name[:-4] + b"/", add, advance, depth - 1)
        elif depth and name[-4:].lower() == b".tar" and _is_tar(file, begin, length):
            add(prefix + name[:-4] + b"/", 0, 0, 0, RAW)
            fault = _scan(file, begin, begin + length, prefix + name[:-4] + b"/", add, advance, depth - 1) or fault
            passed = max(passed, at >> 20)
        elif kind in FILES:
            add(prefix + name, begin, length, length, RAW)
        if at >> 20 > passed:
            advance(steps=(at >> 20) - passed)
            passed = at >> 20
    return fault or f"is cut off at byte {end}"


def _header(block: bytes) -> tuple[bytes, int, bytes]:
    """(name, bytes, kind) of a member. Raises Damaged."""
    name, size, total, kind, magic, front = HEADER.unpack(block)
    try:
        # Adler's low half is 1 + the sum of all bytes, modulo 65521; the sum's own field counts as blanks
        if ((zlib.adler32(block) & 0xFFFF) - 1 - sum(total) + 256 - int(total.rstrip(b" \0") or b"0", 8)) % 65521:
            raise Damaged
        if size[0] < 128:
            length = int(size.split(b"\0", 1)[0].strip() or b"0", 8)
        elif size[0] == 128:
            length = int.from_bytes(size[1:], "big")
        else:
            raise Damaged
    except ValueError as error:
        raise Damaged from error
    if length < 0 or length >= 1 << 60:
        raise Damaged
    name = name.split(b"\0", 1)[0]
    if front[0] and magic == b"ustar\0":
        name = front.split(b"\0", 1)[0] + b"/" + name
    return name, length, kind


def _pax(data: bytes) -> dict[bytes, bytes]:
    """Records of "<length> <key>=<value>\\n"."""
    found, at = {}, 0
    while match := PAX.match(data, at):
        end = at + int(match[1])
        found[match[2]] = data[match.end() : end - 1]
        if end <= match.end():
            break
        at = end
    return found


def _is_tar(file: int, at: int, length: int) -> bool:
    block = os.pread(file, BLOCK, at) if length >= BLOCK else b"?"
    try:
        return not block.strip(b"\0") or bool(_header(block))
    except (Damaged, IndexError):
        return False


class Writer:
    """A plain tar file with nothing in it but names and contents, so that the same files make the same archive.

    It gets its name when it is whole: at the end of the `with` block, if nothing was raised in that.

    Args:
        path: of the file.
        go_on: what an earlier writer of it, stopped at any moment, or done, has put into it stays; and what this one
            puts into it, if it is stopped.

    Attributes:
        names: with `go_on`, of the files in it.

    Raises:
        ValueError: with `go_on`, what lies there is no archive of data.
    """

    def __init__(self, path: Path, go_on: bool = False) -> None:
        self.path, self.count, self.names, self._goes_on = path, 0, set(), go_on
        self._part = path.with_name(f".{path.name}.part")
        self._tar: tarfile.TarFile | None = None

    def __enter__(self) -> Writer:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        if self._goes_on and self.path.exists():
            self.names, _ = _whole(self.path)  # it keeps its name until something is to be added
        else:
            self._begin()
        return self

    def add(self, name: str, content: BinaryIO | None, size: int = 0) -> None:
        """name: with / between its parts. content: None for a folder. size: its bytes."""
        if self._tar is None:
            self.path.replace(self._part)
            self._begin()
        member = tarfile.TarInfo(name)
        member.size, member.mode = size, 0o644
        if content is None:
            member.type, member.mode = tarfile.DIRTYPE, 0o755
        self._tar.addfile(member, content)
        self.count += content is not None
        if self._goes_on:
            self.names.add(name)

    def __exit__(self, kind: type | None, *rest: object) -> None:
        if self._tar is None:
            return
        try:
            with self._file:
                self._tar.close()
            if kind is None and (self.names or not self._goes_on):
                self._part.replace(self.path)
        finally:
            if not self._goes_on or not self.names:
                self._part.unlink(missing_ok=True)

    def _begin(self) -> None:
        end = 0
        if self._goes_on and self._part.exists():
            self.names, end = _whole(self._part)
        self._file = self._part.open("r+b" if end else "wb")
        self._file.truncate(end)
        self._file.seek(end)
        self._tar = tarfile.open(fileobj=self._file, mode="w", format=tarfile.GNU_FORMAT)


def _whole(path: Path) -> tuple[set[str], int]:
    """The files in a tar that may be cut off, and where the last whole one ends. Raises ValueError."""
    names, ends = set(), [0]

    def add(name: bytes, offset: int, stored: int, size: int, kind: int) -> None:
        if kind == RAW and offset:
            names.add(os.fsdecode(name))
            ends.append(offset + stored)

    with path.open("rb") as file:
        scan(file.fileno(), os.fstat(file.fileno()).st_size, add, lambda steps: None)
    return names, (max(ends) + BLOCK - 1) // BLOCK * BLOCK
