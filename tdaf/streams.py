"""Standard output and error, which may go away under a run (a closed pipe, a terminal that is gone, a full device), and
progress on them."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, TextIO

lost: list[str] = []  # what went away in this process, and why


class LossyStream:
    """A text stream that drops what it cannot write, and from then on everything. Else it is the stream itself."""

    def __init__(self, stream: TextIO, name: str) -> None:
        self._stream, self._name, self._is_lost = stream, name, False

    def write(self, text: str) -> int:
        self._attempt(self._stream.write, text)
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        self._attempt(self._stream.writelines, lines)

    def flush(self) -> None:
        self._attempt(self._stream.flush)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def _attempt(self, action: Callable[..., Any], *arguments: Any) -> None:
        if self._is_lost:
            return
        try:
            action(*arguments)
        except UnicodeError:
            raise
        except (OSError, ValueError) as error:  # a ValueError of a file that is closed
            self._is_lost = True
            lost.append(f"{self._name} went away ({getattr(error, 'strerror', None) or error})")
            mute(self._stream)


@contextmanager
def lossy_streams() -> Iterator[None]:
    """In the block, what cannot be printed is dropped, and `lost` says so."""
    before = sys.stdout, sys.stderr
    names = ("standard output", "standard error")
    ours = [s if isinstance(s, LossyStream) else s and LossyStream(s, n) for s, n in zip(before, names, strict=True)]
    sys.stdout, sys.stderr = ours
    try:
        yield
    finally:
        for stream in filter(None, ours):
            stream.flush()  # or the interpreter does, as it ends, and complains
        sys.stdout, sys.stderr = before


def mute(stream: TextIO) -> None:
    """Sends to nowhere what the stream still holds, and all that is written to it from here on, by C code too."""
    with suppress(OSError, ValueError, AttributeError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)


def open_closed_streams() -> None:
    """Opens on nothing the standard streams that this process was started without (`>&-`): the next file that it opens
    would have their number, and what C code says of an error would go into it."""
    for descriptor, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w" if descriptor else "r"))


class Bar:
    """Progress on a terminal; nothing where standard error is a file or a pipe (log lines serve there)."""

    def __init__(self, title: str, total: int, start: int = 0, quiet: bool = False) -> None:
        self._bar = None
        if quiet or not sys.stderr.isatty():
            return
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        note = TextColumn("{task.fields[note]}")
        columns = (TextColumn(title), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), note)
        self._bar = Progress(*columns, console=Console(stderr=True), redirect_stdout=True)
        self._task = self._bar.add_task(title, total=total, completed=start, note="")
        self._bar.start()

    def __enter__(self) -> Bar:
        return self

    def __exit__(self, *exception: object) -> None:
        self.stop()

    def advance(self, note: str | None = None, steps: int = 1) -> None:
        if self._bar is not None:
            self._bar.update(self._task, advance=steps, **({"note": note} if note else {}))

    def stop(self) -> None:
        if self._bar is not None:
            self._bar.stop()
