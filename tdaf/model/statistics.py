"""What the gates and the batch norms of the flows have come to: numbers on a trained network, none of them a loss.

Both answer a claim of the paper: that masks tell places of an image apart (Sec. 3.2, Fig. 3b), and that the flows'
activations have other statistics, smaller ones in the hind flows, which masks have been applied to (Sec. 3.1).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from tdaf.model.flows import TDAF, MultiScale
from tdaf.model.maps import attention_maps
from tdaf.model.sharing import flow_modules

CLOSED, OPEN = 0.05, 0.95  # below and above, a gate is called saturated: the sigmoid's slope is a fifth of its largest


@dataclass(frozen=True)
class GateStatistics:
    """Of all masks at one flow and stage; each mask counts alike, whatever its size. Deviations are of the population.

    masks: how many, a view each. size: of each of them, ([T,] h, w), None where they differ. smallest, largest: of all
    values. closed, open: the shares of values below `CLOSED` and above `OPEN`.

    The variance of all values, deviation ** 2, comes apart in two ways. within ** 2 + between ** 2: within the masks,
    and between their means. Where `within` is 0 each mask is constant. fixed ** 2 + varying ** 2: over the places of
    the mean mask, and over the masks at a place. Where `varying` is 0 every input has the same mask (of few inputs,
    `fixed` has a part of what varies by chance). Both are None where sizes differ.
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


@dataclass(frozen=True)
class FlowStatistics:
    """Of the batch norms of one flow in one part of the network.

    norms: how many. mean, variance: of |running mean| and of running variance over all their channels.
    mean_distance, variance_distance: |a - b| / |b|, a this flow's running means (variances) of a norm and b the last
    flow's, Euclidean over its channels, averaged over the norms; 0 for the last flow itself.
    """

    norms: int
    mean: float
    variance: float
    mean_distance: float
    variance_distance: float


def gate_statistics(network: nn.Module, batches: Iterable[Tensor]) -> dict[tuple[int, int], GateStatistics]:
    """{(flow, stage): statistics of its masks over all `batches`}, in eval mode; empty for a network without masks.

    batches: the network's inputs, (B, ...) each, on its device. Raises ValueError when the network holds two TDAFs.
    """
    tallies: dict[tuple[int, int], _Tally] = defaultdict(_Tally)
    for x in batches:
        for key, masks in attention_maps(network, x).items():
            tallies[key].add(masks)
    return {key: tally.statistics() for key, tally in sorted(tallies.items())}


def flow_statistics(network: nn.Module) -> dict[tuple[str, int], FlowStatistics]:
    """{("stage 1", flow): statistics}, then the gates' as ("gate 1", flow), of the TDAF or MultiScale inside.

    Flows that share one set of statistics (norm="shared") are one entry, of the last flow. Only norms with running
    statistics count, frozen ones too; a part without any is left out. Empty without flows in the network.
    """
    found: dict[tuple[str, int], FlowStatistics] = {}
    for body in (module for module in network.modules() if isinstance(module, (TDAF, MultiScale))):
        last = dict(_parts(body, body.flows))
        for flow in range(1, body.flows + 1) if len(body.earlier) else [body.flows]:
            for name, part in _parts(body, flow):
                norms, others = _norms(part), _norms(last[name])
                if norms:
                    found[name, flow] = _compared(norms, [others[key] for key in norms])
    return dict(sorted(found.items(), key=lambda entry: (entry[0][0].startswith("gate"), entry[0])))


class _Tally:
    def __init__(self) -> None:
        self.sizes: set[tuple[int, ...]] = set()
        self.rows: list[Tensor] = []  # a mask each: mean, variance, smallest, largest, shares closed and open
        self.total: Tensor | float = 0.0

    def add(self, masks: Tensor) -> None:
        """masks: (B, 1, *size)."""
        flat = masks.detach().double().flatten(1)
        shares = ((flat < CLOSED).double().mean(1), (flat > OPEN).double().mean(1))
        columns = (flat.mean(1), flat.var(1, correction=0), flat.amin(1), flat.amax(1), *shares)
        self.rows.append(torch.stack(columns, 1).cpu())
        self.sizes.add(tuple(masks.shape[2:]))
        if len(self.sizes) == 1:
            self.total = self.total + flat.sum(0).cpu()

    def statistics(self) -> GateStatistics:
        rows = torch.cat(self.rows)
        means, variances, smallest, largest, closed, opened = rows.unbind(1)
        between = means.var(correction=0)
        variance = variances.mean() + between
        same = len(self.sizes) == 1
        fixed = (self.total / len(rows)).var(correction=0) if same else None
        return GateStatistics(
            masks=len(rows),
            size=next(iter(self.sizes)) if same else None,
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


def _parts(body: TDAF | MultiScale, flow: int) -> Iterator[tuple[str, nn.Module]]:
    """The stages and gates that a flow runs; flow 1 has no gates, and shared ones are the last flow's."""
    stages, gates = flow_modules(body, flow)
    yield from ((f"stage {number}", stage) for number, stage in enumerate(stages, 1))
    yield from ((f"gate {key}", gate) for key, gate in gates.items())


def _norms(part: nn.Module) -> dict[str, nn.Module]:
    return {name: module for name, module in part.named_modules() if isinstance(_mean(module), Tensor)}


def _mean(module: nn.Module) -> object:
    return getattr(module, "running_mean", None)


def _compared(norms: dict[str, nn.Module], others: list[nn.Module]) -> FlowStatistics:
    means = [norm.running_mean.double() for norm in norms.values()]
    variances = [norm.running_var.double() for norm in norms.values()]
    return FlowStatistics(
        norms=len(norms),
        mean=torch.cat(means).abs().mean().item(),
        variance=torch.cat(variances).mean().item(),
        mean_distance=_distance(means, [norm.running_mean.double() for norm in others]),
        variance_distance=_distance(variances, [norm.running_var.double() for norm in others]),
    )


def _distance(ours: list[Tensor], theirs: list[Tensor]) -> float:
    """0 / 0, of norms that have seen nothing yet, is 0."""
    parts = [torch.dist(a, b) / b.norm().clamp(min=1e-12) for a, b in zip(ours, theirs, strict=True)]
    return torch.stack(parts).mean().item()
