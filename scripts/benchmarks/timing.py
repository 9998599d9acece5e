"""Interleaved timing: what one candidate takes as a ratio to another, under the same conditions."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

BLOCK = 0.3  # seconds of one timed block, at least: far above the clock's resolution and the cost of a synchronisation


@dataclass(frozen=True)
class Spread:
    """Median and quartiles of `pairs` ratios."""

    median: float
    low: float
    high: float
    pairs: int


@dataclass(frozen=True)
class Result:
    """One measured row. value: the ratio's median, or an exact number. null: the peer to itself in the same rounds.

    absolute: figures by name. note: why there is no value, or what else to know.
    """

    value: float | None
    spread: Spread | None = None
    null: Spread | None = None
    absolute: dict[str, Any] = field(default_factory=dict)
    note: str = ""


def spread(ratios: Sequence[float]) -> Spread:
    if len(ratios) == 1:
        return Spread(ratios[0], ratios[0], ratios[0], 1)
    low, median, high = statistics.quantiles(ratios, n=4, method="inclusive")
    return Spread(median, low, high, len(ratios))


class Times:
    """Seconds of each candidate and round. The first candidate is the base: each round times it first and last."""

    def __init__(self, names: Sequence[str]) -> None:
        self.base = names[0]
        self.again = f"{self.base}, again"
        self.order = [*names, self.again]
        self.seconds: dict[str, list[float]] = {name: [] for name in self.order}

    def add(self, name: str, seconds: float) -> None:
        self.seconds[name].append(seconds)

    def median(self, name: str) -> float:
        return statistics.median(self.seconds[name])

    def ratio(self, name: str, to: str) -> Spread:
        """`name` / `to`, round by round; the base counts as the mean of its two times, which cancels a steady drift."""
        return spread([a / b for a, b in zip(self._series(name), self._series(to), strict=True)])

    def null(self) -> Spread:
        pairs = zip(self.seconds[self.again], self.seconds[self.base], strict=True)
        return spread([a / b for a, b in pairs])

    def result(self, name: str, to: str, absolute: dict[str, Any] | None = None, note: str = "") -> Result:
        found = self.ratio(name, to)
        return Result(found.median, found, self.null(), absolute or {}, note)

    def _series(self, name: str) -> list[float]:
        if name != self.base:
            return self.seconds[name]
        return [(a + b) / 2 for a, b in zip(self.seconds[name], self.seconds[self.again], strict=True)]


def timed(call: Callable[[], object], times: int, device: torch.device) -> float:
    """Seconds of one call, the mean of `times` in a row; a GPU's work is waited for before and after."""
    _wait(device)
    start = time.perf_counter()
    for _ in range(times):
        call()
    _wait(device)
    return (time.perf_counter() - start) / times


def interleaved(candidates: dict[str, Callable[[], object]], rounds: int, device: torch.device, warm: int = 2) -> Times:
    """Times every candidate once a round, the first one twice; every second round runs backwards.

    All candidates repeat equally often within a block, so often that the first one's takes `BLOCK` seconds.
    """
    for call in candidates.values():
        timed(call, warm, device)
    times = Times(list(candidates))
    repeat = max(1, round(BLOCK / timed(candidates[times.base], 1, device)))
    for number in range(rounds):
        for name in times.order if number % 2 == 0 else times.order[::-1]:
            times.add(name, timed(candidates.get(name, candidates[times.base]), repeat, device))
    return times


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
