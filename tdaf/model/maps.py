"""The masks of a network with TDAF, for pictures (paper, Fig. 3b), and what gates and batch norms have come to.

The statistics answer two claims of the paper: that masks tell places of an image apart (Sec. 3.2, Fig. 3b), and that
activations have other statistics in later flows, with smaller means (Sec. 3.1).
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Iterable
from dataclasses import dataclass
from statistics import fmean

import torch
from torch import Tensor, nn

from tdaf.model.flows import TDAF, Flows

CLOSED, OPEN = 0.05, 0.95  # below and above, a gate is called saturated: the sigmoid's slope is a fifth of its largest


@torch.no_grad()
def attention_maps(network: nn.Module, x: Tensor) -> dict[tuple[int, int], Tensor]:
    """The masks of network(x) in eval mode, whose modes are put back.

    Args:
        network: any module with at most one TDAF in it.
        x: its input.

    Returns:
        {(flow, stage): g (B, 1, [T,] H, W) in [0, 1]}, both 1-based. The mask at (n, l) was made from flow n-1 and
        multiplied, with eta added, onto stage l of flow n; its size is that of the map. Where each channel has a mask
        of its own (mask="channel") their mean. Empty without TDAF, or with one flow.

    Raises:
        ValueError: the network holds two TDAFs.
    """
    masks: dict[tuple[int, int], Tensor] = {}
    _, calls = _gate_calls(network)

    def keep(gate: nn.Module, inputs: tuple, mask: Tensor) -> None:
        masks[calls[gate][0]] = mask.mean(1, keepdim=True)
        calls[gate].rotate(-1)

    handles = [gate.register_forward_hook(keep) for gate in calls]
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
    tdaf, calls = _gate_calls(network)
    keys = sorted(key for called in calls.values() for key in called)
    return {(flow, stage): tdaf.strides[stage - 1] * 2 ** (tdaf.flows - flow) for flow, stage in keys}


@torch.no_grad()
def mask_eta(network: nn.Module) -> float | None:
    """eta of Eq. 5, of learnt ones the mean: a map is multiplied by what lies between eta and 1 + eta. None for a
    network without masks."""
    tdaf, gates = _gate_calls(network)
    return fmean(float(gate.shortcut(tdaf.eta)) for gate in gates) if gates else None


@dataclass(frozen=True)
class GateStatistics:
    """Of all masks at one flow and stage; each mask counts alike, whatever its size. Deviations are of the population.

    The variance of all values, deviation ** 2, comes apart in two ways. within ** 2 + between ** 2: within the masks,
    and between their means. Where `within` is 0 each mask is constant. fixed ** 2 + varying ** 2: over the places of
    the mean mask, and over the masks at a place. Where `varying` is 0 every input has the same mask (of few inputs,
    `fixed` has a part of what varies by chance). Both are None where sizes differ.

    Attributes:
        masks: how many, a view each.
        size: of each of them, ([T,] h, w); None where they differ.
        smallest, largest: of all values.
        closed, open: the shares of values below `CLOSED` and above `OPEN`.
    """

    masks: int
    size: tuple[int, ...] | None
    mean: float
    deviation: float
    smallest: float
    largest: float
    closed: float
    open: float
    within: float
    between: float
    fixed: float | None
    varying: float | None


def gate_statistics(network: nn.Module, batches: Iterable[Tensor]) -> dict[tuple[int, int], GateStatistics]:
    """{(flow, stage): statistics of its masks over all `batches`}, in eval mode; empty for a network without masks.

    batches: the network's inputs, (B, ...) each, on its device. Raises ValueError when the network holds two TDAFs.
    """
    rows, sizes, totals = defaultdict(list), defaultdict(set), defaultdict(float)
    for x in batches:
        for key, masks in attention_maps(network, x).items():
            flat = masks.double().flatten(1)
            shares = ((flat < CLOSED).double().mean(1), (flat > OPEN).double().mean(1))
            columns = (flat.mean(1), flat.var(1, correction=0), flat.amin(1), flat.amax(1), *shares)
            rows[key].append(torch.stack(columns, 1).cpu())
            sizes[key].add(tuple(masks.shape[2:]))
            if len(sizes[key]) == 1:
                totals[key] = totals[key] + flat.sum(0).cpu()
    return {key: _statistics(torch.cat(rows[key]), sizes[key], totals[key]) for key in sorted(rows)}


def _statistics(rows: Tensor, sizes: set[tuple[int, ...]], total: Tensor) -> GateStatistics:
    """rows: a mask each: mean, variance, smallest, largest, shares closed and open. total: of all masks, a place."""
    means, variances, smallest, largest, closed, opened = rows.unbind(1)
    between = means.var(correction=0)
    variance = variances.mean() + between
    same = len(sizes) == 1
    fixed = (total / len(means)).var(correction=0) if same else None
    return GateStatistics(
        masks=len(means),
        size=next(iter(sizes)) if same else None,
        mean=means.mean().item(),
        deviation=variance.sqrt().item(),
        smallest=smallest.min().item(),
        largest=largest.max().item(),
        closed=closed.mean().item(),
        open=opened.mean().item(),
        within=variances.mean().sqrt().item(),
        between=between.sqrt().item(),
        fixed=fixed.sqrt().item() if same else None,
        varying=(variance - fixed).clamp(min=0).sqrt().item() if same else None,
    )


@dataclass(frozen=True)
class FlowStatistics:
    """Of the batch norms of one flow in one part of the network.

    Attributes:
        norms: how many.
        mean, variance: of |running mean| and of running variance over all their channels.
        mean_distance, variance_distance: |a - b| / |b|, a this flow's running means (variances) of a norm and b the
            last flow's, Euclidean over its channels, averaged over the norms; 0 for the last flow itself.
    """

    norms: int
    mean: float
    variance: float
    mean_distance: float
    variance_distance: float


def flow_statistics(network: nn.Module) -> dict[tuple[str, int], FlowStatistics]:
    """{("stage 1", flow): statistics}, then the gates' as ("gate 1", flow), of the TDAF or MultiScale inside.

    Flows that share one set of statistics (norm="shared") are one entry, of the last flow. Only norms with running
    statistics count, frozen ones too; a part without any is left out. Empty without flows in the network.
    """
    found: dict[tuple[str, int], FlowStatistics] = {}
    for body in (module for module in network.modules() if isinstance(module, Flows)):
        last = _norms(body, body.flows)
        for flow in range(1, body.flows + 1) if len(body.earlier) else [body.flows]:
            for name, norms in _norms(body, flow).items():
                found[name, flow] = _compared(norms, last[name])
    return dict(sorted(found.items(), key=lambda entry: (entry[0][0].startswith("gate"), entry[0])))


def _norms(body: Flows, flow: int) -> dict[str, dict[str, nn.Module]]:
    """Of the stages and gates that a flow runs, those with norms; flow 1 has no gates, shared ones are the last's."""
    stages, gates = body.flow_modules(flow)
    parts = {f"stage {number}": stage for number, stage in enumerate(stages, 1)}
    parts |= {f"gate {key}": gate for key, gate in gates.items()}
    norms = {
        name: {k: norm for k, norm in part.named_modules() if isinstance(getattr(norm, "running_mean", None), Tensor)}
        for name, part in parts.items()
    }
    return {name: own for name, own in norms.items() if own}


