"""Ranks: joining a process group, spawning one process a GPU, and the few collectives that the engine needs.

A run of one process has no process group; every function here then does the plain thing. With several ranks, tensors on
the GPU go through NCCL and everything on the CPU through gloo.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from multiprocessing import connection
from typing import Any

import torch
import torch.distributed as td
from torch import multiprocessing as mp
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from tdaf.errors import RunError, UserError

FOR_EVER = 7 * 24 * 3600  # seconds; a process group needs some limit


def rank() -> int:
    return td.get_rank() if td.is_initialized() else 0


def world() -> int:
    return td.get_world_size() if td.is_initialized() else 1


def under_torchrun() -> bool:
    return "RANK" in os.environ and "WORLD_SIZE" in os.environ and "MASTER_ADDR" in os.environ


def count_gpus(gpus: int | str) -> int:
    """How many GPUs of this machine a run uses: "auto" is all that are visible. UserError if fewer exist."""
    visible = torch.cuda.device_count()
    if gpus == "auto":
        return visible
    if gpus > visible:
        raise UserError(f"gpus={gpus}: this machine shows {visible}; give gpus={visible} or gpus=auto")
    return int(gpus)


def join(gpus: int, timeout: float) -> torch.device:
    """Joins the group that the environment describes (if any) and returns this rank's device.

    timeout: seconds after which a collective that does not complete fails; 0: never.
    """
    local = int(os.environ.get("LOCAL_RANK", 0))
    device = torch.device("cuda", local) if gpus else torch.device("cpu")
    if gpus and local >= torch.cuda.device_count():
        visible = torch.cuda.device_count()
        raise UserError(f"local rank {local} has no GPU: this machine shows {visible}; start fewer ranks")
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if under_torchrun() and int(os.environ["WORLD_SIZE"]) > 1 and not td.is_initialized():
        backend = "cpu:gloo,cuda:nccl" if gpus else "gloo"
        patience = timedelta(seconds=timeout or FOR_EVER)
        td.init_process_group(backend, timeout=patience, device_id=device if gpus else None)
    return device


def leave() -> None:
    if td.is_initialized():
        td.destroy_process_group()


def gather(value: Any) -> list[Any]:
    """Every rank's plain-data `value` by rank, on rank 0; an empty list elsewhere."""
    if world() == 1:
        return [value]
    values = [None] * world() if rank() == 0 else None
    td.gather_object(value, values, dst=0)
    return values or []


def broadcast(value: Any) -> Any:
    """Rank 0's plain-data `value` on every rank."""
    if world() == 1:
        return value
    box = [value]
    td.broadcast_object_list(box, src=0)
    return box[0]


def mean(value: Tensor) -> Tensor:
    """The mean over all ranks, without a gradient, of a tensor whose shape all ranks agree on; all must call this."""
    value = value.detach()
    if world() == 1:
        return value
    total = value.clone()
    td.all_reduce(total)
    return total / world()


def parallel(network: nn.Module, device: torch.device) -> nn.Module:
    """The network with its gradients averaged over the ranks; all must call this."""
    if world() == 1:
        return network
    ids = [device.index] if device.type == "cuda" else None
    with warnings.catch_warnings():
        # torch 2.15 renames broadcast_buffers; the versions before know no other name
        warnings.simplefilter("ignore", FutureWarning)
        return DistributedDataParallel(network, ids, broadcast_buffers=False, gradient_as_bucket_view=True)


def together(make: Callable[[], Any]) -> Any:
    """`make()` on every rank. A UserError or RunError of any rank is raised on all, with a message on rank 0 only.

    No collective may be called inside `make`: the rank that failed would not take part in it.
    """
    result, fault = None, None
    try:
        result = make()
    except (UserError, RunError) as error:
        if world() == 1:
            raise
        # a mistake in the settings is every rank's own; a fault while running has a place
        fault = type(error), f"rank {rank()}: {error}" if rank() and isinstance(error, RunError) else str(error)
    first = broadcast(next((f for f in gather(fault) if f), None))
    if first is not None:
        kind, said = first
        raise kind(said if rank() == 0 else "")
    return result


@contextmanager
def losing_a_rank() -> Iterator[None]:
    """Turns the errors of collectives whose other end is gone into one line."""
    try:
        yield
    except RuntimeError as error:
        signs = ("gloo", "NCCL", "Connection closed", "Connection reset")
        if world() == 1 or not any(sign in str(error) for sign in signs):
            raise
        raise RunError("another rank has ended, or did not answer in time; its own message says why") from error


def spawn(function: Callable[..., int], args: tuple, ranks: int) -> int:
    """Runs `function(*args)` as `ranks` processes of this machine, each seeing torchrun's environment variables.

    Returns the first non-zero exit code (the other ranks are then ended), or 0. SIGTERM, SIGUSR1 and Ctrl-C reach the
    ranks, which also end with this process.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    context = mp.get_context("spawn")
    processes = [context.Process(target=_child, args=(function, args, r, ranks, port)) for r in range(ranks)]

    def forward(number: int, frame: Any) -> None:
        for process in processes:
            if process.is_alive():
                os.kill(process.pid, number)

    previous = {s: signal.signal(s, forward) for s in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)}
    try:
        for process in processes:
            process.start()
        return _wait(processes)
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _wait(processes: list[Any]) -> int:
    while any(p.is_alive() for p in processes):
        failed = [p.exitcode for p in processes if p.exitcode]
        if failed:
            if failed[0] < 0:
                print(f"error: a rank was ended by {signal.Signals(-failed[0]).name}", file=sys.stderr, flush=True)
            grace = time.monotonic() + 30  # the other ranks may be saving the same checkpoint or naming the same fault
            while any(p.is_alive() for p in processes) and time.monotonic() < grace:
                time.sleep(0.1)
            for process in processes:
                process.kill()
            return failed[0] if failed[0] > 0 else 128 - failed[0]
        time.sleep(0.1)
    return next((p.exitcode if p.exitcode > 0 else 128 - p.exitcode for p in processes if p.exitcode), 0)


def _child(function: Callable[..., int], args: tuple, rank: int, ranks: int, port: int) -> None:
    os.environ.update(
        RANK=str(rank),
        LOCAL_RANK=str(rank),
        WORLD_SIZE=str(ranks),
        LOCAL_WORLD_SIZE=str(ranks),
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port),
    )
    threading.Thread(target=_end_with_parent, daemon=True).start()
    sys.exit(function(*args))


def _end_with_parent() -> None:
    """A killed parent must not leave ranks behind that go on, and hold the run folder's lock."""
    connection.wait([mp.parent_process().sentinel])
    os._exit(1)
