"""One loader for every task: samples read by worker processes, each with random numbers of its own."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Generator, Sequence

import torch
from torch.utils.data import DataLoader, get_worker_info

from tdaf.engine import seeds
from tdaf.engine.order import EvaluationOrder, Key, TrainingOrder
from tdaf.errors import RunError, UnreadableSample
from tdaf.task import Batch, Dataset

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
    Several samples of one name (the clips of a video, say) count once; with `max_bad` None none does, and nothing is
    printed. Iteration raises RunError when a worker stalls or dies, or when there are more than `max_bad`.
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
        max_bad: int | None = 0,
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
        known = {other for other, _ in self.bad.values()}
        self.bad[index] = (name, reason)
        if name in known or self.max_bad is None:  # another clip of a video, say; or no limit
            return
        count = len(known) + 1
        said = f"cannot read {name}: {reason} ({count} unreadable, data.max_bad={self.max_bad})"
        if count > self.max_bad:
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
