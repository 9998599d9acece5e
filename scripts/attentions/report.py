"""The statistics of masks and flows as tables and as a file."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

from attentions.source import Model, Shots, evenly
from torch import Tensor

from tdaf.cli.prediction import writing
from tdaf.errors import UnreadableSample
from tdaf.model.maps import FlowStatistics, GateStatistics, flow_statistics, gate_statistics

LEGEND = (
    "within, between: deviation inside a mask, and of the masks' means. fixed, varying: deviation over the places of "
    "the mean mask, and from mask to mask at a place; where varying is 0, every input has the same mask."
)


def reported(model: Model, shots: Shots, count: int, out: Path) -> str:
    """Markdown tables; the same in `out`/statistics.json. count: the most samples that masks are made of: those of the
    files, evenly over them, or of the whole validation split."""
    indices = evenly(shots.dataset, count)
    with model.precision.autocast():
        gates = gate_statistics(model.network, _inputs(model, shots, indices))
    flows = flow_statistics(model.network)
    document = {
        "checkpoint": str(model.run.path),
        "samples": len(indices),
        "gates": [{"flow": flow, "stage": stage, **asdict(one)} for (flow, stage), one in gates.items()],
        "flows": [{"part": part, "flow": flow, **asdict(one)} for (part, flow), one in flows.items()],
    }
    with writing(out):
        out.mkdir(parents=True, exist_ok=True)
        (out / "statistics.json").write_text(json.dumps(document, indent=2) + "\n")
    return f"{_gates(gates)}\n\n{LEGEND}\n\n{_flows(flows)}\n"


def _inputs(model: Model, shots: Shots, indices: list[int]) -> Iterator[Tensor]:
    """One sample each: those of a batch would be padded to the largest of them."""
    for index in indices:
        try:
            yield shots.dataset.collate([shots.dataset[index]])["input"].to(model.precision.device)
        except UnreadableSample:
            continue  # named where it was to be drawn


def _gates(gates: dict[tuple[int, int], GateStatistics]) -> str:
    names = ("mean", "deviation", "within", "between", "fixed", "varying", "smallest", "largest")
    rows = []
    for (flow, stage), one in gates.items():
        size = "differs" if one.size is None else "x".join(map(str, one.size))
        numbers = [_short(getattr(one, name)) for name in names]
        rows.append([f"flow {flow}, stage {stage}", size, *numbers, f"{one.closed:.1%}", f"{one.open:.1%}"])
    return _table([f"gate ({next(iter(gates.values())).masks} masks each)", "size", *names, "< 0.05", "> 0.95"], rows)


def _flows(flows: dict[tuple[str, int], FlowStatistics]) -> str:
    """A row a part of the network, its flows side by side."""
    numbers = sorted({flow for _, flow in flows})
    rows, smaller, compared = [], 0, 0
    for part in dict.fromkeys(part for part, _ in flows):
        own = [flows.get((part, flow)) for flow in numbers]
        names = ("mean", "variance", "mean_distance", "variance_distance")
        cells = [" / ".join(_short(getattr(one, name, None)) for one in own) for name in names]
        rows.append([part, str(next(filter(None, own)).norms), *cells])
        there = [one for one in own if one]
        if part.startswith("stage") and len(there) > 1:
            compared, smaller = compared + 1, smaller + (there[-1].mean < there[0].mean)
    which = f"flows {' / '.join(map(str, numbers))}" if len(numbers) > 1 else "all flows together"
    titles = [f"batch norms, {which}", "norms", "abs. mean", "variance", "distance of means", "of variances"]
    if not compared:
        return _table(titles, rows)
    said = f"The last flow's abs. mean is smaller than the first one's in {smaller} of {compared} stages"
    return f"{_table(titles, rows)}\n\n{said} (paper, Sec. 3.1: hind flows usually have smaller means)."


def _short(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}" if abs(value) >= 1000 else f"{value:.3f}"


def _table(titles: list[str], rows: list[list[str]]) -> str:
    """Markdown in columns that are also even to the eye."""
    widths = [max(len(row[place]) for row in [titles, *rows]) for place in range(len(titles))]
    lines = ["| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths)) + " |" for row in [titles, *rows]]
    return "\n".join([lines[0], "|" + "|".join("-" * (width + 2) for width in widths) + "|", *lines[1:]])
