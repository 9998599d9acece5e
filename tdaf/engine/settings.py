"""How to train, checked where it is written down."""

from __future__ import annotations

from dataclasses import dataclass

from tdaf.errors import UserError


@dataclass(frozen=True)
class Settings:
    """How to train. Intervals count optimizer steps, except evaluate_every, which counts epochs (0: only at the end).

    epochs: length of the schedule; max_steps ends the run earlier, or is the length where epochs is None.
    batch: samples a step, over all ranks and all of the `accumulate` parts of a step. clip: largest gradient norm.
    ema: decay of the averaged weights, which are then what is evaluated and kept as best.
    pictures: how many validation samples are drawn into TensorBoard. hang_timeout: seconds; 0: no watchdog.
    """

    epochs: float | None = 90
    max_steps: int | None = None
    batch: int = 256
    accumulate: int = 1
    precision: str = "auto"
    clip: float | None = None
    ema: float | None = None
    channels_last: bool = True
    compile: bool = False
    sync_bn: bool = False
    deterministic: bool = False
    evaluate_every: float = 1
    checkpoint_every: int = 500
    log_every: int = 50
    pictures: int = 4
    hang_timeout: float = 1800

    def __post_init__(self) -> None:
        if self.epochs is None and self.max_steps is None:
            raise UserError("trainer.epochs and trainer.max_steps are both null: give one of them")
        for name in ("epochs", "max_steps", "batch", "accumulate", "log_every", "checkpoint_every", "clip"):
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise UserError(f"trainer.{name}={value}: give a number above 0")
        for name in ("evaluate_every", "pictures", "hang_timeout"):
            if getattr(self, name) < 0:
                raise UserError(f"trainer.{name}={getattr(self, name)}: give 0 or more")
        if self.ema is not None and not 0 < self.ema < 1:
            raise UserError(f"trainer.ema={self.ema}: give a decay between 0 and 1, or null")
