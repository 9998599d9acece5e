"""From a data set to batches: which samples in which order on which rank, read by worker processes.

Random numbers are a function of (seed, epoch, sample), whatever process draws them, so that neither the number of
workers nor that of ranks changes a sample.
"""

from __future__ import annotations

import hashlib
import multiprocessing.queues
import os
import random
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, get_worker_info

from tdaf.engine import handover, limits
from tdaf.errors import RunError, UnreadableSample, UserError, explain_file
from tdaf.task import Batch, Dataset

Key = tuple[int, int]  # (epoch, index): all that a sample's random numbers depend on, beside the run's seed


# Seeds and generators


def mix_seed(*parts: int | str) -> int:
    """A 63-bit seed from parts that may differ by one and must still give unrelated streams."""
    return int.from_bytes(hashlib.blake2b(repr(parts).encode(), digest_size=8).digest(), "little") >> 1


def seed_everything(seed: int, torch_too: Callable[[int], Any] = torch.manual_seed) -> None:
    """Seeds torch (CPU and GPUs), numpy and random."""
    torch_too(seed)
    np.random.seed(seed % 2**32)
    random.seed(seed)


def seed_cpu(*parts: int | str) -> None:
    """Seeds the CPU generators of torch, numpy and random from `parts`."""
    seed_everything(mix_seed(*parts), torch.default_generator.manual_seed)


@contextmanager
def preserved_generators() -> Iterator[None]:
    """Afterwards the CPU generators of torch, numpy and random are as they were before."""
    before = torch.get_rng_state(), np.random.get_state(), random.getstate()
    try:
        yield
    finally:
        torch.set_rng_state(before[0])
        np.random.set_state(before[1])
        random.setstate(before[2])


def generator_state(device: torch.device) -> dict[str, Any]:
    """This rank's generators as tensors and plain data."""
    kind, keys, position, has_gauss, gauss = np.random.get_state()
    version, internal, gauss_next = random.getstate()
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state(device) if device.type == "cuda" else None,
        "numpy": [kind, torch.from_numpy(keys.astype(np.int64)), position, has_gauss, gauss],
        "random": [version, list(internal), gauss_next],
    }


