"""Batches from a worker to the process that trains, in shared memory that is used again.

What `stack` puts together in a worker lies where the receiver reads it: nothing is copied on the way. New shared
memory for each batch, as torch takes it, is cleared by the kernel page by page, which costs more than the rest of the
way. So a worker keeps some pieces of it, and takes one again when no tensor of the receiver is in it any more.
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from tdaf.task import Batch

FREE, TAKEN = 0, 1
_own: Pieces | None = None  # this worker's


class Pieces:
    """A worker's pieces of shared memory. The flags, uint8 (count,), are shared with the receiver: a worker takes a
    free piece, and only the receiver frees it."""

    def __init__(self, flags: Tensor) -> None:
        self.flags, self.taken = flags, -1
        self.memory = [torch.empty(0, dtype=torch.uint8) for _ in flags]

    def take(self, shape: tuple[int, ...]) -> Tensor | None:
        """Room of that shape in a free piece, if there is one."""
        free = (self.flags == FREE).nonzero().flatten().tolist()
        if not free:
            return None
        self.taken, size = free[0], torch.Size(shape).numel()
        if self.memory[self.taken].numel() < size:
            self.memory[self.taken] = torch.empty(size, dtype=torch.uint8).share_memory_()
        return self.memory[self.taken][:size].view(shape)

    def lent(self, value: Any) -> int:
        """The piece that `value` lies in, which is the receiver's from now on; -1 for none."""
        number, self.taken = self.taken, -1
        if number < 0 or not isinstance(value, Tensor) or value.data_ptr() != self.memory[number].data_ptr():
            return -1
        self.flags[number] = TAKEN
        return number


def use(flags: Tensor) -> None:
    """Has `stack` use pieces in this process, a worker; flags: see `Pieces`."""
    global _own
    _own = Pieces(flags)


def stack(tensors: Sequence[Tensor]) -> Tensor:
    """As torch.stack; in a worker, bytes are put into a piece of its shared memory."""
    room = None
    if _own is not None and tensors[0].dtype == torch.uint8:
        room = _own.take((len(tensors), *tensors[0].shape))
    return torch.stack(list(tensors), out=room)


def lent(batch: Batch, worker: int) -> Batch:
    """The batch as a worker sends it: where its "input" lies in a piece, it says so in "piece"."""
    number = -1 if _own is None else _own.lent(batch["input"])
    return batch if number < 0 else {**batch, "piece": (worker, number)}


def received(batch: Batch, flags: Tensor, copied: bool) -> Batch:
    """The batch as it is used. Its piece is free at once where it has been `copied` (to pinned memory), else when no
    tensor lies in it any more. flags: uint8 (workers, count)."""
    place = batch.pop("piece", None)
    if place is not None and copied:
        flags[place] = FREE
    elif place is not None:
        array = batch["input"].numpy()
        weakref.finalize(array, flags.__setitem__, place, FREE).atexit = False
        batch["input"] = torch.from_numpy(array)
    return batch
