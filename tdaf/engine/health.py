"""A run's end from outside, and its watch over itself: stop signals that all ranks act on, and a watchdog for hangs."""

from __future__ import annotations

import faulthandler
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import FrameType

import torch
import torch.distributed as td

from tdaf.engine import dist

STOP = (signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP)


class Preemption:
    """SIGTERM, SIGUSR1 and SIGHUP (a terminal that closes) on any rank make every rank stop at the same step, without
    making the GPU or the step wait. SIGHUP means nothing to a run that `nohup` has started.

    The question sent by `poll` at the start of a step is answered by `should_stop` at its end, so a signal is acted on
    within two steps. Outside the main thread, where Python allows no signal handlers, nothing is heard.

    Args:
        timeout: seconds that a rank may wait for the others' answers; 0: for ever.
    """

    def __init__(self, timeout: float = 0) -> None:
        self.requested = False  # on this rank
        self._pending: tuple[td.Work, torch.Tensor] | None = None
        self._group = dist.side_group(timeout)
        self._before = {}

    def __enter__(self) -> Preemption:
        if threading.current_thread() is threading.main_thread():
            heard = [s for s in STOP if s != signal.SIGHUP or signal.getsignal(s) is not signal.SIG_IGN]
            self._before = {s: signal.signal(s, self._request) for s in heard}
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._pending = self._group = None  # the group must end with the others, not while the interpreter does

    def _request(self, number: int, frame: FrameType | None) -> None:
        self.requested = True

    def poll(self) -> None:
        """Asks all ranks whether any was told to stop."""
        if self._group is not None:
            flag = torch.tensor([int(self.requested)])
            self._pending = td.all_reduce(flag, op=td.ReduceOp.MAX, group=self._group, async_op=True), flag

    def should_stop(self) -> bool:
        """The answer to the last `poll`: True on every rank at the same step."""
        if self._pending is None:
            return self.requested
        work, flag = self._pending
        work.wait()
        return bool(flag.item())


class Watchdog:
    """Ends a process that makes no progress, after it has said where it stands and which files it was reading.

    The stacks of all threads go to `<folder>/hang-rank<R>.txt` and to standard error. Every rank of a hanging run hits
    its own limit at about the same time, so each leaves its stacks.

    Args:
        seconds: how long `beat` may be silent; 0: for ever.
        folder: where the stacks are written.
        reading: names what the loader is busy with.
    """

    def __init__(self, seconds: float, folder: Path, reading: Callable[[], list[str]]) -> None:
        self.seconds, self.reading, self.rank = seconds, reading, dist.rank()
        self.path = folder / f"hang-rank{self.rank}.txt"
        self._last = time.monotonic()
        self._stop = threading.Event()

    def __enter__(self) -> Watchdog:
        if self.seconds > 0:
            threading.Thread(target=self._watch, daemon=True).start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._stop.set()

    def beat(self) -> None:
        self._last = time.monotonic()

    def _watch(self) -> None:
        while not self._stop.wait(min(1.0, self.seconds / 4)):
            if time.monotonic() - self._last > self.seconds:
                try:
                    self._report()
                finally:  # even where the disk is full
                    os._exit(1)

    def _report(self) -> None:
        files = ", ".join(self.reading()) or "none"
        line = (
            f"error: rank {self.rank}: no step within hang_timeout={self.seconds:g} s; "
            f"files being read: {files}; stacks: {self.path}\n"
        )
        with suppress(OSError), open(self.path, "w") as file:
            file.write(line)
            file.flush()  # faulthandler writes past the file's buffer
            faulthandler.dump_traceback(file=file, all_threads=True)
        faulthandler.dump_traceback(file=sys.__stderr__, all_threads=True)
        sys.__stderr__.write(line)
        sys.__stderr__.flush()
