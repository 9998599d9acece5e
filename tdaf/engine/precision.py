"""Number format, memory format, determinism, and the way of a batch to the device."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from tdaf.errors import UserError
from tdaf.settings import map_leaves
from tdaf.task import Batch

KINDS = ("auto", "fp32", "bf16", "fp16")


class Precision:
    """Autocast and, for fp16, loss scaling.

    Args:
        kind: "fp32", "bf16", "fp16" or "auto": bf16 on a GPU that has it, else fp32. (A GPU without it, as V100 or T4,
            emulates it slowly; fp16 is faster there, but its range is a choice for whoever trains.)
        device: where the network runs.
        channels_last: whether kernels lie channels last in memory.

    Raises:
        UserError: there is no such kind.
    """

    def __init__(self, kind: str, device: torch.device, channels_last: bool = True) -> None:
        if kind not in KINDS:
            raise UserError(f"precision={kind}: give one of {', '.join(KINDS)}")
        self.note = ""  # why it is what it is, where one may wonder
        if kind == "auto":
            on_gpu = device.type == "cuda"
            kind = "bf16" if on_gpu and torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
            if on_gpu and kind == "fp32":
                self.note = " (this GPU has no bf16; precision=fp16 is faster)"
        self.kind, self.device, self.channels_last = kind, device, channels_last
        self.dtype = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[kind]
        self.scaler = torch.amp.GradScaler(device.type, enabled=kind == "fp16")

    def autocast(self) -> AbstractContextManager:
        return torch.autocast(self.device.type, dtype=self.dtype, enabled=self.kind != "fp32")

    def place(self, network: nn.Module) -> nn.Module:
        """The network on the device, its kernels channels last (2D or 3D, as each kernel asks)."""
        network = network.to(self.device)
        for parameter in network.parameters():
            if self.channels_last and parameter.dim() in (4, 5):
                # cloned, for the strides of a kernel of one pixel are then what its gradient's are
                channels_last = torch.channels_last if parameter.dim() == 4 else torch.channels_last_3d
                parameter.data = parameter.data.clone(memory_format=channels_last)
        return network

    def move(self, batch: Batch) -> Batch:
        """Every tensor of the batch on the device, without waiting for the copies."""
        return to_device(batch, self.device)


def check_compiler(device: torch.device) -> None:
    """Compiles next to nothing. Raises UserError where torch.compile cannot, as without a C++ compiler."""
    try:
        torch.compile(lambda x: x + 1)(torch.zeros(1, device=device))
    except Exception as error:  # of whatever back end
        first = str(error).partition("\n")[0]
        hint = "install a C++ compiler (g++), or leave compile=false"
        raise UserError(f"compile=true: this machine cannot compile: {first}; {hint}") from error


@contextmanager
def deterministic(on: bool) -> Iterator[None]:
    """torch's deterministic algorithms, where they are not asked for already; afterwards all is as it was before."""
    before = torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.benchmark
    if on:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS reads it at its first use
        torch.backends.cudnn.benchmark = False
        if not before[0]:
            torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before[1]
        if not before[0]:
            torch.use_deterministic_algorithms(False)


def float32(outputs: Any) -> Any:
    """Outputs with every floating-point tensor in float32: losses are never computed in a shorter format."""

    def longer(leaf: Any) -> Any:
        return leaf.float() if isinstance(leaf, Tensor) and leaf.is_floating_point() else leaf

    return map_leaves(longer, outputs)


def to_device(value: Any, device: torch.device | str) -> Any:
    """Every tensor in `value`, and what becomes one there, on the device, without waiting for the copies."""
    return map_leaves(lambda leaf: leaf.to(device, non_blocking=True) if hasattr(leaf, "to") else leaf, value)
