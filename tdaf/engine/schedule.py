"""The learning rate as a function of the optimizer step and, for a plateau, of the evaluations until then.

A decay is `decay(position, length) -> factor`, both counted in epochs or in steps as the schedule says. `Plateau` alone
has a memory; it is all that a checkpoint has to keep of a schedule.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

from tdaf.errors import UserError
from tdaf.ranges import check_ranges

Decay = Callable[[float, float], float]


class Schedule:
    """A decay with a warm-up in front; `factor(step)` multiplies every group's base learning rate.

    Args:
        decay: see `multistep`, `cosine`, `constant`, `Plateau`.
        steps_per_epoch: optimizer steps of an epoch.
        steps: the whole schedule's, which a run that ends earlier (`max_steps`) follows to where it ends.
        unit: what the decay counts in, "epoch" or "step".
        warmup_steps, warmup_epochs: length of the warm-up (their sum).
        warmup_factor: where the warm-up begins.
        warmup: "linear" rises from `warmup_factor` to 1, "constant" stays at it (FCOS: constant 1/3 for 500 steps,
            tianzhi0549/FCOS fcos_core/solver).

    Raises:
        UserError: a setting out of range.
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
            raise UserError(f"warmup={warmup}: give linear or constant")
        if unit not in ("epoch", "step"):
            raise UserError(f"unit={unit}: give epoch or step")
        check_ranges({"warmup_steps": warmup_steps, "warmup_epochs": warmup_epochs})
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

    def step(self, metrics: Mapping[str, float]) -> None:
        """Takes the numbers of an evaluation, each once. UserError: they lack the one that a plateau goes by."""
        if isinstance(self.decay, Plateau):
            self.decay.step(metrics)

    def state_dict(self) -> dict[str, float]:
        """What it remembers, as plain data for a checkpoint."""
        return dict(self.decay.memory) if isinstance(self.decay, Plateau) else {}

    def load_state_dict(self, state: Mapping[str, float]) -> None:
        if isinstance(self.decay, Plateau):
            self.decay.memory = dict(state)


def multistep(milestones: Sequence[float], gamma: float = 0.1) -> Decay:
    """`gamma` to the number of milestones passed."""
    if list(milestones) != sorted(milestones):
        raise UserError(f"milestones={list(milestones)}: give them in rising order")
    return lambda position, length: gamma ** sum(position >= m for m in milestones)


def cosine(floor: float = 0.0) -> Decay:
    """Half a cosine from 1 to `floor` over the whole schedule (Loshchilov and Hutter, 2017, Eq. 5)."""
    return lambda position, length: floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * min(1.0, position / length)))


def constant() -> Decay:
    return lambda position, length: 1.0


class Plateau:
    """`gamma` to the number of drops, of which one comes when evaluations do not get better (torch's
    ReduceLROnPlateau). Position and length do not matter to it.

    Args:
        value: the evaluation's number that counts, lower being better.
        patience: evaluations in a row without a value lower than the best; one more is a drop.
        gamma: what a drop multiplies the learning rate by.
        threshold: the ratio by which a value must be lower.

    Attributes:
        memory: "best", the lowest value yet; "waited", evaluations since it or the last drop; "drops", how many.

    Raises:
        UserError: a setting out of range.
    """

    def __init__(self, value: str = "loss", patience: int = 10, gamma: float = 0.1, threshold: float = 1e-4) -> None:
        check_ranges({"patience": patience, "threshold": threshold})
        if not 0 < gamma < 1:
            raise UserError(f"gamma={gamma}: give a factor between 0 and 1")
        self.value, self.patience, self.gamma, self.threshold = value, patience, gamma, threshold
        self.memory: dict[str, float] = {"best": math.inf, "waited": 0, "drops": 0}

    def __call__(self, position: float, length: float) -> float:
        return self.gamma ** self.memory["drops"]

    def step(self, metrics: Mapping[str, float]) -> None:
        if self.value not in metrics:
            raise UserError(f"value={self.value}: the evaluation gives {', '.join(metrics)}")
        memory, now = self.memory, metrics[self.value]
        better = now < memory["best"] * (1 - self.threshold)
        memory.update({"best": now, "waited": 0} if better else {"waited": memory["waited"] + 1})
        if memory["waited"] > self.patience:
            memory.update(drops=memory["drops"] + 1, waited=0)
