"""TDAF (paper, Sec. 3) and its multi-scale control (Sec. 4.5): a staged network as N flows which share all weights.

Eq. 1, the depth of a flow: `depth`. Eq. 2, what a flow reads: `pyramid`. Eqs. 3 and 5, the gate that a flow's map puts
on the next flow's: `mask`, inside the call of a stage (gated.py). Eq. 4, multi-flow batch norm:
`clone_flows`, which shares Parameters and copies statistics.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from tdaf.errors import UserError
from tdaf.model.anar import ANAR, check_anar
from tdaf.model.gated import take_gate
from tdaf.model.staged import Staged, gated_stages

DOWNSAMPLE = ("area", "bilinear", "stride")
NORM = ("mfbn", "shared")


class Flows(nn.Module):
    """N flows of one staged network, the last of which is the network itself; what TDAF and MultiScale have in common.

    Attributes:
        stages: the list given, run by flow N, so that its state-dict keys are the plain network's.
        widths, strides, dims, classifier, appended: as of `Staged`.
        gates: ModuleDict of gates by 1-based stage number; empty in MultiScale.
        earlier: ModuleList of {"stages", "gates"} for flows 1..N-1, clones with the very same Parameters and statistics
            of their own, which alone are in the state dict; empty where all flows run the same modules.
        tied: False lets every flow keep Parameters of its own from then on, in `state_dict` too (`fold` does).
    """

    def __init__(
        self, staged: Staged, flows: int, downsample: str, norm: str, rematerialise: bool, deeper: int = 0
    ) -> None:
        super().__init__()
        most = len(staged.stages)
        if isinstance(flows, bool) or not isinstance(flows, int) or not 1 <= flows <= most:
            raise UserError(f"flows={flows}: this backbone has {most} stages, so flows must be between 1 and {most}")
        for name, value, choices in (("downsample", downsample, DOWNSAMPLE), ("norm", norm, NORM)):
            if value not in choices:
                raise UserError(f"{name}={value}: must be one of {', '.join(choices)}")
        if isinstance(deeper, bool) or not isinstance(deeper, int) or not 0 <= deeper <= (flows - 1 or most):
            raise UserError(f"deeper={deeper}: must be between 0 and {flows - 1 or most} with flows={flows}")
        self.deeper = deeper if flows > 1 else 0
        self.stages = staged.stages
        self.widths, self.strides = list(staged.widths), list(staged.strides)
        self.dims, self.classifier, self.appended = staged.dims, staged.classifier, staged.appended
        self.flows, self.downsample, self.rematerialise = flows, downsample, rematerialise
        self.gates = nn.ModuleDict()

    def _share(self, norm: str) -> None:
        """Makes the earlier flows, and sharing survive loading (assign=True too). The last thing a constructor does."""
        depths = [self.depth(flow) for flow in range(1, self.flows)] if norm == "mfbn" else []
        self.earlier = nn.ModuleList(clone_flows(self.stages, self.gates, depths))
        self.tied = True
        self.register_state_dict_post_hook(_drop_shared)
        self.register_load_state_dict_pre_hook(_expect_shared)
        self.register_load_state_dict_post_hook(tie)

    def depth(self, flow: int) -> int:
        """S(n), the number of stages of flow n (1-based): Eq. 1, and as many more as `deeper` says, at most all."""
        return min(depth(flow, self.flows, len(self.stages)) + self.deeper, len(self.stages))

    def flow_modules(self, flow: int) -> tuple[list[nn.Module], Mapping[str, nn.Module]]:
        """The S(n) stages of flow n (1-based), and the gates by stage number that it may run."""
        if flow < self.flows and len(self.earlier):
            modules = self.earlier[flow - 1]
            return list(modules["stages"]), modules["gates"]
        return list(self.stages)[: self.depth(flow)], self.gates

    def _run(self, run: Callable[..., Tensor], modules: tuple[nn.Module, ...], *inputs: object) -> Tensor:
        return rematerialised(run, modules, *inputs) if self.rematerialise else run(*inputs)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Flows:
        super()._apply(fn, recurse)  # replaces Parameters when they leave the meta device, for example
        tie(self)
        return self


class TDAF(Flows):
    """A staged network with top-down attention (Eqs. 1-5); it has the fields of `Staged` and returns what that returns.

    What is to change in `staged` (a stage appended, a stem replaced) must change before. Forward hooks of a stage fire
    once in the call of each flow that has it, as on the plain network: on `stages[l]` flow N's, on
    `earlier[n - 1]["stages"][l]` flow n's (with norm="shared" all on `stages[l]`). They see the stage's input and the
    map that goes on from it, which is the gated one where the stage has a gate.

    Args:
        staged: the network, of L stages.
        flows: N, 1 <= N <= L. 1 is the plain network itself: no gate, no clone.
        anar: layers of each gate, 2, 3, 5 or 7 (Table 1).
        eta: what is added to each mask (Eq. 5), in [0, 1].
        gated: "all"; a list of the 1-based stages that have a gate, from 1..L-1; or "appended": those of them that a
            task has appended to the backbone (`Staged.append`), as the paper has it for pose (Sec. 4.3).
        downsample: how an input is halved (Eq. 2), "area", "bilinear" or "stride"; see `halve`.
        anar_width, depthwise, gate_init: of each gate; see `ANAR`.
        norm: "mfbn" (Eq. 4), or "shared": one set of statistics for all flows.
        rematerialise: keep each stage's input alone and compute the stage again in backward; also with one flow.
        upsample, mask, learn_eta: designs of the gates that are not the paper's; see `ANAR`.
        detach: x_l = h_l * (g_l[sg(a)] + eta), a the map of the flow before, through which sg lets no gradient: weights
            learn by the last flow alone, which shares them. Not the paper's either ("end-to-end").
        preactivation: x_l = relu(z_l + g_l[a] + eta - 1), z_l being what the stage gives to its last ReLU. The mask
            moves the ReLU's threshold, so it can also open what is closed; a mask of 1 - eta still changes nothing. Not
            the paper's. (A product there would be: relu(m z) = m relu(z) for m >= 0.) Needs stages that end in an
            nn.ReLU.
        deeper: d, S(n) = min(L, L - (N - n) + d) in the place of Eq. 1: a coarse flow goes on for d stages more. With
            d > 0 flow N - 1 has a map of the last stage too, so "all" gates stages 1..L. Not the paper's. At most
            N - 1, with which each flow runs all stages.

    Raises:
        UserError: a setting out of range.
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
        upsample: str = "deconv",
        mask: str = "one",
        learn_eta: bool = False,
        detach: bool = False,
        preactivation: bool = False,
        deeper: int = 0,
    ) -> None:
        super().__init__(staged, flows, downsample, norm, rematerialise, deeper)
        designs = (upsample, mask, learn_eta)
        check_anar(anar, gate_init, eta, *designs)
        self.eta, self.detach = eta, detach
        seen, whole = self.depth(flows - 1), (len(self.stages), self.appended)
        for stage in gated_stages(gated, seen, *whole) if flows > 1 else ():
            width = self.widths[stage - 1]
            self.gates[str(stage)] = ANAR(width, anar, anar_width, self.dims, depthwise, gate_init, eta, *designs)
            take_gate(self.stages[stage - 1], preactivation)
        self._share(norm)

    def forward(self, x: Tensor) -> list[Tensor]:
        """x (B, C, [T,] H, W) -> the L maps of the last flow, the last one last."""
        maps: list[Tensor] = []
        for flow, smaller in enumerate(pyramid(x, self.flows, self.dims, self.downsample), start=1):
            maps = self._flow(flow, smaller, maps)
        return maps

    def _flow(self, flow: int, x: Tensor, above: list[Tensor]) -> list[Tensor]:
        """The maps of one flow, given those of the flow before it."""
        stages, gates = self.flow_modules(flow)
        maps = []
        for number, stage in enumerate(stages, start=1):
            if number <= len(above) and str(number) in gates:
                gate, seen = gates[str(number)], above[number - 1]
                seen = seen.detach() if self.detach else seen
                x = self._run(_gated, (stage, gate), stage, x, gate, seen, gate.shortcut(self.eta))
            else:
                x = self._run(stage, (stage,), x)
            maps.append(x)
        return maps


