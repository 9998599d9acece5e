"""Flows which share every weight and keep statistics of their own (multi-flow batch normalisation, paper, Eq. 4).

A flow is a deep copy of the network's modules that holds the very same Parameters: only buffers are copied. So any
kind of normalisation becomes multi-flow without a class of ours. `network` below is a module with `stages`
(ModuleList), `gates` (ModuleDict by stage number), `flows` (N) and `earlier` (ModuleList of {"stages", "gates"} for
flows 1..N-1, or empty where all flows run the same modules); flow N is `stages` and `gates` themselves.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from itertools import chain
from typing import Any

from torch import nn

from tdaf.errors import UserError


def check_flows(flows: int, stages: int) -> int:
    """The setting itself. Raises UserError outside 1 <= N <= L."""
    if isinstance(flows, bool) or not isinstance(flows, int) or not 1 <= flows <= stages:
        raise UserError(
            f"flows={flows}: this backbone has {stages} stages, so flows must be between 1 and {stages}"
        )
    return flows


def depth(flow: int, flows: int, stages: int) -> int:
    """S(n), the number of stages of flow n of N (Eq. 1). flow is 1-based."""
    return stages - (flows - flow)


def clone_flows(stages: nn.ModuleList, gates: nn.ModuleDict, flows: int) -> nn.ModuleList:
    """Flows 1..N-1, each cut to its S(n) stages and to the gates it reads: those of stages that flow n-1 has too."""
    earlier = nn.ModuleList()
    for flow in range(1, flows):
        kept = depth(flow, flows, len(stages))
        read = kept - 1 if flow > 1 else 0
        flow_stages = nn.ModuleList(list(stages)[:kept])
        flow_gates = nn.ModuleDict({key: gate for key, gate in gates.items() if int(key) <= read})
        modules = nn.ModuleDict({"stages": flow_stages, "gates": flow_gates})
        earlier.append(copy.deepcopy(modules, {id(p): p for p in chain(stages.parameters(), gates.parameters())}))
    return earlier


def flow_modules(network: nn.Module, flow: int) -> tuple[list[nn.Module], Mapping[str, nn.Module]]:
    """The S(n) stages and the gates that flow n (1-based) runs. Without clones all flows run the network's own."""
    if flow < network.flows and len(network.earlier):
        modules = network.earlier[flow - 1]
        return list(modules["stages"]), modules["gates"]
    return list(network.stages)[: depth(flow, network.flows, len(network.stages))], network.gates


def keep_shared(network: nn.Module) -> None:
    """Make sharing survive loading (assign=True too), and leave the shared Parameters out of the earlier flows' state.

    `network._apply` must call `tie` as well: it replaces Parameters when a module leaves the meta device, for example.
    """
    network.tied = True
    network.register_state_dict_post_hook(_drop_shared)
    network.register_load_state_dict_pre_hook(_expect_shared)
    network.register_load_state_dict_post_hook(_tie_loaded)


def untie(network: nn.Module) -> None:
    """Let every flow keep Parameters of its own from now on, in `state_dict` too."""
    network.tied = False


def tie(network: nn.Module) -> None:
    """Put the network's Parameters back into every earlier flow."""
    if not network.tied:
        return
    for flow in network.earlier:
        for name, module in flow.named_modules():
            owned = list(module.named_parameters(recurse=False))
            if owned:
                own = dict(network.get_submodule(name).named_parameters(recurse=False))
                for key, _ in owned:
                    setattr(module, key, own[key])


def _shared(network: nn.Module, prefix: str) -> dict[str, nn.Parameter]:
    if not network.tied:
        return {}
    return dict(network.earlier.named_parameters(prefix + "earlier", remove_duplicate=False))


def _drop_shared(network: nn.Module, state: dict[str, Any], prefix: str, metadata: dict[str, Any]) -> None:
    for key in _shared(network, prefix):
        state.pop(key, None)


def _expect_shared(network: nn.Module, state: dict[str, Any], prefix: str, *unused: Any) -> None:
    # A clone is offered its present value: nothing is missing and nothing changes, as flow N loads the new one.
    state.update(_shared(network, prefix))


def _tie_loaded(network: nn.Module, incompatible: Any) -> None:
    tie(network)
