"""Which samples, in which order, on which rank.

Training draws one permutation an epoch and cuts it into global batches; rank r of R takes the r-th of R equal parts of
each, so R ranks see together exactly what one would. Evaluation gives each sample to exactly one rank.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from tdaf.engine import seeds
from tdaf.errors import UserError

Key = tuple[int, int]  # (epoch, index): all that a sample's random numbers depend on, beside the run's seed


class TrainingOrder:
    """Yields one list of keys a micro-batch for ever, from optimizer step `start` on.

    size: samples in the data set. batch: samples a step over all ranks; it must be divisible by ranks x accumulate.
    The samples after the last whole batch of an epoch are left out of that epoch. groups: a number for each sample; a
    batch takes samples of one group (wide or tall images, say), but for what is left of the groups in the end, which
    is mixed. It is the global batch that is of one group, so that this too does not depend on the number of ranks.
    """

    def __init__(
        self,
        size: int,
        batch: int,
        *,
        seed: int,
        rank: int = 0,
        ranks: int = 1,
        accumulate: int = 1,
        start: int = 0,
        groups: Sequence[int] | None = None,
    ) -> None:
        if batch < 1:
            raise UserError(f"trainer.batch={batch}: give 1 or more")
        if batch % (ranks * accumulate):
            raise UserError(
                f"trainer.batch={batch} is not divisible by ranks={ranks} x trainer.accumulate={accumulate}"
            )
        if size < batch:
            raise UserError(f"trainer.batch={batch} is larger than the training set of {size} samples; give less")
        self.size, self.batch, self.seed, self.start = size, batch, seed, start
        self.micro = batch // (ranks * accumulate)
        self.rank, self.accumulate = rank, accumulate
        self.steps_per_epoch = size // batch
        self.groups = None if groups is None else np.asarray(groups)

    def __iter__(self) -> Iterator[list[Key]]:
        step = self.start
        while True:
            epoch, first = divmod(step, self.steps_per_epoch)
            order = self._order(np.random.default_rng(seeds.mix(self.seed, "order", epoch)))
            for place in range(first, self.steps_per_epoch):
                mine = order[place * self.batch :][self.rank * self.micro * self.accumulate :]
                for part in range(self.accumulate):
                    yield [(epoch, int(i)) for i in mine[part * self.micro : (part + 1) * self.micro]]
                step += 1

    def _order(self, rng: np.random.Generator) -> np.ndarray:
        """One epoch's order of all samples."""
        order = rng.permutation(self.size)
        if self.groups is None:
            return order
        whole, rest = [], []
        for group in np.unique(self.groups):
            mine = order[self.groups[order] == group]
            end = len(mine) - len(mine) % self.batch
            whole.append(mine[:end].reshape(-1, self.batch))
            rest.append(mine[end:])
        left = rng.permutation(np.concatenate(rest))
        end = len(left) - len(left) % self.batch
        batches = np.concatenate([*whole, left[:end].reshape(-1, self.batch)])
        return np.concatenate([rng.permutation(batches).ravel(), left[end:]])


class EvaluationOrder:
    """Yields this rank's share of 0..size-1 in batches, each sample once over all ranks."""

    def __init__(self, size: int, batch: int, *, rank: int = 0, ranks: int = 1) -> None:
        self.mine = range(rank, size, ranks)
        self.batch = batch

    def __len__(self) -> int:
        return -(-len(self.mine) // self.batch)

    def __iter__(self) -> Iterator[list[Key]]:
        for first in range(0, len(self.mine), self.batch):
            yield [(0, i) for i in self.mine[first : first + self.batch]]
