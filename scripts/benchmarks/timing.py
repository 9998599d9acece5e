"""Interleaved timing: what one candidate takes as a ratio to another, under the same conditions.

torch.utils.benchmark times one candidate after another. On a machine that others use too, what changes from one minute
to the next is then taken for a difference between the candidates; in turns it meets all of them.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

BLOCK = 0.3  # seconds of one timed block, at least: far above the clock's resolution and the cost of a synchronisation


@dataclass(frozen=True)
class Settings:
    """What is measured: the network, `batch` square images of `size` pixels, on `device`.

    pairs: timed rounds, None for each measurement's own number. images: files that the loaders read.
    """

    backbone: str
    anar: int
    flows: int
    batch: int
    size: int
    device: torch.device
    pairs: int | None = None
    images: int = 160

    @property
    def gpu(self) -> bool:
        return self.device.type == "cuda"


@dataclass(frozen=True)
class Spread:
    """Median and quartiles of `pairs` ratios."""

    median: float
    low: float
    high: float
    pairs: int


def spread(ratios: Sequence[float]) -> Spread:
    low, median, high = np.percentile(ratios, (25, 50, 75)).tolist()
    return Spread(median, low, high, len(ratios))


class Times:
    """Seconds of each candidate and round. The first candidate is the base: each round times it first and last."""

    def __init__(self, names: Sequence[str]) -> None:
        self.base = names[0]
        self.again = f"{self.base}, again"
        self.order = [*names, self.again]
        self.seconds: dict[str, list[float]] = {name: [] for name in self.order}
        self.count, self.unit, self.note = 1, "", ""

    def of(self, count: int, unit: str, note: str = "") -> Times:
        """Says what a timed call works off, as 32 images, and what else to know; returns itself."""
        self.count, self.unit, self.note = count, unit, note
        return self

    def add(self, name: str, seconds: float) -> None:
        self.seconds[name].append(seconds)

    def median(self, name: str) -> float:
        return statistics.median(self.seconds[name])

    def figure(self, name: str) -> str:
        rate = f", {self.count / self.median(name):.4g} {self.unit}/s" if self.unit else ""
        return f"{1000 * self.median(name):.2f} ms{rate}"

    def ratio(self, name: str, to: str) -> Spread:
        """`name` / `to`, round by round; the base counts as the mean of its two times, which cancels a steady drift."""
        return spread([a / b for a, b in zip(self._series(name), self._series(to), strict=True)])

    def null(self) -> Spread:
        """The base to itself in the same rounds: what lies within its quartiles is noise."""
        pairs = zip(self.seconds[self.again], self.seconds[self.base], strict=True)
        return spread([a / b for a, b in pairs])

    def _series(self, name: str) -> list[float]:
        if name != self.base:
            return self.seconds[name]
        return [(a + b) / 2 for a, b in zip(self.seconds[name], self.seconds[self.again], strict=True)]


def in_turns(candidates: dict[str, Callable[[], float]], rounds: int) -> Times:
    """Asks every candidate for its seconds once a round, the first one twice; every second round runs backwards."""
    times = Times(list(candidates))
    for number in range(rounds):
        for name in times.order if number % 2 == 0 else times.order[::-1]:
            times.add(name, candidates[times.base if name == times.again else name]())
    return times


def interleaved(candidates: dict[str, Callable[[], object]], rounds: int, device: torch.device, warm: int = 2) -> Times:
    """Times calls in turns, after `warm` of each. All repeat equally often within a block, so often that the first
    one's takes `BLOCK` seconds."""
    for call in candidates.values():
        timed(call, warm, device)
    repeat = max(1, round(BLOCK / timed(next(iter(candidates.values())), 1, device)))
    return in_turns({name: lambda call=call: timed(call, repeat, device) for name, call in candidates.items()}, rounds)


def timed(call: Callable[[], object], times: int, device: torch.device) -> float:
    """Seconds of one call, the mean of `times` in a row; a GPU's work is waited for before and after."""
    start = now(device)
    for _ in range(times):
        call()
    return (now(device) - start) / times


def now(device: torch.device) -> float:
    """The clock, once the device has done what it was told to do."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
