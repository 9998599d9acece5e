"""What a network does as torch.fx traces it, and parts of that as modules."""

from __future__ import annotations

import copy
import inspect
import math
from collections.abc import Callable
from typing import Any

from torch import Tensor, fx, nn
from torchvision import ops

from tdaf.errors import UserError

Graphs = dict[bool, fx.Graph]  # by whether the module is in train mode: a network may do something else there


class Refused(UserError):
    """A network that has no stages; the message says why."""


class Operations(nn.Module):
    """A part of a network: the modules, Parameters and buffers that its operations name, and these operations."""

    def __init__(self, network: nn.Module, graphs: Graphs) -> None:
        super().__init__()
        self.code = Code(graphs)
        for graph in graphs.values():
            for node in graph.nodes:
                if node.op in ("call_module", "get_attr"):
                    _adopt(self, network, node.target)
        self.training = network.training

    @property
    def eval_graph(self) -> fx.Graph:
        """What it does in eval mode."""
        return self.code.graphs[False]

    def forward(self, x: Tensor) -> Tensor:
        return self.code.run[self.training](self, x)


class Code:
    """Graphs, and the functions that torch.fx makes of them. Copies of a module share it, as they share their class."""

    def __init__(self, graphs: Graphs) -> None:
        self.graphs, self.run = graphs, {mode: _function(graph) for mode, graph in graphs.items()}

    def __deepcopy__(self, memo: dict[int, Any]) -> Code:
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return Code, (self.graphs,)


def _function(graph: fx.Graph) -> Callable[..., Tensor]:
    code = graph.python_code("self")
    space = dict(code.globals)
    exec(compile(code.src, "<operations of a stage>", "exec"), space)
    return space["forward"]


def _adopt(part: nn.Module, network: nn.Module, target: str) -> None:
    """What the network has under a dotted name, under the same name in `part`."""
    *path, name = target.split(".")
    owner = network
    for step in path:
        owner = getattr(owner, step)
        if step not in part._modules:
            part.add_module(step, nn.Module())
        part = part._modules[step]
    value = getattr(owner, name)
    if isinstance(value, nn.Module):
        if name not in part._modules:
            part.add_module(name, _plain(value) if _activates(value) else value)
    elif isinstance(value, nn.Parameter):
        part.register_parameter(name, value)
    else:
        kept = name in owner._buffers and name not in owner._non_persistent_buffers_set
        part.register_buffer(name, value, persistent=kept)


def _plain(norm: nn.Module) -> nn.BatchNorm2d:
    """The same batch norm, Parameters and all, without what comes after."""
    plain = copy.copy(norm)
    plain.__class__ = nn.BatchNorm2d
    plain._modules = {}
    return plain


class _Tracer(fx.Tracer):
    def __init__(self, leaves: tuple[type, ...], functions: tuple[Callable, ...]) -> None:
        super().__init__(autowrap_modules=(math, ops), autowrap_functions=functions)
        self.leaves = leaves

    def is_leaf_module(self, module: nn.Module, name: str) -> bool:
        inside = isinstance(module, self.leaves) or type(module).__module__.startswith("torchvision.ops")
        return inside or super().is_leaf_module(module, name)

    def call_module(self, module: nn.Module, forward: Callable, args: tuple, kwargs: dict[str, Any]) -> Any:
        stack, before = self.module_stack.copy(), len(self.graph.nodes)
        try:
            x = super().call_module(module, forward, args, kwargs)
        except Exception:  # it runs any code on symbols; a module that does not bear that is one operation
            for node in [*self.graph.nodes][: before - 1 : -1]:
                self.graph.erase_node(node)
            name = self.path_of_module(module)
            self.module_stack = stack
            x = self.create_proxy("call_module", name, args, kwargs)
            x.node.meta["nn_module_stack"] = {**stack, name: (name, type(module))}
        if not _activates(module):
            return x
        # timm's batch norm with an activation, as the two that it is: then fold, freeze and SyncBN know it
        for part in (module.drop, module.act):
            x = super().call_module(part, part.forward, (x,), {})
        return x


def _activates(norm: nn.Module) -> bool:
    return isinstance(norm, nn.BatchNorm2d) and hasattr(norm, "act") and hasattr(norm, "drop")


def traced(network: nn.Module, leaves: tuple[type, ...], functions: tuple[Callable, ...]) -> fx.Graph:
    try:
        arguments = list(inspect.signature(network.forward).parameters.values())[1:]
        defaults = {p.name: p.default for p in arguments if p.default is not p.empty}
        graph = _Tracer(leaves, functions).trace(network, defaults or None)
    except Exception as error:  # tracing runs any code on symbols, which may fail in any way
        raise Refused(f"torch.fx cannot follow its forward pass ({first_line(error)})") from error
    for name, module in network.named_modules():
        for key, value in vars(module).items():
            if isinstance(value, fx.Proxy):
                raise Refused(f"it keeps {name}.{key} from call to call, which flows would mix up")
    return graph


def path_of(node: fx.Node) -> list[str]:
    """The modules that an operation lies within, the outermost first; its own name last where it is a module's."""
    inside = list(node.meta.get("nn_module_stack", {}))
    return inside[-1].partition("@")[0].split(".") if inside and inside[-1] else []


def last_inside(graph: fx.Graph, name: str) -> fx.Node:
    path = name.split(".")
    found = [node for node in graph.nodes if node.op != "get_attr" and path_of(node)[: len(path)] == path]
    if not found:
        raise Refused(f"a map is reported of {name or 'nothing'}, which is no module of its forward pass")
    return found[-1]


def first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:160] or type(error).__name__
