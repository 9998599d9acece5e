"""Batch norm folded into convolutions, for inference: two operations become one."""

from __future__ import annotations

import copy
import functools
from collections import defaultdict

import torch
from torch import Tensor, fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from tdaf.model.flows import Flows
from tdaf.model.gated import GatedModule, GatedSequential
from tdaf.model.staged import with_children

_CONVOLUTIONS = (nn.Conv2d, nn.Conv3d)
_DECONVOLUTIONS = (nn.ConvTranspose2d, nn.ConvTranspose3d)


def fold(network: nn.Module) -> nn.Module:
    """Batch norm folded into the convolution before it, for inference.

    TDAF's flows have statistics of their own, so the copy's flows have weights of their own: it is larger, and faster.
    Pairs are found by symbolic tracing (torch.fx) of the largest modules that allow it; what cannot be traced is left
    as it is and its children are tried. Names stay: a folded norm becomes nn.Identity.

    Args:
        network: any module; it is left as it is.

    Returns:
        A copy in eval mode and without gradients, whose outputs agree with the network's in eval mode to rounding.
    """
    network = copy.deepcopy(network).eval().requires_grad_(False)
    for module in network.modules():
        if isinstance(module, Flows):
            module.tied = False
    _fold(network)
    return network


def _fold(module: nn.Module) -> None:
    graph = _trace(module)
    if graph is None:
        for child in module.children():
            _fold(child)
        return
    for conv, norm in _pairs(module, graph):
        fused = _fused(module.get_submodule(conv), module.get_submodule(norm))
        _replace(module, conv, fused)
        _replace(module, norm, with_children(module.get_submodule(norm), nn.Identity()))


@functools.cache
def _norms() -> tuple[type[nn.Module], ...]:
    from torchvision.ops import FrozenBatchNorm2d  # torchvision takes as long to import as torch

    from tdaf.model.freeze import FixedBatchNorm2d

    return (nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm, FrozenBatchNorm2d, FixedBatchNorm2d)


class _Tracer(fx.Tracer):
    def is_leaf_module(self, module: nn.Module, name: str) -> bool:
        return isinstance(module, _norms()) or super().is_leaf_module(module, name)


def _trace(module: nn.Module) -> fx.Graph | None:
    if hasattr(module, "eval_graph"):  # a stage that was made of a traced network: backbones/cut.py
        return module.eval_graph
    without_gate = {"gate": None} if isinstance(module, (GatedSequential, GatedModule)) else None
    try:
        return _Tracer().trace(module, without_gate)
    except Exception:  # tracing runs a user's own code on symbols, which may fail in any way
        return None


def _pairs(root: nn.Module, graph: fx.Graph) -> list[tuple[str, str]]:
    """The names of convolutions whose every call feeds one norm alone, which nothing else feeds."""
    calls: dict[str, list[fx.Node]] = defaultdict(list)
    for node in graph.nodes:
        if node.op == "call_module":
            calls[node.target].append(node)
    pairs = []
    for name, nodes in calls.items():
        followers = {user for node in nodes for user in node.users}
        norms = {user.target if user.op == "call_module" else None for user in followers}
        if len(norms) != 1 or not all(len(node.users) == 1 for node in nodes):
            continue
        norm = norms.pop()
        if norm is None or set(calls[norm]) != followers or len(followers) != len(nodes):
            continue
        if _foldable(root.get_submodule(name), root.get_submodule(norm)):
            pairs.append((name, norm))
    return pairs


def _foldable(conv: nn.Module, norm: nn.Module) -> bool:
    # A parametrised convolution has another type, or no Parameter "weight" (torch.nn.utils.weight_norm).
    plain = type(conv) in _CONVOLUTIONS + _DECONVOLUTIONS and "weight" in dict(conv.named_parameters(recurse=False))
    return plain and isinstance(norm, _norms()) and norm.running_mean is not None and norm.running_var is not None


def _fused(conv: nn.Module, norm: nn.Module) -> nn.Module:
    fused = copy.deepcopy(conv)
    grouped = isinstance(conv, _DECONVOLUTIONS)
    weight = _by_output(conv.weight, conv.groups) if grouped else conv.weight
    weight, bias = fuse_conv_bn_weights(
        weight, conv.bias, norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias
    )
    if grouped:
        weight = _by_output(weight, conv.groups)
    # Written into tensors like the old ones, which keeps their memory format.
    fused.weight = nn.Parameter(torch.empty_like(conv.weight).copy_(weight), requires_grad=False)
    fused.bias = nn.Parameter(bias.detach(), requires_grad=False)
    return fused


def _by_output(weight: Tensor, groups: int) -> Tensor:
    """A deconvolution's weight (in, out / groups, ...) <-> (out, in / groups, ...), the order of a convolution's."""
    return weight.unflatten(0, (groups, -1)).transpose(1, 2).flatten(0, 1)


def _replace(root: nn.Module, name: str, new: nn.Module) -> None:
    parent, _, child = name.rpartition(".")
    setattr(root.get_submodule(parent), child, new)
