"""Ranks: joining a process group, and the few collectives that the engine needs.

A run of one process has no process group; every function here then does the plain thing. With several ranks, tensors on
the GPU go through NCCL and everything on the CPU through gloo.
"""

from __future__ import annotations

import atexit
import os
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as td
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel

from tdaf.errors import RunError, UserError, explained_files

FOR_EVER = 7 * 24 * 3600  # seconds; a process group needs some limit
T = TypeVar("T")


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


def collective_timeout(hang_timeout: float, loader_timeout: float) -> float:
    """Seconds after which a collective gives up: later than the watchdog, whose stacks come first; 0: never."""
    return hang_timeout and hang_timeout + loader_timeout + 60


def join(device: torch.device | str | None = None, timeout: float = 0) -> torch.device:
    """Joins the process group that the environment describes, if it does and this process has not joined it yet.

    Args:
        device: None: the GPU if there is one, else the CPU. "cuda" is the GPU of this rank's local number.
        timeout: seconds after which a collective that does not complete fails; 0: never.

    Returns:
        This rank's device.

    Raises:
        UserError: this machine has fewer GPUs than ranks.
    """
    device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    if device.type == "cuda":
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)) if device.index is None else device.index)
        visible = torch.cuda.device_count()
        if device.index >= visible:
            raise UserError(f"local rank {device.index} has no GPU: this machine shows {visible}; start fewer ranks")
        torch.cuda.set_device(device)
    if under_torchrun() and int(os.environ["WORLD_SIZE"]) > 1 and not td.is_initialized():
        on_gpu = device.type == "cuda"
        backend, limit = "cpu:gloo,cuda:nccl" if on_gpu else "gloo", timedelta(seconds=timeout or FOR_EVER)
        td.init_process_group(backend, timeout=limit, device_id=device if on_gpu else None)
        atexit.register(leave)
        if sys.version_info < (3, 12):
            os.register_at_fork(before=settle_threads)
    return device


def settle_threads(seconds: float = 1.0) -> None:
    """Waits until no other thread of this process computes, at most `seconds`.

    A thread of gloo's may be letting go of the tensors of the collective that has just returned, for which it enters
    Python; a loader worker that is forked at that moment waits for ever, and so does whoever reads from it or ends it
    (python/cpython#112275, mended in 3.12 and late versions of 3.11).
    """
    end, mine = time.monotonic() + seconds, str(threading.get_native_id())
    while any(_runs(thread) for thread in os.listdir("/proc/self/task") if thread != mine):
        if time.monotonic() > end:
            return
        time.sleep(0.0005)


