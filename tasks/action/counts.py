"""How many frames each video has, found once and kept beside the data: `root`/frame_counts.csv.

A line holds for as long as the file has the size and the time of change that it had. Finding them takes milliseconds a
video (mp4's table or the headers of packets, no decoding), in which it mostly waits for the disk.
"""

from __future__ import annotations

import csv
import os
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from tdaf.engine.log import Bar
from tdaf.errors import UnreadableSample

FILE = "frame_counts.csv"
HEAD = ["frames", "bytes", "changed_ns", "video"]
Line = tuple[int, int, int]  # frames, bytes, changed


def frame_counts(root: Path, names: list[str], count: Callable[[Path], int]) -> np.ndarray:
    """(N,) int64, 0 where a video cannot be read. count: finds one, raises UnreadableSample.

    The kept file is replaced in one step, and goes on holding the lines of other videos. Where it cannot be written,
    that is said and everything is found again the next time.
    """
    kept = _read(root / FILE)
    threads = min(32, 4 * (os.cpu_count() or 1))
    with ThreadPoolExecutor(threads) as pool:
        stats = list(pool.map(lambda name: _stat(root / name), names))
        new = [
            (name, stat)
            for name, stat in zip(names, stats, strict=True)
            if stat is not None and kept.get(name, (0, 0, 0))[1:] != stat
        ]
        if new:
            print(f"counting the frames of {len(new)} videos, kept in {root / FILE}", file=sys.stderr, flush=True)
            bar = Bar("frames", len(new))
            found = pool.map(lambda item: _count(root / item[0], count), new)
            for (name, stat), frames in zip(new, found, strict=True):
                kept[name] = (frames, *stat)
                bar.advance()
            bar.stop()
            _write(root / FILE, kept)
    there = (kept[name][0] if stat is not None else 0 for name, stat in zip(names, stats, strict=True))
    return np.fromiter(there, np.int64, len(names))


def _stat(path: Path) -> tuple[int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_size, found.st_mtime_ns


def _count(path: Path, count: Callable[[Path], int]) -> int:
    try:
        return count(path)
    except UnreadableSample:
        return 0


def _read(path: Path) -> dict[str, Line]:
    try:
        with path.open(newline="", encoding="utf-8", errors="surrogateescape") as text:
            lines = csv.reader(text)
            if next(lines, None) != HEAD:
                return {}
            return {name: (int(frames), int(size), int(changed)) for frames, size, changed, name in lines}
    except (OSError, ValueError, csv.Error):
        return {}


def _write(path: Path, kept: dict[str, Line]) -> None:
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with aside.open("w", newline="", encoding="utf-8", errors="surrogateescape") as text:
            csv.writer(text).writerows([HEAD, *((*line, name) for name, line in sorted(kept.items()))])
        aside.replace(path)
    except OSError as error:
        print(f"{path} cannot be written ({error.strerror}): the next run counts again", file=sys.stderr, flush=True)
        aside.unlink(missing_ok=True)
