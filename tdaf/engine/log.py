"""What a run says of itself: means of its losses, its speed, and the run folder with its files. Rank 0 writes that.

The folder: config.yaml, metrics.jsonl, summary.json, log.txt, tensorboard/, checkpoints/, results/.
"""

from __future__ import annotations

import fcntl
import json
import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from types import TracebackType
from typing import IO, Any

import torch
from torch import Tensor

from tdaf import streams
from tdaf.engine.checkpoint import atomic_write
from tdaf.engine.loggers import Loggers
from tdaf.errors import RunError, UserError, refused_files
from tdaf.settings import map_leaves


def to_json(value: Any, indent: int | None = 2) -> str:
    """Plain data as JSON, which knows no NaN and no infinity: a number that is not finite is null."""

    def finite(leaf: Any) -> Any:
        return None if isinstance(leaf, float) and not math.isfinite(leaf) else leaf

    return json.dumps(map_leaves(finite, value), indent=indent, allow_nan=False)


class LossMeter:
    """Sums the losses by name on their device, where it also keeps which step was the first bad one, and is read now
    and then. RunError for a step whose losses have other names than the first one's."""

    def __init__(self) -> None:
        self.names: list[str] = []
        self._clear()

    def add(self, step: int, losses: dict[str, Tensor], index: Tensor) -> None:
        """losses: detached scalars by name. index: the samples (B,) on the CPU."""
        self.names = self.names or list(losses)
        check_names(self.names, losses, f"step {step}")
        terms = torch.stack([losses[name] for name in self.names])
        self._total = terms if self._total is None else self._total + terms
        self._recent.append((step, terms, index))

    def read(self) -> dict[str, float]:
        """The mean of every loss since the last reading. RunError at the first step whose losses were not finite."""
        if self._total is None:
            return {}
        means = (self._total / len(self._recent)).tolist()
        for step, terms, index in self._recent if not torch.isfinite(self._total).all() else ():
            if not torch.isfinite(terms).all():
                values = ", ".join(f"{n}={v:g}" for n, v in zip(self.names, terms.tolist(), strict=True))
                raise RunError(
                    f"non-finite loss at step {step}: {values}; samples {index.tolist()}; "
                    "the checkpoint before it is kept: try a lower lr, clip=1 or precision=fp32"
                )
        self._clear()
        return dict(zip(self.names, means, strict=True))

    def _clear(self) -> None:
        self._total: Tensor | None = None
        self._recent: list[tuple[int, Tensor, Tensor]] = []


def check_names(expected: Sequence[str], losses: dict[str, Any], where: str) -> None:
    """RunError, naming it, where a loss is missing or one too many; their order does not matter."""
    if losses.keys() != set(expected):
        faults = [f"lacks the loss {name}" for name in expected if name not in losses]
        faults += [f"has the new loss {name}" for name in losses if name not in expected]
        raise RunError(f"{where} {', '.join(faults)}: a task's losses have the same names always; give 0 * x for none")


def mean_losses(shares: Sequence[dict[str, float]]) -> dict[str, float]:
    """The means over the ranks, given each rank's. RunError if their names differ."""
    for rank, share in enumerate(shares):
        check_names(list(shares[0]), share, f"rank {rank}")
    return {name: sum(share[name] for share in shares) / len(shares) for name in shares[0]}


