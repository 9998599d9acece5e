"""The learning rate as a pure function of the optimizer step: nothing to store, nothing to restore.

A decay is `decay(position, length) -> factor`, both counted in epochs or in steps as the schedule says.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from tdaf.errors import UserError

Decay = Callable[[float, float], float]


class Schedule:
    """A decay with a warm-up in front; `factor(step)` multiplies every group's base learning rate.

    decay: see `multistep`, `cosine`, `constant`. unit: what the decay counts in, "epoch" or "step".
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
