"""The study's pictures, as SVG."""

from __future__ import annotations

import json
import math
from collections import defaultdict
from pathlib import Path

import matplotlib

matplotlib.use("svg")
matplotlib.rcParams.update({"svg.hashsalt": "tdaf", "svg.fonttype": "none", "font.size": 9})  # the same file each time

from matplotlib import pyplot  # noqa: E402

from studies.evidence import Outcome, interval  # noqa: E402
from studies.plan import Group, Trial  # noqa: E402

BLUE, ORANGE, GREY = "#0072b2", "#d55e00", "#888888"  # told apart by colour-blind eyes too (Okabe and Ito)
COLOURS = {"plain": GREY, "multi-scale": ORANGE, "TDAF": BLUE}
CURVES = {name: (colour, "-") for name, colour in COLOURS.items()}
CURVES |= {f"{name}, 16 epochs": (colour, "--") for name, colour in COLOURS.items()}


def accuracies(path: Path, group: Group, found: dict[str, Outcome]) -> Path:
    """A line a row: its seeds as small dots, their mean with its interval; dashed, the rows it is compared with."""
    references = [name for name in group.references if name in found and found[name].values]
    rows = [row.name for row in group.rows if found[row.name].values]
    rows = [*(name for name in references if name not in rows), *rows]
    figure, axes = pyplot.subplots(figsize=(7, 0.7 + 0.3 * len(rows)))
    for place, name in enumerate(rows):
        values = list(found[name].values.values())
        mean, half = interval(values)
        colour = ORANGE if name in references else BLUE
        axes.plot(values, [place] * len(values), ".", color=GREY, markersize=4)
        axes.errorbar(mean, place, xerr=None if math.isnan(half) else half, fmt="o", color=colour, capsize=3)
        if name in references:
            axes.axvline(mean, color=ORANGE, linewidth=0.8, linestyle="--")
    axes.set_yticks(range(len(rows)), rows)
    axes.invert_yaxis()
    axes.set_xlabel("top-1 in percent")
    return _saved(figure, path)


def losses(path: Path, trials: list[Trial]) -> Path:
    """The training loss of the plain network, the control and TDAF over the steps, each the mean of its seeds; dashed
    with the longer schedule."""
    figure, axes = pyplot.subplots(figsize=(7, 3.5))
    for name, (colour, line) in CURVES.items():
        sums: dict[int, list[float]] = defaultdict(list)
        for trial in trials:
            if trial.row.name == name:
                for step, loss in _losses(trial.folder / "metrics.jsonl"):
                    sums[step].append(loss)
        if sums:
            steps = sorted(sums)
            axes.plot(steps, [sum(sums[s]) / len(sums[s]) for s in steps], color=colour, linestyle=line, label=name)
    axes.set_xlabel("step")
    axes.set_ylabel("training loss, nats")
    axes.legend(frameon=False)
    return _saved(figure, path)


def _losses(path: Path) -> list[tuple[int, float]]:
    if not path.exists():
        return []
    events = [json.loads(line) for line in path.read_text().splitlines() if line.startswith("{") and line.endswith("}")]
    return [(event["step"], event["loss"]) for event in events if event.get("split") == "train" and "loss" in event]


def _saved(figure: pyplot.Figure, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    for spine in ("top", "right"):
        figure.axes[0].spines[spine].set_visible(False)
    figure.savefig(path, bbox_inches="tight", metadata={"Date": None})
    pyplot.close(figure)
    return path
