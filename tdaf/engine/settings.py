"""How to train and how to read, checked where it is written down."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tdaf.engine.loggers import check
from tdaf.errors import UserError
from tdaf.ranges import check_ranges


@dataclass(frozen=True)
class Settings:
    """How to train. Intervals count optimizer steps, except `evaluate_every`.

    Args:
        epochs: length of the schedule.
        max_steps: ends the run earlier, or is the length where epochs is None.
        batch: samples a step, over all ranks and all micro-batches of a step.
        accumulate: micro-batches a step, whose gradients are added.
        precision: "auto", "fp32", "bf16" or "fp16"; see Precision.
        clip: largest gradient norm; None: no limit.
        ema: decay of the averaged weights, which are then what is evaluated and kept as best; it grows to this with the
            steps (`optim.Average`). None: no average.
        channels_last: whether kernels lie channels last in memory.
        compile: whether torch.compile compiles the network.
        sync_bn: whether batch norm takes its statistics over all ranks.
        deterministic: whether to use torch's deterministic algorithms where there are any.
        evaluate_every: epochs between evaluations; 0: only at the end.
        stop_after: evaluations without a better one after which the run ends; None: it goes on to its last step.
        keep: of how many best evaluations the weights are kept, as checkpoints/step<step>-<value>.pt; 1: best.pt alone.
        checkpoint_every, log_every: steps between checkpoints and between lines of the log.
        pictures: validation samples drawn into TensorBoard and other loggers.
        log: where numbers and pictures go beside metrics.jsonl, some of `loggers.NAMES`.
        hang_timeout: seconds without a step after which a rank dumps its stacks and ends; 0: never.

    Raises:
        UserError: a setting out of range.
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
    stop_after: int | None = None
    keep: int = 1
    checkpoint_every: int = 500
    log_every: int = 50
    pictures: int = 4
    log: Sequence[str] = ("tensorboard",)
    hang_timeout: float = 1800

    def __post_init__(self) -> None:
        if self.epochs is None and self.max_steps is None:
            raise UserError("epochs and max_steps are both null: give one of them")
        check_ranges(vars(self))
        check(self.log)


@dataclass(frozen=True)
class LoaderSettings:
    """How samples are read.

    Args:
        workers: reading processes a rank; 0: the rank itself; "auto": the machine's cores shared between its ranks.
        timeout: seconds that one batch may take.
        prefetch: batches that a worker reads ahead.
        max_bad: unreadable samples that a split may have; None: any number, and nothing is printed of them.

    Raises:
        UserError: a setting out of range.
    """

    workers: int | str = "auto"
    timeout: float = 300.0
    prefetch: int = 2
    max_bad: int | None = 0

    def __post_init__(self) -> None:
        check_ranges(vars(self))
