"""Any network cut into stages: its graph as torch.fx traces it, divided where maps are asked for.

A stage keeps the network's own submodules under their own names, so that the publisher's weights load by name, and runs
the very operations of the network's forward pass in their order.
"""

from __future__ import annotations

import copy
import inspect
import math
import operator
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import chain
from os.path import commonprefix
from typing import Any

import torch
from torch import Tensor, fx, nn
from torchvision import ops

from tdaf.errors import UserError

PROBE = (96, 128)  # height and width of the image that is looked through a network with
_IN_PLACE = {operator.iadd: operator.add, operator.isub: operator.sub, operator.imul: operator.mul}

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
        self.graphs, self.run = graphs, {}
        for mode, graph in graphs.items():
            code = graph.python_code("self")
            space = dict(code.globals)
            exec(compile(code.src, "<operations of a stage>", "exec"), space)
            self.run[mode] = space["forward"]

    def __deepcopy__(self, memo: dict[int, Any]) -> Code:
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return Code, (self.graphs,)


@dataclass(frozen=True)
class Cut:
    """A network in parts.

    Attributes:
        stages: each from the map of the one before, the first from the image.
        widths: channels of their maps (B, C, H, W).
        rest: the operations from the last map to the network's output, for `Operations(network, rest)`.
    """

    stages: list[Operations]
    widths: list[int]
    rest: Graphs


def cut(
    network: nn.Module,
    ends: Sequence[str] | None,
    widths: Sequence[int] | None = None,
    out_indices: Sequence[int] | None = None,
    leaves: Iterable[type] = (),
    functions: Iterable[Callable] = (),
) -> Cut:
    """The network's stages, with its own modules in them.

    Args:
        network: from images (B, 3, H, W) to one tensor. It is no longer to be used itself.
        ends: the modules whose outputs are the stages' maps, by name. None: the last map of each size; of the places
            with that size through which everything goes, the last one that lies within fewest blocks.
        widths: channels of these maps, where they are known: tells (B, C, H, W) from (B, H, W, C).
        out_indices: which of these end a stage, counted from 0; None: all.
        leaves, functions: classes of modules, and functions, that torch.fx is not to look into.

    Raises:
        Refused: no stages that depend on the one before alone; with the reason.
        UserError: an index that there is no map of.
    """
    training = network.training
    graphs = {mode: _traced(network.train(mode), tuple(leaves), tuple(functions)) for mode in (True, False)}
    network.train(training)
    image = next(network.parameters(), torch.zeros(())).new_zeros(1, 3, *PROBE)
    if ends is None:
        places = _last_of_each_size(network, graphs[False], image)
    else:
        places = [_last_inside(graphs[False], name) for name in ends]
    places = _chosen(places, out_indices)
    known = _chosen(widths, out_indices) if widths else [None] * len(places)
    nodes = {mode: [_the_same(place, graph) for place in places] for mode, graph in graphs.items()}
    layouts = [False] * len(places)
    for _ in range(2):
        parts = {mode: _divided(graph, nodes[mode], layouts) for mode, graph in graphs.items()}
        _outside_in_place(network, parts)
        stages = [Operations(network, {mode: parts[mode][k] for mode in parts}) for k in range(len(places))]
        maps = _maps(stages, image)
        if not any(found := [_is_channels_last(x, width) for x, width in zip(maps, known, strict=True)]):
            break
        layouts = found
    for number, (x, width) in enumerate(zip(maps, known, strict=True), 1):
        if width not in (None, x.shape[1]):
            raise Refused(f"stage {number} gives {x.shape[1]} channels where {width} are reported")
    sizes = [x.shape[2] for x in maps]
    if len(maps) > 1 and len(set(sizes)) == 1:
        raise Refused(f"all its maps have one size, 1/{round(PROBE[0] / sizes[0])} of the image: it is no pyramid")
    return Cut(stages, [x.shape[1] for x in maps], {mode: parts[mode][-1] for mode in parts})


