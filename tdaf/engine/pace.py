"""Where the time of a run goes: training, waiting for data, and everything."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager


class Pace:
    """training, everything: seconds so far, over all parts of a cut run; evaluation counts in the second only."""

    def __init__(self) -> None:
        self.training, self._before, self._start = 0.0, 0.0, time.perf_counter()
        self.go()

    @property
    def everything(self) -> float:
        return self._before + time.perf_counter() - self._start

    def go(self) -> None:
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
        self.go()
        return spent / steps, waited / steps

    def state(self) -> dict[str, float]:
        return {"training": self.training, "everything": self.everything}

    def restore(self, saved: dict[str, float]) -> None:
        self.training, self._before, self._start = saved["training"], saved["everything"], time.perf_counter()
