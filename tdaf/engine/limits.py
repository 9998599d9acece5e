"""What the system refuses to processes that read: open files, shared memory, memory, more processes. Each by its name,
with what to do (`python -m tdaf.env` prints the values); and the remedies that need no decision."""

from __future__ import annotations

import errno
import functools
import os
import re
import resource
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import torch

PER_WORKER = 4  # descriptors that a reading process costs this one: its queue, its sentinel, its share of the results'
PER_BATCH = 16  # tensors of a batch on its way, of which each is an open file
RESERVE = 32  # for a checkpoint, TensorBoard, a library that is imported
_MEMORY = "no memory is left (free -h, ulimit -v): give fewer workers, less prefetch or a smaller batch"
_TEXTS = {
    errno.EMFILE: "too many open files: raise ulimit -n, or give fewer workers",
    errno.ENFILE: "the machine has too many open files (fs.file-max): give fewer workers",
    errno.ENOSPC: "shared memory is full (df -h /dev/shm): give it more (docker run --shm-size), or fewer workers, or "
    "less prefetch",
    errno.ENOMEM: _MEMORY,
    errno.EAGAIN: "no more processes or threads may be started: raise ulimit -u, or give fewer workers",
}


def refused(error: BaseException) -> int:
    """The errno of a limit that `error`, of Python or of torch, tells of; 0 for any other error."""
    if isinstance(error, MemoryError):
        return errno.ENOMEM
    if isinstance(error, OSError) and error.errno in _TEXTS:
        return error.errno
    text = str(error)
    if "can't start new thread" in text:
        return errno.EAGAIN
    if "Bus error" in text:  # a page of shared memory that there is no room for
        return errno.ENOSPC
    return next((code for code in _TEXTS if os.strerror(code).lower() in text.lower()), 0)


def described(code: int) -> str:
    """The limit, and what to do about it."""
    return _TEXTS[code]


def death(text: str) -> str:
    """How a reading process died, from torch's sentence about it."""
    signal = re.search(r"killed by signal: (.*?)\.", text)
    if signal is None or signal[1] == "Killed":
        return f"killed, most likely by the system: {_MEMORY}"
    return f"{signal[1]}, in a library that reads; loader.workers=0 shows where"


def fitting_workers(workers: int, prefetch: int) -> int:
    """How many of these processes the limit of open files lets read. It is raised where it may be; else tensors pass
    through named files instead of open ones, and if that is not enough, fewer processes read. Each is said."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    hard = sys.maxsize if hard == resource.RLIM_INFINITY else hard
    soft = sys.maxsize if soft == resource.RLIM_INFINITY else soft
    base = len(os.listdir("/proc/self/fd")) + RESERVE
    wanted = base + workers * (PER_WORKER + prefetch * PER_BATCH)
    if soft >= wanted:
        return workers
    if hard > soft:
        more = min(hard, max(wanted, 4096))
        resource.setrlimit(resource.RLIMIT_NOFILE, (more, hard))
        say_once(f"ulimit -n is {soft}, too few open files for {workers} loader workers: it is {more} for this run")
        soft = more
    if soft >= wanted:
        return workers
    torch.multiprocessing.set_sharing_strategy("file_system")
    fewer = max(0, min(workers, (soft - base) // PER_WORKER))
    remedy = "tensors pass through named files" if fewer else "the run reads by itself"
    few = f", from {fewer} worker{'s' * (fewer > 1)}" if 0 < fewer < workers else ""
    say_once(f"ulimit -n is {soft}, too few open files for {workers} loader workers: {remedy}{few}")
    return fewer


@contextmanager
def quiet_leftovers() -> Iterator[None]:
    """Keeps silent what half a loader that could not be started says as it is thrown away."""
    before, sys.unraisablehook = sys.unraisablehook, lambda _: None
    try:
        yield
    finally:
        sys.unraisablehook = before


@functools.cache
def say_once(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