class Throughput:
    """Where the time of a run goes.

    Attributes:
        training: seconds of training steps so far, over all parts of a run that was cut.
        total: seconds of everything, evaluation too.
    """

    def __init__(self) -> None:
        self.training, self._before, self._begun = 0.0, 0.0, time.perf_counter()
        self.start()

    @property
    def total(self) -> float:
        return self._before + time.perf_counter() - self._begun

    def start(self) -> None:
        """Training begins, or goes on after a pause."""
        self._since, self._waited, self._steps = time.perf_counter(), 0.0, 0

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Around what waits for data."""
        start = time.perf_counter()
        yield
        self._waited += time.perf_counter() - start

    def step(self) -> None:
        self._steps += 1

    def read(self) -> tuple[float, float]:
        """(seconds a step, of which waiting for data), means since the last reading or pause."""
        spent, waited, steps = time.perf_counter() - self._since, self._waited, max(1, self._steps)
        self.training += spent
        self.start()
        return spent / steps, waited / steps

    def state_dict(self) -> dict[str, float]:
        return {"training": self.training, "everything": self.total}

    def load_state_dict(self, state: dict[str, float]) -> None:
        self.training, self._before, self._begun = state["training"], state["everything"], time.perf_counter()


class RunFolder:
    """A run's folder. On other ranks than 0 (`quiet`) every method does nothing. RunError if the disk refuses.

    As a context it is closed at the end, which lets other processes in, with the fault that ended the run as the last
    line of log.txt.
    """

    def __init__(self, folder: Path, *, quiet: bool = False, log: Sequence[str] = ("tensorboard",)) -> None:
        self.folder, self.quiet, self.log = folder, quiet, log
        self.checkpoints = folder / "checkpoints"
        self._loggers: Loggers | None = None
        self._told_of_loss = False
        self._open: dict[str, IO[str]] = {}
        self._lock_file: IO[str] | None = None

    def summary(self) -> dict[str, Any] | None:
        """summary.json, whose being there is what makes a run a finished one; None without a whole one."""
        with refused_files(f"run_dir={self.folder}"), suppress(FileNotFoundError, NotADirectoryError, ValueError):
            summary = json.loads((self.folder / "summary.json").read_text())
            return summary if _is_summary(summary) else None

    def finished(self) -> str | None:
        """A sentence of a finished run, or None."""
        summary = self.summary()
        if summary is None:
            return None
        metric = summary["metric"]
        numbers = f"{metric['name']} {metric['last']:.4g} (best {metric['best']:.4g})"
        return f"{self.folder} is finished: {numbers}; delete it to run it again"

    def lock(self) -> None:
        """Makes the folder, and keeps other processes out of it until it is closed. UserError if one is in there."""
        if self.quiet:
            return
        with refused_files(f"run_dir={self.folder}", "written"):
            self.folder.mkdir(parents=True, exist_ok=True)
            self._lock_file = open(self.folder / ".lock", "w")
        try:
            # flock's lock would live on in the loader workers of a killed run
            fcntl.lockf(self._lock_file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise UserError(f"another process is training in {self.folder}; wait, or give another run_dir") from None

    def start(self, step: int, evaluated: int, settings: dict[str, Any] | None = None) -> None:
        """Begins the files, or goes on with them from step `step`, whose last evaluation was at step `evaluated`: what
        a killed run left of later steps is dropped. settings: the run's, for loggers."""
        if self.quiet:
            return
        with refused_files(self.folder, "written", RunError):
            self.checkpoints.mkdir(parents=True, exist_ok=True)
            for half in [*self.folder.glob(".*.*.[0-9]*"), *self.checkpoints.glob(".*.*.[0-9]*")]:
                half.unlink()
            self._forget_after({"train": step, "val": evaluated})
        self._loggers = Loggers(self.log, self.folder, settings or {}, step, self.say)

    def say(self, line: str) -> None:
        """One line for people: on standard output and, with the time, in log.txt."""
        if self.quiet:
            return
        print(line, flush=True)
        self._note(line)
        if streams.lost and not self._told_of_loss:
            self._told_of_loss = True
            self._note(f"{', '.join(streams.lost)}; what cannot be printed is dropped from here on")

    def event(self, split: str, step: int, epoch: float, values: dict[str, float]) -> None:
        """One line of metrics.jsonl, and the same numbers in the loggers."""
        if self._loggers:
            line = {"step": step, "epoch": round(epoch, 4), "split": split, **values}
            self._append("metrics.jsonl", to_json(line, indent=None))
            self._loggers.each("event", split, step, epoch, values)

    def picture(self, name: str, image: Tensor, step: int) -> None:
        """image: uint8 (3, H, W), into the loggers."""
        if self._loggers:
            self._loggers.each("picture", name, image, step)

    def summarise(self, summary: dict[str, Any]) -> None:
        """summary.json, whose being there is what makes a run a finished one."""
        if self._loggers:
            self._loggers.each("summary", summary)
        self.write("summary.json", to_json(summary) + "\n")

    def write(self, name: str, text: str) -> None:
        """A file of the folder, whole or not at all."""
        path = self.folder / name
        if not self.quiet:
            with refused_files(path, "written", RunError):
                path.parent.mkdir(exist_ok=True)
                with atomic_write(path, "w") as file:
                    file.write(text)

    def __enter__(self) -> RunFolder:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        try:
            with suppress(OSError, RunError) if error else nullcontext():  # a full disk is the fault to tell already
                if error is not None and self._loggers:
                    self._note(f"ended by {type(error).__name__}: {error}".removesuffix(": "))
                self.close(fault=error is not None)
        finally:
            if self._lock_file is not None:
                self._lock_file.close()  # which gives the lock back

    def close(self, fault: bool = False) -> None:
        if self._loggers:
            self._loggers.each("close", fault)
        with refused_files(self.folder, "written", RunError):
            for file in self._open.values():
                file.close()
        self._open.clear()
        self._loggers = None

    def _note(self, line: str) -> None:
        self._append("log.txt", f"{time.strftime('%Y-%m-%d %H:%M:%S')} {line}")

    def _append(self, name: str, line: str) -> None:
        with refused_files(self.folder / name, "written", RunError):
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
        with atomic_write(path, "w") as file:
            file.writelines(kept)


def _is_summary(summary: Any) -> bool:
    """Whether a file that may come from anywhere has what is read of it."""
    metric = summary.get("metric") if isinstance(summary, dict) else None
    return (
        isinstance(metric, dict)
        and isinstance(metric.get("name"), str)
        and all(isinstance(metric.get(key), (int, float)) for key in ("best", "last"))
        and isinstance(summary.get("metrics"), dict)
        and {"samples", "skipped", "protocol"} <= summary.keys()
    )
