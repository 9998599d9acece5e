"""The run folder: config.yaml, metrics.jsonl, summary.json, log.txt, tensorboard/, checkpoints/. Rank 0 writes it."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any

from torch import Tensor

from tdaf.errors import RunError


@contextmanager
def disk(what: Path) -> Iterator[None]:
    """Turns a disk's refusal into one line."""
    try:
        yield
    except OSError as error:
        raise RunError(f"cannot write {what}: {error.strerror or error}") from error


class RunFolder:
    """Writes what a run has to say. On other ranks than 0 (`quiet`) every method does nothing.

    As a context it is closed at the end, with the fault that ended the run as the last line of log.txt.
    """

    def __init__(self, folder: Path, *, quiet: bool = False) -> None:
        self.folder, self.quiet = folder, quiet
        self.checkpoints = folder / "checkpoints"
        self._step = 0
        self._open: dict[str, Any] = {}

    def start(self, step: int, evaluated: int) -> None:
        """Makes the folder, or goes on in it from step `step`, whose last evaluation was at step `evaluated`: what a
        killed run left of later steps is dropped."""
        if self.quiet:
            return
        self._step = step
        with disk(self.folder):
            self.checkpoints.mkdir(parents=True, exist_ok=True)
            for half in [*self.folder.glob(".*.*.[0-9]*"), *self.checkpoints.glob(".*.*.[0-9]*")]:
                half.unlink()
            self._forget_after({"train": step, "val": evaluated})

    def say(self, line: str) -> None:
        """One line for people: on standard output and, with the time, in log.txt."""
        if not self.quiet:
            print(line, flush=True)
            with disk(self.folder / "log.txt"):
                self._note(line)

    def event(self, split: str, step: int, epoch: float, values: dict[str, float]) -> None:
        """One line of metrics.jsonl, and the same numbers in TensorBoard."""
        if self.quiet:
            return
        with disk(self.folder / "metrics.jsonl"):
            line = {"step": step, "epoch": round(epoch, 4), "split": split, **values}
            self._append("metrics.jsonl", json.dumps(line))
            for name, value in values.items():
                self.board.add_scalar(f"{split}/{name}", value, step)

    def picture(self, name: str, image: Tensor, step: int) -> None:
        """image: uint8 (3, H, W), into TensorBoard."""
        if not self.quiet:
            with disk(self.folder / "tensorboard"):
                self.board.add_image(name, image, step)

    def write(self, name: str, text: str) -> None:
        """A file of the folder, whole or not at all."""
        if self.quiet:
            return
        with disk(self.folder / name):
            (self.folder / name).parent.mkdir(exist_ok=True)
            _replace(self.folder / name, text)

    @property
    def board(self) -> Any:
        if "tensorboard" not in self._open:
            from torch.utils.tensorboard import SummaryWriter  # takes a second to import

            self._open["tensorboard"] = SummaryWriter(str(self.folder / "tensorboard"), purge_step=self._step + 1)
        return self._open["tensorboard"]

    def __enter__(self) -> RunFolder:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if error is None:
            self.close()
        elif not self.quiet:
            with suppress(OSError, RunError):  # of a full disk, say, which is the fault to tell already
                self._note(f"ended by {type(error).__name__}: {error}".removesuffix(": "))
                self.close()

    def close(self) -> None:
        with disk(self.folder):
            for file in self._open.values():
                file.close()
        self._open.clear()

    def _note(self, line: str) -> None:
        self._append("log.txt", f"{time.strftime('%Y-%m-%d %H:%M:%S')} {line}")

    def _append(self, name: str, line: str) -> None:
        if name not in self._open:
            self._open[name] = open(self.folder / name, "a", buffering=1)
        self._open[name].write(line + "\n")

    def _forget_after(self, known: dict[str, int]) -> None:
        path = self.folder / "metrics.jsonl"
        if not path.exists():
            return
        kept = []
        for line in path.read_text().splitlines():
            try:
                event = json.loads(line)
                if event["step"] <= known[event["split"]]:
                    kept.append(line + "\n")
            except (ValueError, KeyError):
                continue  # the line that a kill cut off
        _replace(path, "".join(kept))


def _replace(path: Path, text: str) -> None:
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with open(aside, "w") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)


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

    def advance(self, note: str | None = None) -> None:
        if self._bar is not None:
            self._bar.update(self._task, advance=1, **({"note": note} if note else {}))

    def stop(self) -> None:
        if self._bar is not None:
            self._bar.stop()
