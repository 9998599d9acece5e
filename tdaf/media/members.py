"""One tar or zip file: what lies in it, and where.

An archive is listed once. The list is plain arrays, 37 bytes a member and its name; that of a large archive is kept in
a file, which all processes map. Members are read by their offsets from one open file: no copy and no temporary file.
"""

from __future__ import annotations

import fcntl
import hashlib
import io
import json
import os
import sys
import zlib
from array import array
from bisect import bisect_left
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import islice
from pathlib import Path
from typing import BinaryIO

import numpy as np

from tdaf.errors import UnreadableSample, UserError
from tdaf.media.tar import CUT, RAW, scan, shown
from tdaf.media.zip import DEFLATED, LOCAL, STORED
from tdaf.media.zip import scan as scan_zip
from tdaf.streams import Bar

COMPRESSED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd"}
ZIP = (b"PK\3\4", b"PK\5\6")
KEPT_FROM = 1000  # members; what is listed in a moment leaves no file behind
PART = 4096  # members
HEAD = 1024  # bytes of a kept list before its arrays
COLUMNS = {"ends": "<u8", "offsets": "<u8", "stored": "<u8", "sizes": "<u8", "checks": "<u4", "kinds": "u1"}
SLACK = 256  # bytes; more than what usually follows that name
LARGEST = 1 << 32  # bytes that one member may inflate to
RATIO = 1032  # nothing inflates to more times its length (zlib's technical details)


class Listing:
    """Members in the order in which they are found: names without / at the end, but for folders."""

    def __init__(self) -> None:
        self.names: list[bytes] = []
        self.offsets, self.stored, self.sizes, self.checks = array("Q"), array("Q"), array("Q"), array("I")
        self.kinds = bytearray()
        self.fault = ""  # where the archive ends before its end

    def add(self, name: bytes, offset: int, stored: int, size: int, check: int, kind: int) -> None:
        if not name:  # the folder that was packed
            return
        self.names.append(name)
        self.offsets.append(offset)
        self.stored.append(stored)
        self.sizes.append(size)
        self.checks.append(check)
        self.kinds.append(kind)


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
            os.posix_fadvise(self._file, 0, 0, os.POSIX_FADV_RANDOM)
            about = os.fstat(self._file)
        except OSError as error:
            raise UserError(f"{path}: {error.strerror}") from error
        self.size, self.changed = about.st_size, about.st_mtime_ns
        if not self._load():
            with _alone(self._file):  # another rank may have listed it meanwhile
                if not self._load():
                    self._keep(*self._listed())

    def __del__(self) -> None:
        with suppress(AttributeError, OSError):
            os.close(self._file)

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

    def read(self, row: int) -> np.ndarray:
        """A member's content, uint8. Raises UnreadableSample where that is damaged or cut off."""
        kind, offset, stored, size = self._kinds[row], self._offsets[row], self._stored[row], self._sizes[row]
        if kind == CUT:
            raise UnreadableSample(f"the archive {self.fault}")
        if kind == RAW:
            return self.pread(offset, stored)
        begin, data = self._behind_header(row, SLACK + stored)
        data = data[begin : begin + stored] if begin + stored <= len(data) else self.pread(offset + begin, stored)
        return data if kind == STORED else self._inflated(data, size, self._checks[row])

    def open(self, row: int) -> BinaryIO:
        """A member as a file to read and seek in."""
        if self._kinds[row] not in (RAW, STORED):
            return io.BytesIO(self.read(row).data)
        begin = self._behind_header(row)[0] if self._kinds[row] == STORED else 0
        return io.BufferedReader(_Window(self, row, self._offsets[row] + begin, self._stored[row]))

    def length(self, row: int) -> int:
        return self._sizes[row]

    def pread(self, offset: int, length: int) -> np.ndarray:
        """So many bytes of the file from there. Raises UnreadableSample where it has fewer."""
        data, done = np.empty(length, np.uint8), 0
        while done < length:
            count = os.preadv(self._file, [data[done:]], offset + done)
            if not count:
                raise UnreadableSample(f"the archive is cut off: it ends before byte {offset + length}")
            done += count
        return data

    def _behind_header(self, row: int, more: int = 0) -> tuple[int, np.ndarray]:
        """Where a zip member's content begins, from its header; and that header with so many more bytes, or fewer."""
        offset = self._offsets[row]
        data = self.pread(offset, min(LOCAL + len(self.name(row)) + more, self.size - offset))
        head = data[:LOCAL].tobytes()
        if head[:4] != ZIP[0] or head[8] != (8 if self._kinds[row] == DEFLATED else 0):
            raise UnreadableSample(f"the archive is damaged at byte {offset}")
        return LOCAL + int.from_bytes(head[26:28], "little") + int.from_bytes(head[28:30], "little"), data

    def _inflated(self, data: np.ndarray, size: int, check: int) -> np.ndarray:
        if size > LARGEST:
            raise UnreadableSample(f"it claims to inflate to {size} bytes, more than any sample has")
        try:
            if size > RATIO * len(data) + 64:
                raise ValueError
            inflater = zlib.decompressobj(-zlib.MAX_WBITS)
            content = bytearray(inflater.decompress(data, size + 1))
            if len(content) != size or not inflater.eof or zlib.crc32(content) != check:
                raise ValueError
        except (zlib.error, ValueError) as error:
            raise UnreadableSample(f"damaged: it does not inflate to the {size} bytes that it claims") from error
        return np.frombuffer(content, np.uint8)

    def _first(self, name: bytes, least: int = 0) -> int:
        return bisect_left(range(len(self)), name, least, key=self.name)

    def _span(self, folder: bytes) -> tuple[int, int]:
        """The rows of all that lies in a folder."""
        return (self._first(folder + b"/"), self._first(folder + b"0")) if folder else (0, len(self))

    def _listed(self) -> tuple[bytes, int, str]:
        listing = Listing()
        with Bar(f"listing {os.path.basename(self.path)} (MB)", self.size >> 20, quiet=self.size < 1 << 28) as bar:
            start = self.pread(0, min(8, self.size)).tobytes()
            packer = next((name for magic, name in COMPRESSED.items() if start.startswith(magic)), None)
            if packer:
                raise UserError(f"{self.path} {to_convert(packer, self.path)}")
            try:
                reader = scan_zip if start.startswith(ZIP) else scan
                listing.fault = reader(self._file, self.size, listing.add, bar.advance)
            except ValueError as error:
                raise UserError(f"{self.path}: {error}") from error
        if not listing.names:
            raise UserError(f"{self.path} {listing.fault or 'holds nothing'}: is it a tar or zip file, and whole?")
        return _packed(listing, self.path)

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
            with suppress(OSError, ValueError, KeyError, TypeError, OverflowError):
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
        columns, at = {}, 0
        for name, kind in COLUMNS.items():
            end = at + count * np.dtype(kind).itemsize
            columns[name], at = payload[at:end].view(kind), end
        ends, offsets, stored = columns["ends"], columns["offsets"], columns["stored"]
        sound = count and (ends[1:] >= ends[:-1]).all() and int(ends[-1]) == len(payload) - at
        if not sound or columns["kinds"].max() > CUT or max(offsets.max(), stored.max()) > self.size:
            raise ValueError
        if (offsets + stored > self.size).any():
            raise ValueError
        self._names, self.fault = memoryview(payload[at:]), fault
        self._ends, self._offsets, self._stored, self._sizes, self._checks, self._kinds = (
            memoryview(column) for column in columns.values()
        )

    def _files(self) -> list[Path]:
        """Where the list is kept: the first that can be written."""
        name = os.path.basename(self.path)
        place = hashlib.blake2b(os.fsencode(os.path.abspath(self.path)), digest_size=8).hexdigest()
        cache = Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"))
        return [Path(f"{self.path}.index"), cache / "tdaf" / f"{name}.{place}.index"]


