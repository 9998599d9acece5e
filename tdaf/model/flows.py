"""TDAF (paper, Sec. 3) and its multi-scale control (Sec. 4.5): a staged network as N flows which share all weights."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from tdaf.errors import UserError
from tdaf.model.anar import ANAR, check_anar
from tdaf.model.gate import gated as run_gated
from tdaf.model.pyramid import check_downsample, pyramid
from tdaf.model.rematerialise import rematerialised
from tdaf.model.sharing import check_flows, clone_flows, depth, flow_modules, keep_shared, tie
from tdaf.model.staged import Staged

NORM = ("mfbn", "shared")


class TDAF(nn.Module):
    """A staged network with top-down attention (Eqs. 1-5); it has the fields of Staged and returns what Staged does.

    flows: N, 1 <= N <= L. 1 is the plain network itself: no gate, no clone. anar: layers of each gate (2, 3, 5, 7).
    eta: Eq. 5, in [0, 1]. gated: "all", the 1-based stages that have a gate, from 1..L-1, or "appended": those of them
    that a task has appended to the backbone (Staged.append), as the paper has it for pose (Sec. 4.3).
    downsample: Eq. 2, "area", "bilinear" or "stride". anar_width, depthwise, gate_init: see ANAR.
    norm: "mfbn" (Eq. 4), or "shared": one set of statistics for all flows. rematerialise: keep each stage's input only
    and compute the stage again in backward; also when flows is 1. Raises UserError for a setting out of range.

    `stages` is the list given, run by the last flow, so its state-dict keys are the plain network's. `gates` is by
    stage number. `earlier` holds the clones of flows 1..N-1, whose state is their statistics alone. What is to change
    in `staged` (a stage appended, a stem replaced) must change before.
    """

    def __init__(
        self,
        staged: Staged,
        flows: int = 3,
        anar: int = 3,
        eta: float = 0.5,
        gated: str | Sequence[int] = "all",
        downsample: str = "area",
        anar_width: int | None = 512,
        depthwise: bool = False,
        norm: str = "mfbn",
        gate_init: str = "kaiming",
        rematerialise: bool = False,
    ) -> None:
        super().__init__()
        _take(self, staged)
        self.flows = check_flows(flows, len(staged.stages))
        self.downsample = check_downsample(downsample)
        check_anar(anar, gate_init, eta)
        self.eta = eta
        self.rematerialise = rematerialise
        self.gates = nn.ModuleDict()
        for stage in _gated_stages(gated, len(staged.stages), staged.appended) if flows > 1 else ():
            width = self.widths[stage - 1]
            self.gates[str(stage)] = ANAR(width, anar, anar_width, self.dims, depthwise, gate_init, eta)
        self.earlier = _earlier(self, norm)
        keep_shared(self)

    def forward(self, x: Tensor) -> list[Tensor]:
        """x (B, C, [T,] H, W) -> the L maps of the last flow, the last one last."""
        maps: list[Tensor] = []
        for flow, x in enumerate(pyramid(x, self.flows, self.dims, self.downsample), start=1):
            maps = self._flow(flow, x, maps)
        return maps

    def _flow(self, flow: int, x: Tensor, above: list[Tensor]) -> list[Tensor]:
        stages, gates = flow_modules(self, flow)
        maps = []
        for number, stage in enumerate(stages, start=1):
            if number <= len(above) and str(number) in gates:
                gate = gates[str(number)]
                x = self._run(run_gated, (stage, gate), stage, gate, x, above[number - 1], self.eta)
            else:
                x = self._run(stage, (stage,), x)
            maps.append(x)
        return maps

    def _run(self, run: Callable[..., Tensor], modules: tuple[nn.Module, ...], *inputs: object) -> Tensor:
        return rematerialised(run, modules, *inputs) if self.rematerialise else run(*inputs)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> TDAF:
        super()._apply(fn, recurse)
        tie(self)
        return self


class MultiScale(nn.Module):
    """The control of Sec. 4.5: the same flows without gates, their pooled features side by side for the classifier.

    The settings are TDAF's. `forward` returns the last flow's maps, of which the last is followed, over channels, by
    the last map of flows N-1..1, each pooled to one value a channel and spread over the map's size: any head that
    pools sees them side by side, and `widths[-1]` counts them. Raises UserError for a setting out of range.
    """

    def __init__(
        self,
        staged: Staged,
        flows: int = 3,
        downsample: str = "area",
        norm: str = "mfbn",
        rematerialise: bool = False,
    ) -> None:
        super().__init__()
        _take(self, staged)
        self.flows = check_flows(flows, len(staged.stages))
        self.downsample = check_downsample(downsample)
        self.rematerialise = rematerialise
        last = [depth(flow, flows, len(staged.stages)) for flow in range(flows, 0, -1)]
        self.widths[-1] = sum(staged.widths[stages - 1] for stages in last)
        self.gates = nn.ModuleDict()
        self.earlier = _earlier(self, norm)
        keep_shared(self)

    def forward(self, x: Tensor) -> list[Tensor]:
        """x (B, C, [T,] H, W) -> L maps; the last one has the channels of all flows."""
        pooled: list[Tensor] = []
        maps: list[Tensor] = []
        for flow, x in enumerate(pyramid(x, self.flows, self.dims, self.downsample), start=1):
            maps = self._flow(flow, x)
            if flow < self.flows:
                pooled.insert(0, maps[-1].flatten(2).mean(2))
        size = maps[-1].shape[2:]
        spread = [p.reshape(*p.shape, *[1] * self.dims).expand(*p.shape, *size) for p in pooled]
        if spread:
            maps[-1] = torch.cat([maps[-1], *spread], dim=1)
        return maps

    def _flow(self, flow: int, x: Tensor) -> list[Tensor]:
        maps = []
        for stage in flow_modules(self, flow)[0]:
            x = rematerialised(stage, (stage,), x) if self.rematerialise else stage(x)
            maps.append(x)
        return maps

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> MultiScale:
        super()._apply(fn, recurse)
        tie(self)
        return self


def _take(network: nn.Module, staged: Staged) -> None:
    if staged.attend is not None:
        raise UserError("attention=abn: its branch names the classes of an image, so give task=imagenet or cifar10")
    network.stages = staged.stages
    network.widths = list(staged.widths)
    network.strides = list(staged.strides)
    network.dims = staged.dims
    network.classifier = staged.classifier
    network.appended = staged.appended
    network.attend = staged.attend
    network.scores = staged.scores


def _earlier(network: nn.Module, norm: str) -> nn.ModuleList:
    if norm not in NORM:
        raise UserError(f"norm={norm}: must be one of {', '.join(NORM)}")
    return clone_flows(network.stages, network.gates, network.flows) if norm == "mfbn" else nn.ModuleList()


def _gated_stages(gated: str | Sequence[int], stages: int, appended: int) -> list[int]:
    everywhere = list(range(1, stages))
    if gated == "all":
        return everywhere
    if gated == "appended":
        return _appended_stages(everywhere, appended)
    if isinstance(gated, str) or not all(stage in everywhere for stage in gated):
        names = "all, appended" if appended > 1 else "all"
        raise UserError(
            f"gated={gated}: must be {names} or a list of stages between 1 and {stages - 1}; the last stage has no gate"
        )
    return sorted(set(gated))


def _appended_stages(everywhere: list[int], appended: int) -> list[int]:
    if appended < 2:
        found = "only one appended stage, the last, which has no gate" if appended else "no appended stages"
        raise UserError(f"gated=appended: this network has {found}; give all or a list of stages")
    return everywhere[1 - appended :]
