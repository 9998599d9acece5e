"""Any network cut into stages: its graph as torch.fx traces it, divided where maps are asked for.

A stage keeps the network's own submodules under their own names, so that the publisher's weights load by name, and runs
the very operations of the network's forward pass in their order.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch
from torch import Tensor, fx, nn

from tdaf.errors import UserError
from tdaf.model.backbones.trace import Graphs, Operations, Refused, first_line, last_inside, path_of, traced

PROBE = (96, 128)  # height and width of the image that is looked through a network with
_IN_PLACE = {operator.iadd: operator.add, operator.isub: operator.sub, operator.imul: operator.mul}


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
    graphs = {mode: traced(network.train(mode), tuple(leaves), tuple(functions)) for mode in (True, False)}
    network.train(training)
    image = next(network.parameters(), torch.zeros(())).new_zeros(1, 3, *PROBE)
    if ends is None:
        places = _last_of_each_size(network, graphs[False], image)
    else:
        places = [last_inside(graphs[False], name) for name in ends]
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
        return [other for other in graph.nodes if (path_of(other), other.target) == (path_of(node), node.target)]

    here, there = alike(node.graph), alike(graph)
    if len(here) != len(there):
        raise Refused(f"it goes another way in training at {node.name}")
    return there[here.index(node)]


def _chosen(places: Sequence[Any], out_indices: Sequence[int] | None) -> list[Any]:
    if out_indices is None:
        return [*places]
    if (
        not out_indices
        or not all(0 <= k < len(places) for k in out_indices)
        or sorted(set(out_indices)) != [*out_indices]
    ):
        raise UserError(
            f"out_indices={[*out_indices]}: give some of 0 to {len(places) - 1}, the network's maps, in order"
        )
    return [places[k] for k in out_indices]


# --- Where a network's maps get smaller


class _Sizes(fx.Interpreter):
    """Height and width of every map (B, C, H, W) or (B, H, W, C)."""

    def __init__(self, network: nn.Module, graph: fx.Graph) -> None:
        super().__init__(fx.GraphModule(network, graph))
        self.found: dict[str, tuple[int, int]] = {}

    def run_node(self, node: fx.Node) -> Any:
        value = super().run_node(node)
        if isinstance(value, Tensor) and value.ndim == 4:
            self.found[node.name] = tuple(value.shape[1:3] if _is_channels_last(value) else value.shape[2:])
        return value


@torch.no_grad()
def _last_of_each_size(network: nn.Module, graph: fx.Graph, image: Tensor) -> list[fx.Node]:
    """The operations that end the stages: everything goes through each of them."""
    sizes = _Sizes(network.eval(), graph)
    try:
        sizes.run(image)
    except Exception as error:
        raise _not_any_size(error) from error
    nodes = [node for node in graph.nodes if node.op not in ("get_attr", "output")]
    place = {node: number for number, node in enumerate(nodes)}
    last_use = {node: max([place.get(user, len(nodes)) for user in node.users], default=-1) for node in nodes}
    best: dict[int, tuple[int, fx.Node]] = {}  # by height: within how many blocks, and which operation
    alive: set[fx.Node] = set()
    smallest = PROBE[0]
    for node, following in zip(nodes, [*nodes[1:], None], strict=True):
        alive = {old for old in alive if last_use[old] > place[node]} | ({node} if last_use[node] > 0 else set())
        if alive != {node} or node.name not in sizes.found or node.op == "placeholder":
            continue
        height, width = sizes.found[node.name]
        if height > smallest or height == width == 1:  # the pool before the classifier
            break
        smallest = height
        depth = _common(path_of(node), path_of(following) if following else [])
        if height not in best or depth <= best[height][0]:
            best[height] = depth, node
    return [node for _, node in best.values()]


def _common(a: list[str], b: list[str]) -> int:
    return next((k for k, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


# --- Dividing


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


# --- Looking through


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
