"""A rank that makes no progress says where it stands, and which files it was reading, then ends."""

from __future__ import annotations

import faulthandler
import os
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path


class Watchdog:
    """Calls for a stack dump of all threads and ends the process when `beat` was not called for `seconds`.

    The dump goes to `<folder>/hang-rank<R>.txt` and to standard error. reading: names what the loader is busy with.
    Every rank of a hanging run hits its own limit at about the same time, so each leaves its stacks.
    """

    def __init__(self, seconds: float, folder: Path, rank: int, reading: Callable[[], list[str]]) -> None:
        self.seconds, self.path, self.rank, self.reading = seconds, folder / f"hang-rank{rank}.txt", rank, reading
        self._last = time.monotonic()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Watchdog:
        if self.seconds > 0:
            self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._stop.set()

    def beat(self) -> None:
        self._last = time.monotonic()

    def _watch(self) -> None:
        while not self._stop.wait(min(1.0, self.seconds / 4)):
            if time.monotonic() - self._last > self.seconds:
                self._give_up()

    def _give_up(self) -> None:
        try:
            self._tell()
        finally:  # even where the disk is full
            os._exit(1)

    def _tell(self) -> None:
        files = ", ".join(self.reading()) or "none"
        line = (
            f"error: rank {self.rank}: no step within trainer.hang_timeout={self.seconds:g} s; "
            f"files being read: {files}; stacks: {self.path}\n"
        )
        faulthandler.dump_traceback(file=sys.__stderr__, all_threads=True)
        sys.__stderr__.write(line)
        sys.__stderr__.flush()
        with open(self.path, "w") as file:
            file.write(line)
            file.flush()  # faulthandler writes past the file's buffer
            faulthandler.dump_traceback(file=file, all_threads=True)