class MultiScale(Flows):
    """The control of Sec. 4.5: the same flows without gates, their pooled features side by side for the classifier.

    `forward` returns the last flow's maps, of which the last is followed, over channels, by the last map of flows
    N-1..1, each pooled to one value a channel and spread over the map's size: any head that pools sees them side by
    side, and `widths[-1]` counts them.

    Args:
        staged, flows, downsample, norm, rematerialise: as TDAF's.

    Raises:
        UserError: a setting out of range.
    """

    def __init__(
        self,
        staged: Staged,
        flows: int = 3,
        downsample: str = "area",
        norm: str = "mfbn",
        rematerialise: bool = False,
    ) -> None:
        super().__init__(staged, flows, downsample, norm, rematerialise)
        depths = [depth(flow, flows, len(self.stages)) for flow in range(flows, 0, -1)]
        self.widths[-1] = sum(staged.widths[stages - 1] for stages in depths)
        self._share(norm)

    def forward(self, x: Tensor) -> list[Tensor]:
        """x (B, C, [T,] H, W) -> L maps; the last one has the channels of all flows."""
        pooled: list[Tensor] = []
        maps: list[Tensor] = []
        for flow, y in enumerate(pyramid(x, self.flows, self.dims, self.downsample), start=1):
            maps = []
            for stage in self.flow_modules(flow)[0]:
                y = self._run(stage, (stage,), y)
                maps.append(y)
            if flow < self.flows:
                pooled.insert(0, maps[-1].flatten(2).mean(2))
        size = maps[-1].shape[2:]
        spread = [p.reshape(*p.shape, *[1] * self.dims).expand(*p.shape, *size) for p in pooled]
        if spread:
            maps[-1] = torch.cat([maps[-1], *spread], dim=1)
        return maps