class _Window(io.RawIOBase):
    """A stretch of an archive as a file."""

    def __init__(self, archive: Archive, row: int, offset: int, length: int) -> None:
        self.name = os.path.join(archive.path, os.fsdecode(archive.name(row)))  # its ending helps FFmpeg
        self._archive, self._offset, self._length, self._at = archive, offset, length, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._at = max(0, offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._length}[whence])
        return self._at

    def readinto(self, buffer: memoryview) -> int:
        count = max(0, min(len(buffer), self._length - self._at))
        buffer[:count] = self._archive.pread(self._offset + self._at, count).data
        self._at += count
        return count


def to_convert(packer: str, file: str, target: str | None = None) -> str:
    new = target or f"{file}.new && mv {file}.new {file}"
    return f"is compressed, and cannot be read from the middle; convert it once: {packer} -dc {file} > {new}"


def _packed(listing: Listing, path: str) -> tuple[bytes, int, str]:
    """The arrays, sorted by name; for how many members; the fault. Of several members of one name the last stays, as in
    unpacking, and that is said."""
    names = np.array(listing.names, object)
    order = np.argsort(names, kind="stable")
    names = names[order]
    last = np.append(names[1:] != names[:-1], True)
    twice = [name for name in names[~last] if name[-1:] != b"/"]
    if twice:
        first = shown(twice[0])
        said = f"{path}: {len(twice)} members are in it again under the same name ({first} first); the last one counts"
        print(said, file=sys.stderr, flush=True)
    names, order = names[last], order[last]
    columns = [np.cumsum(np.fromiter(map(len, names), "<u8", len(names)))]
    for name, kind in islice(COLUMNS.items(), 1, None):
        columns.append(np.frombuffer(getattr(listing, name), kind)[order])
    # in parts: joining takes 80 bytes of memory for each of what it joins
    parts = [b"".join(names[at : at + PART]) for at in range(0, len(names), PART)]
    return b"".join([*columns, *parts]), len(names), listing.fault


@contextmanager
def _alone(file: int) -> Iterator[None]:
    """While one process lists an archive, others wait for what it will keep; not where a file system has no locks."""
    with suppress(OSError):
        fcntl.flock(file, fcntl.LOCK_EX)
    try:
        yield
    finally:
        with suppress(OSError):
            fcntl.flock(file, fcntl.LOCK_UN)
