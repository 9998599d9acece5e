"""One tar or zip file: what lies in it, and where.

An archive is listed once. The list is plain arrays, 40 bytes a member and its name; that of a large archive is kept in
a file, which all processes map. Members are read by their offsets from one open file: no copy and no temporary file.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import io
import json
import os
import stat
import struct
import sys
import weakref
import zipfile
import zlib
from array import array
from bisect import bisect_left
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

import numpy as np

from tdaf.errors import UnreadableSample, UserError
from tdaf.media.tar import CUT, RAW, Add, clean, scan, shown
from tdaf.streams import Bar

STORED, DEFLATED = 1, 2  # kinds of zip members, which lie behind a header of their own; tar.py has the others
COMPRESSED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd"}
ZIP = (b"PK\3\4", b"PK\5\6")
KEPT_FROM = 1000  # members; what is listed in a moment leaves no file behind
PART = 4096  # members
HEAD = 1024  # bytes of a kept list before its arrays
COLUMNS = 5  # uint64 each: where the name ends, offset, bytes stored, bytes, CRC-32 << 2 | kind; then all names
LOCAL = 30  # bytes of a zip member's header before its name
SLACK = 256  # bytes; more than what usually follows that name
LARGEST = 1 << 32  # bytes that one member may inflate to
RATIO = 1032  # nothing inflates to more times its length (zlib's technical details)
UNICODE_PATH = 0x7075  # the extra field of Info-ZIP that zipfile reads from Python 3.13 on


class Archive:
    """One tar or zip file.

    Args:
        path: of the file.

    Attributes:
        fault: where it is cut off or damaged, in words; "" where it is whole.

    Raises:
        UserError: it cannot be read, is compressed as a whole, or holds what has no place in a data set: names that
            lead out of it, links, devices, encrypted members, other compression than deflate.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        try:
            self._file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            weakref.finalize(self, os.close, self._file)
            os.posix_fadvise(self._file, 0, 0, os.POSIX_FADV_RANDOM)
            about = os.fstat(self._file)
        except OSError as error:
            raise UserError(f"{path}: {error.strerror}") from error
        self.size, self.changed = about.st_size, about.st_mtime_ns
        if not self._load():
            with suppress(OSError):  # of a file system without locks
                fcntl.flock(self._file, fcntl.LOCK_EX)
            if not self._load():  # another rank may have listed it meanwhile
                self._keep(*self._listed())
            with suppress(OSError):
                fcntl.flock(self._file, fcntl.LOCK_UN)

    def __len__(self) -> int:
        return len(self._ends)

    def name(self, row: int) -> bytes:
        return self._names[self._ends[row - 1] if row else 0 : self._ends[row]].tobytes()

    def find(self, name: bytes) -> int | None:
        """The row of a member."""
        row = self._first(name)
        return row if row < len(self) and self.name(row) == name else None

    def is_folder(self, name: bytes) -> bool:
        first, end = self._span(name)
        return first < end or not name

    def inside(self, name: bytes) -> tuple[list[str], list[str]]:
        """The names of the folders and of the files in a folder, sorted by their bytes."""
        folders, files, cut = [], [], len(name) + bool(name)
        at, end = self._span(name)
        while at < end:
            folder, slash, _ = (rest := self.name(at)[cut:]).partition(b"/")
            if slash:
                folders.append(os.fsdecode(folder))
                at = self._first((name + b"/" if name else b"") + folder + b"0", at)  # the character after /
            else:
                if rest:
                    files.append(os.fsdecode(rest))
                at += 1
        return folders, files

    def read(self, name: bytes) -> np.ndarray:
        """A member's content, uint8. Raises FileNotFoundError, and UnreadableSample where it is damaged or cut off."""
        offset, stored, size, check, kind = self._member(name)
        if kind == RAW:
            return self._read(name, offset, stored)
        data, begin = self._behind_header(name, offset, kind, SLACK + stored)
        data = data[begin : begin + stored] if begin + stored <= len(data) else self._read(name, offset + begin, stored)
        return data if kind == STORED else self._inflated(name, data, size, check)

    def open(self, name: bytes) -> BinaryIO:
        """A member as a file to read and seek in; raises as `read`."""
        offset, stored, _, _, kind = self._member(name)
        if kind == DEFLATED:
            return io.BytesIO(self.read(name).data)
        begin = self._behind_header(name, offset, kind)[1] if kind == STORED else 0
        return io.BufferedReader(_Window(self, name, offset + begin, stored))

    def length(self, name: bytes) -> int:
        return self._member(name, cut=True)[2]

    def path_of(self, name: bytes) -> str:
        return os.path.join(self.path, os.fsdecode(name))

    def _member(self, name: bytes, cut: bool = False) -> tuple[int, int, int, int, int]:
        """Offset, bytes stored, bytes, CRC-32 and kind. cut: whether it may be cut off."""
        row = self.find(name)
        if row is None:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), self.path_of(name))
        offset, stored, size, check = (column[row] for column in self._columns)
        if check & 3 == CUT and not cut:
            raise self._unreadable(name, f"the archive {self.fault}")
        return offset, stored, size, check >> 2, check & 3

    def _unreadable(self, name: bytes, reason: str) -> UnreadableSample:
        return UnreadableSample(f"{reason} ({self.path_of(name)})")

    def _read(self, name: bytes, offset: int, length: int) -> np.ndarray:
        """So many bytes of the file from there. Raises UnreadableSample, of the member, where it has fewer."""
        data, done = np.empty(length, np.uint8), 0
        while done < length:
            count = os.preadv(self._file, [data[done:]], offset + done)
            if not count:
                raise self._unreadable(name, f"the archive is cut off: it ends before byte {offset + length}")
            done += count
        return data

    def _behind_header(self, name: bytes, offset: int, kind: int, more: int = 0) -> tuple[np.ndarray, int]:
        """A zip member's header with so many more bytes, or fewer; and where in that its content begins."""
        data = self._read(name, offset, min(LOCAL + len(name) + more, self.size - offset))
        head = data[:LOCAL].tobytes()
        if head[:4] != ZIP[0] or head[8] != (8 if kind == DEFLATED else 0):
            raise self._unreadable(name, f"the archive is damaged at byte {offset}")
        return data, LOCAL + sum(struct.unpack_from("<HH", head, 26))

    def _inflated(self, name: bytes, data: np.ndarray, size: int, check: int) -> np.ndarray:
        try:
            if size > min(LARGEST, RATIO * len(data) + 64):
                raise ValueError
            inflater = zlib.decompressobj(-zlib.MAX_WBITS)
            content = bytearray(inflater.decompress(data, size + 1))
            if len(content) != size or not inflater.eof or zlib.crc32(content) != check:
                raise ValueError
        except (zlib.error, ValueError) as error:
            said = f"damaged: it does not inflate to the {size} bytes that it claims"
            raise self._unreadable(name, said) from error
        return np.frombuffer(content, np.uint8)

    def _first(self, name: bytes, least: int = 0) -> int:
        return bisect_left(range(len(self)), name, least, key=self.name)

    def _span(self, folder: bytes) -> tuple[int, int]:
        """The rows of all that lies in a folder."""
        return (self._first(folder + b"/"), self._first(folder + b"0")) if folder else (0, len(self))

    def _listed(self) -> tuple[bytes, int, str]:
        """The arrays, for how many members, and the fault."""
        names: list[bytes] = []
        numbers = array("Q")

        def add(name: bytes, *more: int) -> None:
            if name:  # else the folder that was packed
                names.append(name)
                numbers.extend(more)

        with Bar(f"listing {os.path.basename(self.path)} (MB)", self.size >> 20, quiet=self.size < 1 << 28) as bar:
            start = os.pread(self._file, 8, 0)
            packer = next((name for magic, name in COMPRESSED.items() if start.startswith(magic)), None)
            if packer:
                raise UserError(f"{self.path} {to_convert(packer, self.path)}")
            try:
                fault = (scan_zip if start.startswith(ZIP) else scan)(self._file, self.size, add, bar.advance)
            except ValueError as error:
                raise UserError(f"{self.path}: {error}") from error
        if not names:
            raise UserError(f"{self.path} {fault or 'holds nothing'}: is it a tar or zip file, and whole?")
        return *self._sorted(names, numbers), fault

    def _sorted(self, names: list[bytes], numbers: array) -> tuple[bytes, int]:
        """The arrays by name, and for how many members. Of several members of one name the last stays, as in unpacking,
        and that is said."""
        ordered = np.array(names, object)
        order = np.argsort(ordered, kind="stable")
        ordered = ordered[order]
        last = np.append(ordered[1:] != ordered[:-1], True)
        twice = [name for name in ordered[~last] if name[-1:] != b"/"]
        if twice:
            first = shown(twice[0])
            said = f"{len(twice)} members are in it again under the same name ({first} first); the last one counts"
            print(f"{self.path}: {said}", file=sys.stderr, flush=True)
        ordered = ordered[last]
        ends = np.cumsum(np.fromiter(map(len, ordered), "<u8", len(ordered)))
        columns = np.frombuffer(numbers, "<u8").reshape(len(names), -1)[order[last]].T
        # in parts: joining takes 80 bytes of memory for each of what it joins
        parts = [b"".join(ordered[at : at + PART]) for at in range(0, len(ordered), PART)]
        return b"".join([ends, columns.tobytes(), *parts]), len(ordered)

    def _keep(self, payload: bytes, count: int, fault: str) -> None:
        """Takes the arrays, and writes them to a file where there are many: beside the archive, or where that may not
        be, in the user's cache folder."""
        self._take(np.frombuffer(payload, np.uint8), count, fault)
        if len(self) < KEPT_FROM:
            return
        about = {"archive": [self.size, self.changed], "count": len(self), "check": zlib.crc32(payload)}
        head = json.dumps({**about, "fault": fault[: HEAD // 2]}).encode().ljust(HEAD)
        for file in self._files():
            part = file.with_name(f".{file.name}.{os.getpid()}")
            with suppress(OSError):
                file.parent.mkdir(parents=True, exist_ok=True)
                try:
                    with part.open("wb") as target:
                        target.writelines((head, payload))
                    part.replace(file)
                finally:
                    part.unlink(missing_ok=True)
                self._load()
                return

    def _load(self) -> bool:
        """Takes a kept list, if there is one of this archive as it is and all places in it lie within the archive."""
        for file in self._files():
            with suppress(OSError, ValueError, LookupError, TypeError, OverflowError):
                with file.open("rb") as source:
                    about = json.loads(source.read(HEAD))
                payload = np.memmap(file, np.uint8, "r", HEAD)
                if about["archive"] != [self.size, self.changed] or zlib.crc32(payload) != about["check"]:
                    continue
                self._take(payload, int(about["count"]), str(about["fault"]))
                return True
        return False

    def _take(self, payload: np.ndarray, count: int, fault: str) -> None:
        """Raises ValueError where the arrays are not those of such an archive."""
        names = payload[8 * COLUMNS * count :]
        ends, offsets, stored, *_ = columns = payload[: -len(names)].view("<u8").reshape(COLUMNS, count)
        if (ends[1:] < ends[:-1]).any() or ends[-1] != len(names) or max(offsets.max(), stored.max()) > self.size:
            raise ValueError
        if (offsets + stored > self.size).any():
            raise ValueError
        self._names, self.fault = memoryview(names), fault
        self._ends, *self._columns = map(memoryview, columns)

    def _files(self) -> list[Path]:
        """Where the list is kept: the first that can be written."""
        name = os.path.basename(self.path)
        place = hashlib.blake2b(os.fsencode(os.path.abspath(self.path)), digest_size=8).hexdigest()
        cache = Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"))
        return [Path(f"{self.path}.index"), cache / "tdaf" / f"{name}.{place}.index"]


class _Window(io.RawIOBase):
    """A stretch of an archive as a file."""

    def __init__(self, archive: Archive, member: bytes, offset: int, length: int) -> None:
        self.name = archive.path_of(member)  # its ending helps FFmpeg
        self._archive, self._member, self._offset, self._length, self._at = archive, member, offset, length, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._at = max(0, offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._length}[whence])
        return self._at

    def readinto(self, buffer: memoryview) -> int:
        count = max(0, min(len(buffer), self._length - self._at))
        buffer[:count] = self._archive._read(self._member, self._offset + self._at, count).data
        self._at += count
        return count


def to_convert(packer: str, file: str, target: str | None = None) -> str:
    new = target or f"{file}.new && mv {file}.new {file}"
    return f"is compressed, and cannot be read from the middle; convert it once: {packer} -dc {file} > {new}"


def scan_zip(file: int, size: int, add: Add, advance: Callable[..., None]) -> str:
    """As `scan` of tar.py, for a zip file: in the order of its table."""
    fault = ""
    try:
        with open(file, "rb", closefd=False) as source, zipfile.ZipFile(source) as table:
            members = table.infolist()
    except (zipfile.BadZipFile, struct.error, ValueError, OSError, NotImplementedError) as error:
        raise ValueError("cut off, or no zip file: its table of members, at its end, cannot be read") from error
    for member in members:
        name, offset, stored = _zip_name(member), member.header_offset, member.compress_size
        if member.flag_bits & 1:
            raise ValueError(f"{shown(name)} is encrypted; pack the files again without a password")
        if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            how = f"{shown(name)} is compressed by method {member.compress_type}"
            raise ValueError(f"{how}, neither stored nor deflated; pack the files again")
        if stat.S_ISLNK(member.external_attr >> 16):
            raise ValueError(f"{shown(name)} is a link; pack the files themselves")
        if not member.compress_type and member.file_size != stored:
            sizes = f"{member.file_size} bytes and is stored in {stored}"
            raise ValueError(f"{shown(name)} claims {sizes}; bring the archive again")
        kind, name = DEFLATED if member.compress_type else STORED, clean(name.replace(b"\\", b"/"))
        if not 0 <= offset <= size - LOCAL - stored:
            fault = f"{shown(name)} lies beyond the end of the archive"
            offset, stored, kind = 0, 0, CUT
        add(name, offset, stored, member.file_size, member.CRC << 2 | kind)
    advance(steps=size >> 20)
    return fault


def _zip_name(member: zipfile.ZipInfo) -> bytes:
    extra = member.extra
    while len(extra) >= 4:
        kind, length = struct.unpack_from("<HH", extra)
        if kind == UNICODE_PATH and extra[5:9] == struct.pack("<L", zlib.crc32(member.orig_filename.encode("cp437"))):
            return extra[9 : 4 + length]
        extra = extra[4 + length :]
    return os.fsencode(member.filename)
