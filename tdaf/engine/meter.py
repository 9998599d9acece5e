"""The losses of a run, kept on the device: means to log, and the first non-finite one to stop at."""

from __future__ import annotations

import torch
from torch import Tensor

from tdaf.errors import RunError


class LossMeter:
    """Sums the losses on the device, remembers there which step was the first bad one, and is read now and then."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._clear()

    def add(self, step: int, losses: dict[str, Tensor], index: Tensor) -> None:
        """losses: detached scalars by name. index: the samples (B,) on the CPU."""
        terms = torch.stack(list(losses.values()))
        self.names = list(losses)
        self.total = terms if self.total is None else self.total + terms
        self.count += 1
        self.recent.append((step, terms, index))

    def read(self) -> dict[str, float]:
        """The mean of every loss since the last reading. RunError at the first step whose losses were not finite."""
        if self.total is None:
            return {}
        means = (self.total / self.count).tolist()
        if not torch.isfinite(self.total).all():
            self._raise()
        read = dict(zip(self.names, means, strict=True))
        self._clear()
        return read

    def _raise(self) -> None:
        for step, terms, index in self.recent:
            if not torch.isfinite(terms).all():
                values = ", ".join(f"{n}={v:g}" for n, v in zip(self.names, terms.tolist(), strict=True))
                raise RunError(
                    f"non-finite loss at step {step}: {values}; samples {index.tolist()}; "
                    "the checkpoint before it is kept: try a lower optim.lr, trainer.clip=1 or trainer.precision=fp32"
                )

    def _clear(self) -> None:
        self.names: list[str] = []
        self.total: Tensor | None = None
        self.count = 0
        self.recent: list[tuple[int, Tensor, Tensor]] = []
