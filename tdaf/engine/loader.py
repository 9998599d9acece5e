"""One loader for every task: which samples, in which order, on which rank, with which random numbers.

Training draws one permutation an epoch and cuts it into global batches; rank r of R takes the r-th of R equal parts of
each, so R ranks see together exactly what one would. Evaluation gives each sample to exactly one rank.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Generator, Iterator, Sequence

import numpy as np
import torch
from torch.utils.data import DataLoader, get_worker_info

from tdaf.engine import seeds
from tdaf.errors import RunError, UnreadableSample, UserError
from tdaf.task import Batch, Dataset

Key = tuple[int, int]  # (epoch, index): all that a sample's random numbers depend on, beside the run's seed


class TrainingOrder:
    """Yields one list of keys a micro-batch for ever, from optimizer step `start` on.

    size: samples in the data set. batch: samples a step over all ranks; it must be divisible by ranks x accumulate.
    The samples after the last whole batch of an epoch are left out of that epoch.
    """

    def __init__(
        self, size: int, batch: int, *, seed: int, rank: int = 0, ranks: int = 1, accumulate: int = 1, start: int = 0
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

    def __iter__(self) -> Iterator[list[Key]]:
        step = self.start
        while True:
            epoch, first = divmod(step, self.steps_per_epoch)
            order = np.random.default_rng(seeds.mix(self.seed, "order", epoch)).permutation(self.size)
            for place in range(first, self.steps_per_epoch):
                mine = order[place * self.batch :][self.rank * self.micro * self.accumulate :]
                for part in range(self.accumulate):
                    yield [(epoch, int(i)) for i in mine[part * self.micro : (part + 1) * self.micro]]
                step += 1


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


class _Reader:
    """A data set as DataLoader sees it: a batch at a time, seeded, its unreadable samples named instead of raised."""

    def __init__(self, dataset: Dataset, seed: int, workers: int) -> None:
        self.dataset, self.seed = dataset, seed
        # one place a worker for the sample it is reading, in memory that the main process sees: a stalled read is named
        self.reading = torch.full((max(1, workers),), -1, dtype=torch.int64).share_memory_()

    def __getitems__(self, keys: Sequence[Key]) -> Batch:
        worker = get_worker_info()
        with seeds.kept():
            return self._read(keys, worker.id if worker else 0)

    def _read(self, keys: Sequence[Key], place: int) -> Batch:
        samples, indices, bad = [], [], []
        for epoch, index in keys:
            self.reading[place] = index
            seeds.set_cpu(self.seed, epoch, index)
            try:
                samples.append(self.dataset[index])
                indices.append(index)
            except UnreadableSample as error:
                bad.append((index, self.dataset.name(index), str(error)))
        self.reading[place] = -1
        if not samples:
            return {"index": [], "bad": bad}
        seeds.set_cpu(self.seed, keys[0][0], "collate", keys[0][1])
        # a list, as every tensor that crosses from a worker has its price
        return {**self.dataset.collate(samples), "index": indices, "bad": bad}


def _first_is_batch(batch: Batch) -> Batch:
    return batch


class Loader:
    """Batches of a split, read by worker processes, with unreadable samples counted against `max_bad`.

    order: yields lists of keys. workers: reading processes (0: in this one). timeout: seconds that one batch may take.
    Iteration raises RunError when a worker stalls or dies, or when more than `max_bad` samples cannot be read.
    """

    def __init__(
        self,
        dataset: Dataset,
        order: TrainingOrder | EvaluationOrder,
        *,
        seed: int,
        workers: int = 0,
        timeout: float = 300.0,
        prefetch: int = 2,
        max_bad: int = 0,
        pin: bool = False,
    ) -> None:
        self.dataset, self.max_bad, self.timeout = dataset, max_bad, timeout
        self.bad: dict[int, tuple[str, str]] = {}  # index: (name, reason)
        self.reader = _Reader(dataset, seed, workers)
        self.loader = DataLoader(
            self.reader,
            batch_sampler=order,
            collate_fn=_first_is_batch,
            num_workers=workers,
            pin_memory=pin,
            timeout=timeout if workers else 0,
            prefetch_factor=prefetch if workers else None,
            generator=torch.Generator().manual_seed(0),  # else it draws from the global generator
            worker_init_fn=_settle,
        )

    def __iter__(self) -> Generator[Batch, None, None]:
        batches = iter(self.loader)
        while True:
            try:
                batch = next(batches)
            except StopIteration:
                return
            except RuntimeError as error:
                fault = self.explained(error)
            else:
                fault = None
            if fault is not None:
                del batches  # not within `except`: the error's frames would keep the workers, and torch would tell again
                raise fault
            for index, name, reason in batch.pop("bad"):
                self._count(index, name, reason)
            batch["index"] = torch.tensor(batch["index"], dtype=torch.int64)
            yield batch

    def _count(self, index: int, name: str, reason: str) -> None:
        if index in self.bad:
            return
        self.bad[index] = (name, reason)
        said = f"cannot read {name}: {reason} ({len(self.bad)} unreadable, data.max_bad={self.max_bad})"
        if len(self.bad) > self.max_bad:
            raise RunError(f"{said}; repair it, list it with scripts/check_data.py, or raise data.max_bad")
        print(f"skipped: {said}", file=sys.stderr, flush=True)

    def stalled(self) -> list[str]:
        """The samples being read at this moment, by name."""
        return [self.dataset.name(i) for i in self.reader.reading.tolist() if i >= 0]

    def explained(self, error: RuntimeError) -> RuntimeError | RunError:
        """What a fault of the worker processes comes to in one line; any other error as it is.

        torch tells of a dead worker from a signal handler, wherever the main thread happens to be.
        """
        reading = ", ".join(self.stalled()) or "unknown"
        if "DataLoader timed out" in str(error):
            return RunError(f"no batch within loader.timeout={self.timeout:g} s; being read: {reading}")
        if "exited unexpectedly" in str(error) or "is killed by signal" in str(error):
            return RunError(f"a loader worker died (out of memory?); being read: {reading}; try fewer loader.workers")
        return error


def default_workers(ranks_here: int) -> int:
    """Reading processes a rank: the machine's cores shared between its ranks, at most 12."""
    return max(1, min(12, len(os.sched_getaffinity(0)) // max(1, ranks_here)))


def _settle(worker: int) -> None:
    """Readies a worker process. A signal to the whole job (scancel, torchrun, timeout) must not end it, for the run
    still reads while it comes to its end; the SIGTERM by which DataLoader ends a worker is its parent's, and must."""
    torch.set_num_threads(1)
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    threading.Thread(target=_heed, args=(os.getppid(),), daemon=True).start()


def _heed(parent: int) -> None:
    """Ends this worker when its parent says so or is gone, also in the middle of a read that hangs."""
    while os.getppid() == parent:
        told = signal.sigtimedwait({signal.SIGTERM}, 1.0)
        if told is not None and told.si_pid == parent:
            break
    os._exit(0)
