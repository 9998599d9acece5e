"""The run folder: config.yaml, metrics.jsonl, summary.json, log.txt, tensorboard/, checkpoints/. Rank 0 alone writes it."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
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

    step, evaluated: where the run goes on from and its last evaluation; later events, left by a killed run, are dropped.
    """

    def __init__(self, folder: Path, *, step: int = 0, evaluated: int = 0, quiet: bool = False) -> None:
        self.folder, self.quiet = folder, quiet
        self.checkpoints = folder / "checkpoints"
        self._writer = None
        if quiet:
            return
        with disk(folder):
            self.checkpoints.mkdir(parents=True, exist_ok=True)
            for half in self.checkpoints.glob(".*.pt.*"):
                half.unlink()
            self._forget_after({"train": step, "val": evaluated})
            self._log = open(folder / "log.txt", "a", buffering=1)
            self._metrics = open(folder / "metrics.jsonl", "a", buffering=1)

    def say(self, line: str) -> None:
        """One line for people: on standard output and, with the time, in log.txt."""
        if not self.quiet:
            print(line, flush=True)
            with disk(self.folder / "log.txt"):
                self._log.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {line}\n")

    def event(self, split: str, step: int, epoch: float, values: dict[str, float]) -> None:
        """One line of metrics.jsonl, and the same numbers in TensorBoard."""
        if self.quiet:
            return
        with disk(self.folder / "metrics.jsonl"):
            line = {"step": step, "epoch": round(epoch, 4), "split": split, **values}
            self._metrics.write(json.dumps(line) + "\n")
            for name, value in values.items():
                self.board.add_scalar(f"{split}/{name}", value, step)

    def picture(self, name: str, image: Tensor, step: int) -> None:
        """image: uint8 (3, H, W), into TensorBoard."""
        if not self.quiet:
            with disk(self.folder / "tensorboard"):
                self.board.add_image(name, image, step)

    def write(self, name: str, text: str) -> None:
        """A small file of the folder, whole or not at all."""
        if self.quiet:
            return
        with disk(self.folder / name):
            aside = self.folder / f".{name}.{os.getpid()}"
            aside.write_text(text)
            os.replace(aside, self.folder / name)

    @property
    def board(self) -> Any:
        if self._writer is None:
            from torch.utils.tensorboard import SummaryWriter  # takes a second to import

            self._writer = SummaryWriter(str(self.folder / "tensorboard"))
        return self._writer

    def close(self) -> None:
        if self.quiet:
            return
        with disk(self.folder):
            self._log.close()
            self._metrics.close()
            if self._writer is not None:
                self._writer.close()

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
        aside = path.with_name(f".{path.name}.{os.getpid()}")
        aside.write_text("".join(kept))
        os.replace(aside, path)


class Bar:
    """Progress on a terminal; nothing where standard error is a file or a pipe (log lines serve there)."""

    def __init__(self, title: str, total: int, start: int = 0, quiet: bool = False) -> None:
        self._bar = None
        if quiet or not sys.stderr.isatty():
            return
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (TextColumn(title), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), TextColumn("{task.fields[note]}"))
        self._bar = Progress(*columns, console=Console(stderr=True), redirect_stdout=True)
        self._task = self._bar.add_task(title, total=total, completed=start, note="")
        self._bar.start()

    def advance(self, note: str | None = None) -> None:
        if self._bar is not None:
            self._bar.update(self._task, advance=1, **({"note": note} if note else {}))

    def stop(self) -> None:
        if self._bar is not None:
            self._bar.stop()
