"""The learning rate as a function of the optimizer step and, for a plateau, of the evaluations heard until then.

A decay is `decay(position, length) -> factor`, both counted in epochs or in steps as the schedule says. `Plateau` alone
has a memory; it is all that a checkpoint has to keep of a schedule.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from tdaf.errors import UserError

Decay = Callable[[float, float], float]


class Schedule:
    """A decay with a warm-up in front; `factor(step)` multiplies every group's base learning rate.

    decay: see `multistep`, `cosine`, `constant`, `Plateau`. unit: what the decay counts in, "epoch" or "step".
    warmup_steps, warmup_epochs: length of the warm-up (their sum). warmup: "linear" rises from `warmup_factor` to 1,
    "constant" stays at it (FCOS: constant 1/3 for 500 steps, tianzhi0549/FCOS fcos_core/solver).
    steps: the whole schedule, which a run that `trainer.max_steps` cuts short follows to where it is cut.
    """

    def __init__(
        self,
        decay: Decay,
        *,
        steps_per_epoch: int,
        steps: int,
        unit: str = "epoch",
        warmup_steps: int = 0,
        warmup_epochs: float = 0.0,
        warmup_factor: float = 0.0,
        warmup: str = "linear",
    ) -> None:
        if warmup not in ("linear", "constant"):
            raise UserError(f"schedule.warmup={warmup}: give linear or constant")
        if unit not in ("epoch", "step"):
            raise UserError(f"schedule.unit={unit}: give epoch or step")
        if warmup_steps < 0 or warmup_epochs < 0:
            raise UserError("schedule.warmup_steps and schedule.warmup_epochs must be 0 or more")
        self.decay = decay
        self.per_unit = steps_per_epoch if unit == "epoch" else 1
        self.length = steps / self.per_unit
        self.warmup_steps = warmup_steps + round(warmup_epochs * steps_per_epoch)
        self.warmup_factor = warmup_factor
        self.warmup = warmup

    def factor(self, step: int) -> float:
        factor = self.decay(step / self.per_unit, self.length)
        if step < self.warmup_steps:
            rise = step / self.warmup_steps if self.warmup == "linear" else 0.0
            factor *= self.warmup_factor + (1 - self.warmup_factor) * rise
        return factor

    def heard(self, values: Mapping[str, float]) -> None:
        """To be told the numbers of every evaluation, once. UserError: they lack the one that a plateau goes by."""
        if isinstance(self.decay, Plateau):
            self.decay.heard(values)

    def state(self) -> dict[str, float]:
        """What it remembers, as plain data for a checkpoint."""
        return dict(vars(self.decay.memory)) if isinstance(self.decay, Plateau) else {}

    def restore(self, state: Mapping[str, float]) -> None:
        if isinstance(self.decay, Plateau):
            self.decay.memory = Memory(**state)


def multistep(milestones: Sequence[float], gamma: float = 0.1) -> Decay:
    """`gamma` to the number of milestones passed."""
    if list(milestones) != sorted(milestones):
        raise UserError(f"schedule.decay.milestones={list(milestones)}: give them in rising order")
    return lambda position, length: gamma ** sum(position >= m for m in milestones)


def cosine(floor: float = 0.0) -> Decay:
    """Half a cosine from 1 to `floor` over the whole schedule (Loshchilov and Hutter, 2017, Eq. 5)."""
    return lambda position, length: floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * min(1.0, position / length)))


def constant() -> Decay:
    return lambda position, length: 1.0


@dataclass
class Memory:
    """best: the lowest value yet. waited: evaluations since then or since the last drop. drops: how many."""

    best: float = math.inf
    waited: int = 0
    drops: int = 0


class Plateau:
    """`gamma` to the number of drops; one comes when `value` of the evaluations, lower being better, was not lower than
    `threshold` of the best by ratio for more than `patience` evaluations in a row (torch's ReduceLROnPlateau).

    Position and length are no matter to it. Raises UserError for a setting out of range.
    """

    def __init__(self, value: str = "loss", patience: int = 10, gamma: float = 0.1, threshold: float = 1e-4) -> None:
        for name, given, right, hint in (
            ("patience", patience, patience >= 0, "0 or more"),
            ("gamma", gamma, 0 < gamma < 1, "a factor between 0 and 1"),
            ("threshold", threshold, 0 <= threshold < 1, "0 or more and less than 1"),
        ):
            if not right:
                raise UserError(f"schedule.decay.{name}={given}: give {hint}")
        self.value, self.patience, self.gamma, self.threshold = value, patience, gamma, threshold
        self.memory = Memory()

    def __call__(self, position: float, length: float) -> float:
        return self.gamma**self.memory.drops

    def heard(self, values: Mapping[str, float]) -> None:
        if self.value not in values:
            raise UserError(f"schedule.decay.value={self.value}: the evaluation gives {', '.join(values)}")
        memory, now = self.memory, values[self.value]
        if now < memory.best * (1 - self.threshold):
            memory.best, memory.waited = now, 0
        else:
            memory.waited += 1
        if memory.waited > self.patience:
            memory.drops, memory.waited = memory.drops + 1, 0