def depth(flow: int, flows: int, stages: int) -> int:
    """S(n), the number of stages of flow n of N (Eq. 1). flow is 1-based."""
    return stages - (flows - flow)


def halve(x: Tensor, dims: int, downsample: str = "area") -> Tensor:
    """x (B, C, *size) -> (B, C, *ceil(size / 2)); all `dims` last axes are halved, time too in 3D.

    area: mean of cells of 2 pixels an axis; an odd last cell is the mean of what it has.
    bilinear: linear interpolation between pixel centres. stride: every second pixel, starting with the first.
    """
    if downsample == "stride":
        return x[..., ::2, ::2] if dims == 2 else x[..., ::2, ::2, ::2]
    if downsample == "area":
        pool = F.avg_pool2d if dims == 2 else F.avg_pool3d
        return pool(x, 2, stride=2, ceil_mode=True, count_include_pad=False)
    size = [(s + 1) // 2 for s in x.shape[2:]]
    return F.interpolate(x, size=size, mode="bilinear" if dims == 2 else "trilinear", align_corners=False)


def pyramid(x: Tensor, flows: int, dims: int, downsample: str = "area") -> list[Tensor]:
    """The inputs x_1 of flows 1..N (Eq. 2), the smallest first; flow N reads x itself."""
    inputs = [x]
    for _ in range(flows - 1):
        inputs.append(halve(inputs[-1], dims, downsample))
    return inputs[::-1]


def mask(h: Tensor, gate: nn.Module, above: Tensor, eta: float | Tensor) -> Tensor:
    """g_l[above] + eta (Eq. 5): (B, 1 or C, *size) for a map h (B, C, *size), above, the previous flow's, smaller."""
    # A deconvolution doubles a map whose size was rounded up: what lies beyond half of h is of no cell of h, and would
    # squeeze the mask. Elsewhere every size is half of the next flow's, rounded up, and nothing is cut.
    above = above[(..., *(slice((size + 1) // 2) for size in h.shape[2:]))]
    return gate(above, h.shape[2:]).to(h.dtype) + eta


def _gated(stage: nn.Module, x: Tensor, gate: nn.Module, above: Tensor, eta: float | Tensor) -> Tensor:
    # h_l[x] * (g_l[above] + eta), in one call of the stage
    return stage(x, gate=functools.partial(mask, gate=gate, above=above, eta=eta))


def clone_flows(stages: nn.ModuleList, gates: nn.ModuleDict, depths: Sequence[int]) -> list[nn.ModuleDict]:
    """Flows 1..N-1, each cut to its S(n) stages and to the gates it reads: those of stages that flow n-1 has too.
    depths: S(1)..S(N-1).

    A flow is a deep copy with the very same Parameters: only buffers are copied (Eq. 4). So any norm is multi-flow.
    """
    shared = {id(p): p for p in chain(stages.parameters(), gates.parameters())}
    earlier = []
    for read, own in zip([0, *depths], depths, strict=False):
        flow_gates = nn.ModuleDict({key: gate for key, gate in gates.items() if int(key) <= read})
        flow_modules = nn.ModuleDict({"stages": nn.ModuleList(list(stages)[:own]), "gates": flow_gates})
        earlier.append(copy.deepcopy(flow_modules, dict(shared)))
    return earlier


def tie(network: Flows, *unused: Any) -> None:
    """Puts the network's Parameters back into every earlier flow."""
    for flow in network.earlier if network.tied else ():
        for name, module in flow.named_modules():
            for key, _ in list(module.named_parameters(recurse=False)):
                setattr(module, key, network.get_parameter(f"{name}.{key}"))


def _shared(network: Flows, prefix: str) -> dict[str, nn.Parameter]:
    if not network.tied:
        return {}
    return dict(network.earlier.named_parameters(prefix + "earlier", remove_duplicate=False))


def _drop_shared(network: Flows, state: dict[str, Any], prefix: str, metadata: dict[str, Any]) -> None:
    for key in _shared(network, prefix):
        state.pop(key, None)


def _expect_shared(network: Flows, state: dict[str, Any], prefix: str, *unused: Any) -> None:
    # A clone is offered its present value: nothing is missing and nothing changes, as flow N loads the new one.
    state.update(_shared(network, prefix))


def rematerialised(run: Callable[..., Tensor], modules: Sequence[nn.Module], *inputs: Any) -> Tensor:
    """run(*inputs), of which backward keeps the inputs alone and computes the rest again.

    modules: what `run` calls. They update their running statistics the first time only, so statistics and gradients
    equal those of run(*inputs).
    """
    if not torch.is_grad_enabled():
        return run(*inputs)
    if torch.compiler.is_compiling():
        # A compiler records the forward pass once and repeats pure operations only, so statistics are safe.
        return checkpoint(run, *inputs, use_reentrant=False)
    return checkpoint(run, *inputs, use_reentrant=False, context_fn=lambda: (nullcontext(), _statistics_kept(modules)))


@contextmanager
def _statistics_kept(modules: Sequence[nn.Module]) -> Iterator[None]:
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