def _the_same(node: fx.Node, graph: fx.Graph) -> fx.Node:
    """In the graph of the other mode: the same operation of the same module, counted among such."""

    def alike(graph: fx.Graph) -> list[fx.Node]:
        return [other for other in graph.nodes if (_path_of(other), other.target) == (_path_of(node), node.target)]

    here, there = alike(node.graph), alike(graph)
    if len(here) != len(there):
        raise Refused(f"it goes another way in training at {node.name}")
    return there[here.index(node)]


def _chosen(places: Sequence[Any], out_indices: Sequence[int] | None) -> list[Any]:
    if out_indices is None:
        return [*places]
    if not out_indices or [k for k in range(len(places)) if k in out_indices] != [*out_indices]:
        most = len(places) - 1
        raise UserError(f"out_indices={[*out_indices]}: give some of 0 to {most}, the network's maps, in order")
    return [places[k] for k in out_indices]


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


def _traced(network: nn.Module, leaves: tuple[type, ...], functions: tuple[Callable, ...]) -> fx.Graph:
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


def _path_of(node: fx.Node) -> list[str]:
    """The modules that an operation lies within, the outermost first; its own name last where it is a module's."""
    inside = list(node.meta.get("nn_module_stack", {}))
    return inside[-1].partition("@")[0].split(".") if inside and inside[-1] else []


def _last_inside(graph: fx.Graph, name: str) -> fx.Node:
    path = name.split(".")
    found = [node for node in graph.nodes if node.op != "get_attr" and _path_of(node)[: len(path)] == path]
    if not found:
        raise Refused(f"a map is reported of {name or 'nothing'}, which is no module of its forward pass")
    return found[-1]


def first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:160] or type(error).__name__


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


@torch.no_grad()
def _last_of_each_size(network: nn.Module, graph: fx.Graph, image: Tensor) -> list[fx.Node]:
    """The operations that end the stages: everything goes through each of them."""
    run = fx.Interpreter(network.eval(), garbage_collect_values=False, graph=graph)
    try:
        run.run(image)
    except Exception as error:
        raise _not_any_size(error) from error
    maps = {node: x for node, x in run.env.items() if isinstance(x, Tensor) and x.ndim == 4}
    nodes = [node for node in graph.nodes if node.op not in ("get_attr", "output")]
    place = {node: number for number, node in enumerate(nodes)}
    last_use = {node: max([place.get(user, len(nodes)) for user in node.users], default=-1) for node in nodes}
    best: dict[int, tuple[int, fx.Node]] = {}  # by height: within how many blocks, and which operation
    alive: set[fx.Node] = set()
    smallest = PROBE[0]
    for node, following in zip(nodes, [*nodes[1:], None], strict=True):
        alive = {old for old in alive if last_use[old] > place[node]} | ({node} if last_use[node] > 0 else set())
        if alive != {node} or node not in maps or node.op == "placeholder":
            continue
        height, width = maps[node].shape[1:3] if _is_channels_last(maps[node]) else maps[node].shape[2:]
        if height > smallest or height == width == 1:  # the pool before the classifier
            break
        smallest = height
        depth = len(commonprefix([_path_of(node), _path_of(following) if following else []]))
        if height not in best or depth <= best[height][0]:
            best[height] = depth, node
    return [node for _, node in best.values()]


def _divided(graph: fx.Graph, ends: list[fx.Node], layouts: list[bool]) -> list[fx.Graph]:
    """The graphs of the stages, and of what is left. layouts: whether a stage ends in (B, H, W, C), which is turned."""
    nodes = [node for node in graph.nodes if node.op not in ("placeholder", "get_attr")]
    places = [nodes.index(end) + 1 for end in ends]
    if places != sorted(set(places)):
        raise Refused("its maps are not one after another")
    source = next(node for node in graph.nodes if node.op == "placeholder")
    live = _live(graph)
    parts = []
    for k, (begin, end) in enumerate(zip([0, *places], [*places, len(nodes)], strict=True)):
        part = fx.Graph()
        x = part.placeholder("x")
        known = {source: part.call_method("permute", (x, 0, 2, 3, 1)) if k and layouts[k - 1] else x}

        def value(node: fx.Node, part: fx.Graph = part, known: dict[fx.Node, fx.Node] = known, k: int = k) -> fx.Node:
            if node not in known:
                if node.op != "get_attr":
                    raise Refused(f"stage {k + 1} reads {node.name}, which is not the map of stage {k}")
                known[node] = part.node_copy(node)
            return known[node]

        for node in nodes[begin:end]:
            if node.op == "output":
                if not isinstance(node.args[0], fx.Node):
                    raise Refused("its output is not one tensor")
                part.output(value(node.args[0]))
            elif node in live:
                known[node] = part.node_copy(node, value)
        if k < len(ends):
            y = known[ends[k]]
            part.output(part.call_method("permute", (y, 0, 3, 1, 2)) if layouts[k] else y)
            source = ends[k]
        parts.append(part)
    return parts