def restore_generators(state: dict[str, Any], device: torch.device) -> None:
    """Puts this rank's generators back to what `generator_state` gave."""
    torch.set_rng_state(state["torch"])
    if device.type == "cuda" and state["cuda"] is not None:
        torch.cuda.set_rng_state(state["cuda"], device)
    kind, keys, position, has_gauss, gauss = state["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), position, has_gauss, gauss))
    version, internal, gauss_next = state["random"]
    random.setstate((version, tuple(internal), gauss_next))


# Orders: batch samplers over all ranks


class TrainingOrder:
    """Yields one list of keys a micro-batch for ever: one permutation an epoch, cut into global batches, of each of
    which rank r of R takes the r-th of R equal parts, so that R ranks see together exactly what one would.

    The samples after the last whole batch of an epoch are left out of that epoch.

    Args:
        size: samples in the data set.
        batch: samples a step over all ranks; divisible by ranks x accumulate.
        seed: the permutations'.
        rank, ranks: which part of each batch this is, of how many.
        accumulate: micro-batches a step.
        start: the optimizer step to begin at.
        groups: a number for each sample. A global batch takes samples of one group (wide or tall images, say), but for
            what is left of the groups in the end, which is mixed. So this too does not depend on the number of ranks.

    Raises:
        UserError: the batch cannot be divided, or is larger than the data set.
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
            raise UserError(f"batch={batch}: give 1 or more")
        if batch % (ranks * accumulate):
            raise UserError(f"batch={batch} is not divisible by ranks={ranks} x accumulate={accumulate}")
        if size < batch:
            raise UserError(f"batch={batch} is larger than the training set of {size} samples; give less")
        self.size, self.batch, self.seed, self.start = size, batch, seed, start
        self.micro = batch // (ranks * accumulate)
        self.rank, self.accumulate = rank, accumulate
        self.steps_per_epoch = size // batch
        self.groups = None if groups is None else np.asarray(groups)

    def __iter__(self) -> Iterator[list[Key]]:
        step = self.start
        while True:
            epoch, first = divmod(step, self.steps_per_epoch)
            order = self._permutation(np.random.default_rng(mix_seed(self.seed, "order", epoch)))
            for number in range(first, self.steps_per_epoch):
                mine = order[number * self.batch :][self.rank * self.micro * self.accumulate :]
                for part in range(self.accumulate):
                    yield [(epoch, int(i)) for i in mine[part * self.micro : (part + 1) * self.micro]]
                step += 1

    def _permutation(self, rng: np.random.Generator) -> np.ndarray:
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


class Loader:
    """Batches of a split, with "index" (B,) int64 added, and with unreadable samples left out and counted.

    Several samples of one name (the clips of a video, say) count once. Iteration raises RunError when a worker stalls
    or dies, when the system refuses what reading needs, or when more than `max_bad` samples cannot be read. Of a batch
    that cannot be read at all "index" is empty. Where a limit lets fewer workers read than asked for, that is said.

    Args:
        dataset: any with `len`, `[]`, `name` and `collate`.
        order: yields lists of keys.
        seed: of the samples' random numbers.
        workers, timeout, prefetch, max_bad: as in LoaderSettings.
        pin: whether batches are put into pinned memory, for copies to a GPU.

    Attributes:
        bad: (name, reason) of the unreadable samples so far, by index.
    """

    def __init__(
        self,
        dataset: Dataset,
        order: TrainingOrder | EvaluationOrder,
        *,
        seed: int,
        workers: int | str = 0,
        timeout: float = 300.0,
        prefetch: int = 2,
        max_bad: int | None = 0,
        pin: bool = False,
    ) -> None:
        workers = default_workers() if workers == "auto" else int(workers)
        workers = limits.fitting_workers(workers, prefetch) if workers else 0
        self.dataset, self.max_bad, self.timeout = dataset, max_bad, timeout
        self.bad: dict[int, tuple[str, str]] = {}
        try:
            self._reader = _Reader(dataset, seed, workers, prefetch)
        except RuntimeError as error:  # there is no shared memory at all
            code = limits.refused(error)
            if not code:
                raise
            limits.say_once(f"{limits.described(code)}: no workers read now, not {workers}")
            workers, self._reader = 0, _Reader(dataset, seed, 0, 0)
        self._order, self._workers, self._prefetch, self._pin = order, workers, prefetch, pin

    def _started(self) -> Iterator[Batch]:
        """The batches; fewer workers read them where the system refuses to start so many."""
        while True:
            workers, children = self._workers, multiprocessing.active_children()
            with limits.quiet_leftovers():
                # a worker begins with the run's own handler: what ends it waits until it can hear that
                before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
                try:
                    return iter(self._loader(workers))
                except (OSError, RuntimeError, MemoryError) as error:
                    code = limits.refused(error)
                    if not workers or not code:
                        raise
                finally:
                    signal.pthread_sigmask(signal.SIG_SETMASK, before)
            for child in multiprocessing.active_children():
                if child not in children:
                    child.kill()
            self._workers = workers // 2
            limits.say_once(f"{limits.described(code)}: {self._workers} workers read now, not {workers}")

    def _loader(self, workers: int) -> DataLoader:
        return DataLoader(
            self._reader,
            batch_sampler=self._order,
            collate_fn=_first_is_batch,
            num_workers=workers,
            pin_memory=self._pin,
            timeout=self.timeout if workers else 0,
            prefetch_factor=self._prefetch if workers else None,
            generator=torch.Generator().manual_seed(0),  # else it draws from the global generator
            worker_init_fn=_settle,
        )

    def __iter__(self) -> Generator[Batch, None, None]:
        batches = self._started()
        while True:
            try:
                batch = next(batches)
            except StopIteration:
                return
            except (RuntimeError, OSError, MemoryError, EOFError) as error:
                fault = self.explained(error, reading=True)
            else:
                fault = None
            if fault is not None:
                # not within `except`: the error's frames would keep the workers, and torch would tell again
                del batches
                raise fault
            for index, name, reason in batch.pop("bad"):
                self._count(index, name, reason)
            batch["index"] = torch.tensor(batch["index"], dtype=torch.int64)
            yield handover.received(batch, self._reader.pieces, copied=self._pin)

    def _count(self, index: int, name: str, reason: str) -> None:
        if index in self.bad:
            return
        known = {other for other, _ in self.bad.values()}
        self.bad[index] = (name, reason)
        if name in known or self.max_bad is None:  # another clip of a video, say; or no limit
            return
        count = len(known) + 1
        message = f"cannot read {name}: {reason} ({count} unreadable, max_bad={self.max_bad})"
        if count > self.max_bad:
            raise RunError(f"{message}; repair it, list it with scripts/check_data.py, or raise max_bad")
        print(f"skipped: {message}", file=sys.stderr, flush=True)

    def stalled(self) -> list[str]:
        """The samples being read at this moment, by name."""
        return [self.dataset.name(i) for i in self._reader.reading.tolist() if i >= 0]

    def explained(self, error: Exception, reading: bool = False) -> Exception:
        """What a fault of the worker processes comes to in one line; any other error as it is.

        torch tells of a dead worker from a signal handler, wherever the main thread happens to be.

        Args:
            error: what was raised.
            reading: whether that was while a batch was read, so that it is this loader's own.
        """
        if reading or "DataLoader" in str(error):
            code = next(filter(None, [*self._reader.refused.tolist(), limits.refused(error)]), 0)
            if code:
                return RunError(f"reading: {limits.described(code)}")
        names = ", ".join(self.stalled()) or "unknown"
        if "DataLoader timed out" in str(error):
            return RunError(f"no batch within timeout={self.timeout:g} s; being read: {names}")
        # a batch's memory is fetched from its worker, which may die in between
        gone = reading and self._workers and isinstance(error, (EOFError, ConnectionError, FileNotFoundError))
        if gone or "exited unexpectedly" in str(error) or "is killed by signal" in str(error):
            how = limits.death(str(error))
            return RunError(f"a loader worker died ({how}); being read: {names}; try fewer workers")
        return error


class _Reader:
    """A data set as DataLoader sees it: a batch at a time, seeded, its unreadable samples named instead of raised."""

    def __init__(self, dataset: Dataset, seed: int, workers: int, prefetch: int) -> None:
        self.dataset, self.seed = dataset, seed
        # a slot a worker for the sample it is reading, in memory that the main process sees: a stalled read is named
        self.reading = torch.full((max(1, workers),), -1, dtype=torch.int64)
        self.refused = torch.zeros(max(1, workers), dtype=torch.int64)  # errno of a limit, by worker
        self.pieces = torch.zeros((workers, prefetch + 2), dtype=torch.uint8)  # see handover: to be received, in use
        for shared in (self.reading, self.refused, self.pieces) if workers else ():
            shared.share_memory_()

    def __getitems__(self, keys: Sequence[Key]) -> Batch:
        worker = get_worker_info()
        with preserved_generators():
            return self._read(keys, worker.id if worker else 0)

    def _read(self, keys: Sequence[Key], slot: int) -> Batch:
        samples, indices, bad = [], [], []
        for epoch, index in keys:
            self.reading[slot] = index
            seed_cpu(self.seed, epoch, index)
            try:
                samples.append(self.dataset[index])
                indices.append(index)
            except (UnreadableSample, OSError, MemoryError) as error:
                bad.append((index, self.dataset.name(index), self._reason(error, slot)))
        self.reading[slot] = -1
        if not samples:
            return {"index": [], "bad": bad}
        seed_cpu(self.seed, keys[0][0], "collate", keys[0][1])
        # a list, as every tensor that crosses from a worker has its price
        return handover.lent({**self.dataset.collate(samples), "index": indices, "bad": bad}, slot)

    def _reason(self, error: Exception, slot: int) -> str:
        """Why a sample cannot be read. Raises again what is not a fault of its file."""
        cause = error.__cause__ if isinstance(error, UnreadableSample) else error
        code = limits.refused(cause) if isinstance(cause, (OSError, MemoryError)) else 0
        if code:
            self.refused[slot] = code
            raise cause
        explained = explain_file(error) if isinstance(error, OSError) else error
        if explained is None:
            raise error
        return str(explained)


def default_workers() -> int:
    """Reading processes a rank: the machine's cores shared between its ranks, at most 12."""
    ranks_here = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    return max(1, min(12, len(os.sched_getaffinity(0)) // max(1, ranks_here)))


def _first_is_batch(batch: Batch) -> Batch:
    return batch


def _settle(worker: int) -> None:
    """Readies a worker process. A signal to the whole job (scancel, torchrun, timeout) must not end it, for the run
    still reads while it comes to its end; the SIGTERM by which DataLoader ends a worker is its parent's, and must."""
    torch.set_num_threads(1)
    handover.use(get_worker_info().dataset.pieces[worker])
    multiprocessing.queues.Queue._on_queue_feeder_error = staticmethod(_end_unheard)
    for number in (signal.SIGUSR1, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    threading.Thread(target=_end_with_parent, args=(os.getppid(),), daemon=True).start()


def _end_unheard(error: Exception, batch: Any) -> None:
    """A batch cannot be handed over, as for want of open files: else it is lost, and the run waits for it."""
    info = get_worker_info()
    info.dataset.refused[info.id] = code = limits.refused(error)
    if not code:  # no limit, but a batch that cannot be pickled, say
        traceback.print_exception(error)
    os._exit(1)


def _end_with_parent(parent: int) -> None:
    """Ends this worker when its parent says so or is gone, also in the middle of a read that hangs."""
    while os.getppid() == parent:
        received = signal.sigtimedwait({signal.SIGTERM}, 1.0)
        if received is not None and received.si_pid == parent:
            break
    os._exit(0)