def _runs(thread: str) -> bool:
    try:
        state = Path(f"/proc/self/task/{thread}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:  # it has ended
        return False
    return state == "R"


def leave() -> None:
    if td.is_initialized():
        td.destroy_process_group()


def side_group(timeout: float) -> td.ProcessGroup | None:
    """A gloo group of all ranks for questions beside the training; None for a single rank. timeout: as in `join`."""
    return td.new_group(backend="gloo", timeout=timedelta(seconds=timeout or FOR_EVER)) if world() > 1 else None


def gather(value: T) -> list[T]:
    """Every rank's plain-data `value` by rank, on rank 0; an empty list elsewhere."""
    if world() == 1:
        return [value]
    values = [None] * world() if rank() == 0 else None
    td.gather_object(value, values, dst=0)
    return values or []


def broadcast(value: T) -> T:
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


def run_on_all_ranks(function: Callable[[], T]) -> T:
    """`function()` on every rank. A UserError or RunError of any rank, or a file that the system refuses it, is raised
    on all, with a message on rank 0 only.

    No collective may be called inside `function`: the rank that failed would not take part in it.
    """
    result, fault = None, None
    try:
        with explained_files():
            result = function()
    except (UserError, RunError) as error:
        if world() == 1:
            raise
        # a mistake in the settings is every rank's own; a fault while running is one rank's
        fault = type(error), f"rank {rank()}: {error}" if rank() and isinstance(error, RunError) else str(error)
    first = broadcast(next((f for f in gather(fault) if f), None))
    if first is not None:
        kind, message = first
        raise kind(message if rank() == 0 else "")
    return result


@contextmanager
def explain_peer_failure() -> Iterator[None]:
    """Turns the errors of collectives whose other end is gone into one line."""
    try:
        yield
    except RuntimeError as error:
        signs = ("gloo", "NCCL", "Connection closed", "Connection reset")
        if world() == 1 or not any(sign in str(error) for sign in signs):
            raise
        raise RunError("another rank has ended, or did not answer in time; its own message says why") from error


# The network on several ranks


def data_parallel(network: nn.Module, device: torch.device, deterministic: bool = False) -> nn.Module:
    """The network with its gradients averaged over the ranks, its buffers each rank's own; all must call this.

    deterministic: gradients are added in the order of the ranks, at the price of gathering them. Else it depends on
    where a gradient lies, and torch arranges them anew after the first step of a run, and of one that goes on.
    """
    if world() == 1:
        return network
    ids = [device.index] if device.type == "cuda" else None
    with warnings.catch_warnings():
        # torch 2.15 renames broadcast_buffers; the versions before know no other name
        warnings.simplefilter("ignore", FutureWarning)
        parallel = DistributedDataParallel(network, ids, broadcast_buffers=False, gradient_as_bucket_view=True)
    if deterministic and world() > 2:  # of two there is but one order
        parallel.register_comm_hook(None, lambda state, bucket: _mean_in_order(bucket.buffer()))
    return parallel


def _mean_in_order(mine: Tensor) -> torch.futures.Future[Tensor]:
    shares = [torch.empty_like(mine) for _ in range(world())]

    def mean(_: Any) -> Tensor:
        total = shares[0]
        for share in shares[1:]:
            total += share
        return total.div_(world())

    return td.all_gather(shares, mine, async_op=True).get_future().then(mean)


def statistics(network: nn.Module) -> dict[str, Tensor]:
    """The floating-point buffers of its state, on the CPU: running statistics, all that may differ between ranks."""
    buffers = {name for name, _ in network.named_buffers(remove_duplicate=False)}
    state = network.state_dict().items()
    return {name: value.cpu() for name, value in state if name in buffers and value.is_floating_point()}


@torch.no_grad()
def average_buffers(network: nn.Module) -> None:
    """Gives all ranks the mean of their running statistics, so that each evaluates the same network."""
    if world() > 1:
        for buffer in filter(Tensor.is_floating_point, network.buffers()):
            td.all_reduce(buffer, op=td.ReduceOp.SUM)
            buffer /= world()


def synchronise(network: nn.Module, device: torch.device) -> nn.Module:
    """The network with every batch norm's statistics taken over all ranks; parameters, buffers are the same objects.

    torch's SyncBatchNorm on GPUs; on CPU ranks, which torch's lacks, the same thing of our own.
    """
    if device.type == "cuda":
        return nn.SyncBatchNorm.convert_sync_batchnorm(network)
    for module in network.modules():
        if isinstance(module, _BatchNorm):
            module.__class__ = _CpuSyncBatchNorm
    return network


class _Sum(torch.autograd.Function):
    """The sum over all ranks; so is its gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        total = x.clone()
        td.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return _Sum.apply(gradient)


class _CpuSyncBatchNorm(_BatchNorm):
    """Statistics of the batches of all gloo ranks (they may differ in size), differentiable through the all-reduce."""

    def _check_input_dim(self, input: Tensor) -> None:
        if input.dim() < 2:
            raise ValueError(f"expected at least a 2D input, got {input.dim()}D")

    def forward(self, input: Tensor) -> Tensor:
        if not self.training or world() == 1:
            return super().forward(input)
        axes, channels = [0, *range(2, input.dim())], input.shape[1]
        shape = [1, channels] + [1] * (input.dim() - 2)
        x = input.float() if input.dtype in (torch.bfloat16, torch.float16) else input
        sums = _Sum.apply(torch.cat([x.sum(axes), x.new_tensor([x.numel() / channels])]))
        mean, count = sums[:-1] / sums[-1], sums[-1]
        # a second exchange: the mean of squares minus the squared mean would lose the digits that SyncBatchNorm keeps
        variance = _Sum.apply((x - mean.view(shape)).square().sum(axes)) / count
        if self.track_running_stats:
            with torch.no_grad():
                self.num_batches_tracked.add_(1)
                self.running_mean.lerp_(mean, self.momentum)
                self.running_var.lerp_(variance * count / (count - 1).clamp_min(1), self.momentum)
        scale = self.weight * torch.rsqrt(variance + self.eps)
        return ((x - mean.view(shape)) * scale.view(shape) + self.bias.view(shape)).to(input.dtype)


def check_shared(step: int, folder: Path) -> None:
    """Raises UserError on all ranks where they found a run folder's checkpoint at different steps."""
    steps = sorted({*broadcast(gather(step))})
    if len(steps) > 1:
        raise UserError(
            f"the ranks found checkpoints of different steps {steps} in run_dir={folder}: it must lie on a disk that "
            "all machines share"
        )
