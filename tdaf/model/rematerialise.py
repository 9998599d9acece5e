"""Activation checkpointing of a stage which leaves running statistics as they are when the stage is run again."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


def rematerialised(run: Callable[..., Tensor], modules: Iterable[nn.Module], *inputs: Any) -> Tensor:
    """run(*inputs), of which backward keeps the inputs alone and computes the rest again.

    modules: what `run` calls. They update their running statistics the first time only, so statistics and gradients
    equal those of run(*inputs).
    """
    if not torch.is_grad_enabled():
        return run(*inputs)
    if torch.compiler.is_compiling():
        # A compiler records the forward pass once and repeats pure operations only, so statistics are safe.
        return checkpoint(run, *inputs, use_reentrant=False)
    contexts = partial(_contexts, list(modules))
    return checkpoint(run, *inputs, use_reentrant=False, context_fn=contexts)


def _contexts(modules: list[nn.Module]) -> tuple[AbstractContextManager, AbstractContextManager]:
    return nullcontext(), _statistics_kept(modules)


@contextmanager
def _statistics_kept(modules: list[nn.Module]) -> Iterator[None]:
    # Layers get buffers to spoil. Switching track_running_stats off instead would change what batch norm saves for
    # backward, which checkpoint compares with the first run.
    layers = [layer for root in modules for layer in root.modules() if layer.training]
    kept = [(layer, name, buffer) for layer in layers for name, buffer in layer.named_buffers(recurse=False)]
    for layer, name, buffer in kept:
        setattr(layer, name, buffer.clone())
    try:
        yield
    finally:
        for layer, name, buffer in kept:
            setattr(layer, name, buffer)
