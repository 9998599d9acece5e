"""What a network costs, counted and not timed: parameters, multiply-adds, bytes kept for backward."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from tdaf.model.anar import ANAR
from tdaf.model.flows import Flows
from tdaf.model.staged import Staged


class Parameters(NamedTuple):
    """Numbers of values. A Parameter that several modules share counts once; buffers do not count."""

    total: int
    trainable: int
    frozen: int


class Gflops(NamedTuple):
    """10^9 multiply-adds: what the paper and most of the field call FLOPs."""

    total: float
    flows: float  # the stages of all flows
    gates: float  # the ANARs
    rest: float  # the head, or whatever is no part of a staged network


@contextmanager
def eval_mode(network: nn.Module) -> Iterator[None]:
    """The whole network in eval mode; afterwards each of its modules is in the mode that it was in."""
    modes = {module: module.training for module in network.modules()}
    network.eval()
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training


def parameters(network: nn.Module) -> Parameters:
    """Counts of the whole network."""
    trainable = sum(p.numel() for p in network.parameters() if p.requires_grad)
    total = sum(p.numel() for p in network.parameters())
    return Parameters(total, trainable, total - trainable)


def gflops(network: nn.Module, x: Tensor) -> Gflops:
    """One call of network(x), in eval mode. Convolutions and matrix products count, as in the literature.

    On the meta device (network and x) nothing is computed.
    """
    from torch.utils.flop_counter import FlopCounterMode  # takes half a second to import

    with eval_mode(network), torch.no_grad(), FlopCounterMode(display=False) as counter:
        network(x)
    counts = {name: sum(operations.values()) / 2e9 for name, operations in counter.get_flop_counts().items()}
    total = counter.get_total_flops() / 2e9
    gates = _sum(network, counts, ANAR)
    flows = _sum(network, counts, (Flows, Staged)) - gates
    return Gflops(total, flows, gates, total - flows - gates)


def saved_bytes(network: nn.Module, x: Tensor) -> int:
    """Bytes that network(x) keeps for backward: every storage once, without parameters and buffers.

    The network runs as it is, so in train mode its running statistics move.
    """
    # A storage is one object however many tensors look at it; by address they are all alike on the meta device.
    own = {t.untyped_storage() for t in [*network.parameters(), *network.buffers()]}
    kept: set[torch.UntypedStorage] = set()

    def pack(tensor: Tensor) -> Tensor:
        kept.add(tensor.untyped_storage())
        return tensor

    with torch.enable_grad(), saved_tensors_hooks(pack, lambda tensor: tensor):
        outputs = network(x)
    del outputs
    return sum(storage.nbytes() for storage in kept - own)


def _sum(network: nn.Module, counts: dict[str, float], kinds: type | tuple[type, ...]) -> float:
    root = type(network).__name__
    names = [name for name, module in network.named_modules() if isinstance(module, kinds)]
    return sum(counts.get(f"{root}.{name}" if name else root, 0.0) for name in names)
