"""The masks of a network with TDAF, for pictures (paper, Fig. 3b)."""

from __future__ import annotations

from collections import defaultdict, deque

import torch
from torch import Tensor, nn

from tdaf.model.flows import TDAF
from tdaf.model.sharing import depth, flow_modules


@torch.no_grad()
def attention_maps(network: nn.Module, x: Tensor) -> dict[tuple[int, int], Tensor]:
    """network(x) in eval mode -> {(flow, stage): g (B, 1, [T,] H, W) in [0, 1]}, both 1-based, of the TDAF inside.

    The mask at (n, l) was made from flow n-1 and multiplied, with eta added, onto stage l of flow n; its size is that
    of the map. Empty without TDAF, or with one flow. Raises ValueError when the network holds two TDAFs.
    """
    tdaf = _only(network)
    masks: dict[tuple[int, int], Tensor] = {}
    places = _places(tdaf) if tdaf else {}

    def keep(gate: nn.Module, inputs: tuple, mask: Tensor) -> None:
        masks[places[gate][0]] = mask
        places[gate].rotate(-1)

    handles = [gate.register_forward_hook(keep) for gate in places]
    modes = {module: module.training for module in network.modules()}
    try:
        network.eval()
        # Compiled code would not call the hooks.
        with torch.compiler.set_stance("force_eager"):
            network(x)
    finally:
        for handle in handles:
            handle.remove()
        for module, training in modes.items():
            module.training = training
    return dict(sorted(masks.items()))


def mask_strides(network: nn.Module) -> dict[tuple[int, int], int]:
    """{(flow, stage): pixels of the network's input, along each axis of space, that one value of the mask stands for}.

    Value (i, j) lies over pixels i * stride to (i + 1) * stride - 1, and so on for j; where the input's size is no
    multiple, the last ones reach over its edge. The keys are those of `attention_maps`, and the ValueError as well.
    """
    tdaf = _only(network)
    if tdaf is None:
        return {}
    keys = sorted(key for places in _places(tdaf).values() for key in places)
    return {(flow, stage): tdaf.strides[stage - 1] * 2 ** (tdaf.flows - flow) for flow, stage in keys}


def mask_eta(network: nn.Module) -> float | None:
    """eta of Eq. 5: a map is multiplied by what lies between eta and 1 + eta. None for a network without masks."""
    tdaf = _only(network)
    return tdaf.eta if tdaf is not None and _places(tdaf) else None


def _only(network: nn.Module) -> TDAF | None:
    found = [module for module in network.modules() if isinstance(module, TDAF)]
    if len(found) > 1:
        raise ValueError(f"attention maps need a network with one TDAF, this one has {len(found)}")
    return found[0] if found else None


def _places(tdaf: TDAF) -> dict[nn.Module, deque[tuple[int, int]]]:
    """Where each gate's masks go, in the order of its calls: with norm="shared" one module serves several flows."""
    places: dict[nn.Module, deque[tuple[int, int]]] = defaultdict(deque)
    for flow in range(2, tdaf.flows + 1):
        for stage, gate in flow_modules(tdaf, flow)[1].items():
            if int(stage) < depth(flow, tdaf.flows, len(tdaf.stages)):
                places[gate].append((flow, int(stage)))
    return dict(places)
