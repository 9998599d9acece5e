"""Ending a run from outside: SIGTERM and SIGUSR1 on any rank make every rank save and leave at the same step."""

from __future__ import annotations

import signal
from types import FrameType

import torch
import torch.distributed as td

from tdaf.engine import dist

REQUEUE = 75  # EX_TEMPFAIL of sysexits.h: the run is whole and wants to be started again


class Preempted(Exception):
    """The run was told to stop and has saved; exit code REQUEUE."""

    def __init__(self) -> None:
        super().__init__("told to stop; everything is saved and the same command goes on")


class Preemption:
    """Asks all ranks once a step whether any was told to stop, without making the GPU or the step wait.

    The question sent at the start of a step is answered at its end, so a signal is acted on within two steps.
    """

    def __init__(self) -> None:
        self.told = False
        self._question: tuple[td.Work, torch.Tensor] | None = None
        self._group = td.new_group(backend="gloo") if dist.world() > 1 else None
        self._before = {}

    def __enter__(self) -> Preemption:
        self._before = {s: signal.signal(s, self._hear) for s in (signal.SIGTERM, signal.SIGUSR1)}
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _hear(self, number: int, frame: FrameType | None) -> None:
        self.told = True

    def ask(self) -> None:
        if self._group is not None:
            flag = torch.tensor([int(self.told)])
            self._question = td.all_reduce(flag, op=td.ReduceOp.MAX, group=self._group, async_op=True), flag

    def answer(self) -> bool:
        """True on every rank at the same step."""
        if self._question is None:
            return self.told
        work, flag = self._question
        work.wait()
        return bool(flag.item())
