"""Files kept in this machine's memory: one copy for all processes that read them, whichever read them first.

It is a file in /dev/shm, which is memory: a table of places, then contents one after the other. Who uses it has it
locked; the last one removes it. What was left behind by processes that were killed is removed by the next to begin.
"""

from __future__ import annotations

import fcntl
import glob
import hashlib
import mmap
import os
import re
import sys
import weakref
from collections.abc import Callable
from contextlib import suppress

import numpy as np

from tdaf.errors import UserError

FOLDER, PREFIX = "/dev/shm", "tdaf-cache-"
LENGTH = 2**24  # of a content, less than that; in an entry of the table the place stands above it
LOOKED_AT = 64  # files, evenly spaced, by which the size of all is estimated
MARGIN = 1.05  # for what the estimate may be wrong


class SharedCache:
    """The contents of `count` files, each put in when it is first read.

    Args:
        key: what the contents depend on; users with equal keys share them.
        count: of files.
        size: bytes of what will be kept of file i, for an estimate of the whole.

    Raises:
        UserError: the contents will not fit into /dev/shm, or into the memory that is free.
    """

    def __init__(self, key: object, count: int, size: Callable[[int], int]) -> None:
        _remove_leftovers()
        name = hashlib.blake2b(repr((os.getuid(), count, key)).encode(), digest_size=12).hexdigest()
        self.path, self.full, self._begin = f"{FOLDER}/{PREFIX}{name}", False, 8 * (1 + count)
        self._file = _locked(self.path)
        self.close = weakref.finalize(self, _leave, self._file, self.path, os.getpid())
        try:
            looked_at = range(0, count, -(-count // LOOKED_AT))
            needed = self._begin + MARGIN * count * sum(map(size, looked_at)) / len(looked_at)
            _check_room(needed - os.fstat(self._file).st_blocks * 512, needed, count)
            os.posix_fallocate(self._file, 0, self._begin)  # else a write to the table could end the process
        except BaseException:
            self.close()
            raise
        # where the next content goes, 0 before the first; then of each file place * LENGTH + length, 0: not there
        self._table = np.frombuffer(mmap.mmap(self._file, self._begin), np.uint64)

    def get(self, index: int) -> np.ndarray | None:
        """The content of file `index`, uint8, a copy of the reader's own; None where it is not there yet."""
        place, length = divmod(int(self._table[1 + index]), LENGTH)
        if not length:
            return None
        content = np.empty(length, np.uint8)
        os.preadv(self._file, [content], place)
        return content

    def put(self, index: int, content: np.ndarray) -> None:
        """Keeps it, if there is room; else that is said, and no more is kept."""
        if self.full or not 0 < content.size < LENGTH:
            return
        fcntl.lockf(self._file, fcntl.LOCK_EX, 8)
        place = int(self._table[0]) or self._begin
        self._table[0] = place + content.size
        fcntl.lockf(self._file, fcntl.LOCK_UN, 8)
        written = 0
        with suppress(OSError):  # there is no room
            written = os.pwrite(self._file, content, place)
        if written == content.size:
            self._table[1 + index] = place * LENGTH + content.size
            return
        self.full = True
        print(
            f"data.cache=ram: {FOLDER} is full; what is not in it is read from its files", file=sys.stderr, flush=True
        )


def _locked(path: str) -> int:
    """The file, opened and locked together with its other users."""
    while True:
        file = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        fcntl.flock(file, fcntl.LOCK_SH)
        if os.fstat(file).st_nlink:
            return file
        os.close(file)  # its last user has removed it in this moment


def _leave(file: int, path: str, process: int) -> None:
    """Removes the file if nobody else uses it. Not from a worker, which has it from its parent."""
    if os.getpid() == process:
        with suppress(OSError):
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.unlink(path)
        os.close(file)


def _remove_leftovers() -> None:
    for path in glob.glob(f"{FOLDER}/{PREFIX}*"):
        with suppress(OSError):  # another user's
            _leave(os.open(path, os.O_RDWR), path, os.getpid())


def _check_room(more: float, needed: float, count: int) -> None:
    """more: bytes that this machine has yet to take of those `needed`."""
    shared, memory = os.statvfs(FOLDER), _memory()
    room = shared.f_bavail * shared.f_frsize
    if more > min(room, memory):
        free = f"{FOLDER} has {room / 1e9:.1f} GB free, and memory {memory / 1e9:.1f} GB"
        remedy = "give a smaller data.cache_side, more memory (docker run --shm-size), or data.cache=null"
        raise UserError(f"data.cache=ram needs {needed / 1e9:.1f} GB for {count} images: {free}; {remedy}")


def _memory() -> float:
    """Bytes that are available on the machine, and to this control group (a container, a SLURM job) at most."""
    with open("/proc/meminfo") as file:
        found = 1024 * int(re.search(r"MemAvailable: *(\d+)", file.read())[1])
    with suppress(OSError, ValueError), open("/proc/self/cgroup") as groups:
        own = groups.read().rpartition("::")[2].strip()
        with open(f"/sys/fs/cgroup{own}/memory.max") as file:
            found = min(found, int(file.read()))
    return found