def _live(graph: fx.Graph) -> set[fx.Node]:
    """What the output needs; and what may write into its input, which is not seen to be needed. (Not assertions.)"""
    live: set[fx.Node] = set()
    for node in reversed(graph.nodes):
        if node.op == "output" or node.op == "call_module" or node in live or _writes(node):
            live.update([node, *node.all_input_nodes])
    return live


def _writes(node: fx.Node) -> bool:
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
    return node.op.startswith("call") and (name.endswith("_") or node.target in _IN_PLACE or "inplace" in node.kwargs)


def _outside_in_place(network: nn.Module, parts: dict[bool, list[fx.Graph]]) -> None:
    """A stage must not write into the map that it is given: it is the answer of the one before, and gates read it."""
    for graphs in parts.values():
        for graph in graphs[1:]:
            for node in next(iter(graph.nodes)).users:
                if node.op == "call_module":
                    module = network.get_submodule(node.target)
                    if getattr(module, "inplace", False):
                        module.inplace = False
                elif node.op == "call_function":
                    node.target = _IN_PLACE.get(node.target, node.target)
                    if node.kwargs.get("inplace"):
                        node.kwargs = {**node.kwargs, "inplace": False}


def strides(stages: list[Operations]) -> list[int]:
    """By how much the image has to grow for one more value of each map; sizes themselves may lack what has no pad."""
    kind = next(chain.from_iterable(stage.parameters() for stage in stages), torch.zeros(()))
    small, large = (_maps(stages, kind.new_zeros(1, 3, k * PROBE[0], k * PROBE[1])) for k in (1, 2))
    return [round(PROBE[0] / (b.shape[2] - a.shape[2])) for a, b in zip(small, large, strict=True)]


@torch.no_grad()
def _maps(stages: list[Operations], image: Tensor) -> list[Tensor]:
    modes = [(module, module.training) for stage in stages for module in stage.modules()]
    buffers = [(name, buffer, buffer._version) for stage in stages for name, buffer in stage.named_buffers()]
    maps, x = [], image
    try:
        for stage in stages:
            given, version = x, x._version
            x = stage.eval()(given)
            maps.append(x)
            if given._version != version:
                raise Refused(f"stage {len(maps)} writes into the map that it is given")
    except Refused:
        raise
    except Exception as error:  # any code, with any size that it was not made for
        raise _not_any_size(error) from error
    finally:
        for module, training in modes:
            module.training = training
    for name, buffer, version in buffers:
        if buffer._version != version:
            raise Refused(f"it changes {name} in every call, which flows would mix up")
    for number, x in enumerate(maps, 1):
        if not isinstance(x, Tensor) or x.ndim != 4:
            shape = "x".join(map(str, x.shape)) if isinstance(x, Tensor) else type(x).__name__
            raise Refused(f"stage {number} gives no map with height and width, but {shape}")
    return maps


def _not_any_size(error: Exception) -> Refused:
    size = "x".join(map(str, PROBE))
    return Refused(f"it does not take every size of image: at {size} it says: {first_line(error)}")


def _is_channels_last(x: Tensor, width: int | None = None) -> bool:
    if width is not None and (x.shape[1] == width) != (x.shape[3] == width):
        return x.shape[3] == width

    def fits(height: int, width: int) -> bool:
        return height * PROBE[1] == width * PROBE[0]

    return fits(*x.shape[1:3]) and not fits(*x.shape[2:4])
