"""What TDAF costs over its plain backbone (paper, Sec. 4.5): time, memory, and where its multiply-adds are.

In the JSON file each network has a section of its own, "latency_res50 cpu" or "latency_res101 gpu", say, with
"backbone", "anar", "flows", "batch" and "size". Its rows have these keys, and each a "value", TDAF / plain or None:

forward, forward_folded, forward_compiled, forward_graphs (of the folded networks as CUDA graphs), training,
training_compiled: seconds, both sides alike. saved: bytes kept for backward. peak: bytes on a GPU in a training step.
gflops: multiply-adds; gflops_flows, gflops_gates, gflops_rest: those of TDAF's flows, its ANARs and its head / all of
the plain network's, which add up to gflops. "absolute" has the figures of both sides.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from benchmarks.model import FORWARD, PLAIN, TDAF, TRAINING, against, compiling, memory
from benchmarks.networks import forward, images, network, settled, training
from benchmarks.settings import Settings
from benchmarks.timing import Result, interleaved
from tdaf import measure
from tdaf.engine.precision import Precision
from tdaf.model.fold import fold

# seconds of a forward pass as the paper prints them; its text says less than 25 % and 15 %
PAPER = {"res50": (0.015, 0.018), "res101": (0.031, 0.035)}


def latency(settings: Settings) -> dict[str, Result]:
    """All rows of one backbone; those of a GPU only there."""
    found = _counted(settings) | memory(settings) | _forward(settings)
    precision, x = Precision("auto", settings.device), images(settings)
    sides = {name: precision.place(network(settings, flows)) for name, flows in _sides(settings).items()}
    calls = {name: training(each, x, precision) for name, each in sides.items()}
    times = interleaved(calls, settings.rounds(TRAINING), settings.device)
    found["training"] = against(times, TDAF, PLAIN, settings.batch)
    compiled = compiling(settings)
    return found | {
        "forward_compiled": compiled["compiled"],
        "training_compiled": compiled.get("compiled_training", Result(None)),
    }


def _sides(settings: Settings) -> dict[str, int]:
    return {PLAIN: 1, TDAF: settings.flows}


def _counted(settings: Settings) -> dict[str, Result]:
    x = images(settings, batch=1).to("meta")
    plain, tdaf = (measure.gflops(network(settings, n).to("meta"), x) for n in _sides(settings).values())
    parts = {"gflops": "total", "gflops_flows": "flows", "gflops_gates": "gates", "gflops_rest": "rest"}
    return {
        key: Result(
            getattr(tdaf, part) / plain.total,
            absolute={PLAIN: f"{getattr(plain, part):.3f} GFLOPs", TDAF: f"{getattr(tdaf, part):.3f} GFLOPs"},
            note="" if part == "total" else f"{100 * getattr(tdaf, part) / tdaf.total:.1f} % of TDAF's",
        )
        for key, part in parts.items()
    }


def _forward(settings: Settings) -> dict[str, Result]:
    """As they are, folded, and on a GPU the folded ones as CUDA graphs: all in the same rounds."""
    precision, x = Precision("auto", settings.device), images(settings)
    calls: dict[str, Callable[[], object]] = {}
    for name, flows in _sides(settings).items():
        whole = settled(network(settings, flows), x[:8].cpu())
        short = precision.place(fold(whole))
        calls[name] = forward(precision.place(whole), x, precision)
        calls[f"{name}, folded"] = forward(short, x, precision)
        if settings.gpu:
            calls[f"{name}, CUDA graph"] = _graph(forward(short, x, precision))
    times = interleaved(calls, settings.rounds(FORWARD), settings.device)
    ends = {"forward": "", "forward_folded": ", folded"} | ({"forward_graphs": ", CUDA graph"} if settings.gpu else {})
    found = {key: against(times, TDAF + end, PLAIN + end, settings.batch) for key, end in ends.items()}
    if settings.backbone in PAPER and (settings.anar, settings.flows) == (3, 3):
        plain, tdaf = PAPER[settings.backbone]
        eager, note = found["forward"], f"paper: {tdaf / plain:.2f}, {plain} s to {tdaf} s on a TitanXP, batch 256"
        found["forward"] = Result(eager.value, eager.spread, eager.null, eager.absolute, note)
    return found


def _graph(call: Callable[[], object]) -> Callable[[], None]:
    """The call as a CUDA graph, to be replayed without the CPU's part in it."""
    aside = torch.cuda.Stream()
    aside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(aside):  # what is allocated and chosen in the first calls must not be captured
        for _ in range(3):
            call()
    torch.cuda.current_stream().wait_stream(aside)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    return graph.replay