def _compared(norms: dict[str, nn.Module], others: dict[str, nn.Module]) -> FlowStatistics:
    means, variances, their_means, their_variances = (
        [getattr(those[key], name).double() for key in norms]
        for those in (norms, others)
        for name in ("running_mean", "running_var")
    )
    return FlowStatistics(
        norms=len(norms),
        mean=torch.cat(means).abs().mean().item(),
        variance=torch.cat(variances).mean().item(),
        mean_distance=_distance(means, their_means),
        variance_distance=_distance(variances, their_variances),
    )


def _distance(ours: list[Tensor], theirs: list[Tensor]) -> float:
    """0 / 0, of norms that have seen nothing yet, is 0."""
    parts = [torch.dist(a, b) / b.norm().clamp(min=1e-12) for a, b in zip(ours, theirs, strict=True)]
    return torch.stack(parts).mean().item()


def _gate_calls(network: nn.Module) -> tuple[TDAF | None, dict[nn.Module, deque[tuple[int, int]]]]:
    """The network's one TDAF, and the (flow, stage) of each gate's calls in their order: with norm="shared" one module
    serves several flows. Raises ValueError for two."""
    found = [module for module in network.modules() if isinstance(module, TDAF)]
    if len(found) > 1:
        raise ValueError(f"attention maps need a network with one TDAF, this one has {len(found)}")
    calls: dict[nn.Module, deque[tuple[int, int]]] = defaultdict(deque)
    for tdaf in found:
        for flow in range(2, tdaf.flows + 1):
            for stage, gate in tdaf.flow_modules(flow)[1].items():
                if int(stage) <= tdaf.depth(flow - 1):
                    calls[gate].append((flow, int(stage)))
    return next(iter(found), None), dict(calls)
