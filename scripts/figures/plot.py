"""Curves as a picture: a plot a number, a colour a setting."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from pathlib import Path

import matplotlib
from figures.runs import Run
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from tdaf.errors import UserError

# told apart by colour-blind eyes too (Okabe and Ito 2008)
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
DASHES = ("-", "--", ":", "-.")
SPLITS = {"train": "training", "val": "validation"}
LETTERS = 13  # of a legend in an inch
ASIDE = 6  # labels above which the legend stands at the right
FEW = 12  # points up to which each is marked
UNITS = {
    "top1": "top-1 (%)", "top5": "top-5 (%)", "clip_top1": "top-1 of clips (%)", "clip_top5": "top-5 of clips (%)",
    "lr": "learning rate", "images_per_second": "speed (samples/s)", "data_seconds": "wait for data (s a step)",
}  # fmt: skip
STYLE = {
    "svg.hashsalt": "tdaf", "svg.fonttype": "none",  # the same file each time, with texts in it
    "font.size": 10, "axes.spines.top": False, "axes.spines.right": False,
}  # fmt: skip


def drawn(runs: Sequence[tuple[str, Run]], names: Sequence[str], x: str, smooth: float, title: str) -> Figure:
    """runs: (label, run). names: of the numbers, a plot each, side by side. x: "epoch" or "step". smooth: of training
    numbers, see `smoothed`."""
    labels = list(dict.fromkeys(label for label, _ in runs))
    looks = dict(zip(labels, ((colour, dash) for dash, colour in product(DASHES, COLOURS))))
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=_size(len(names), labels), layout="constrained")
        FigureCanvasAgg(figure)
        plots = figure.subplots(1, len(names), squeeze=False, sharex=True)[0]
        for axes, name in zip(plots, names, strict=True):
            for label, run in runs:
                colour, dash = looks.get(label, ("#888888", "-"))
                _line(axes, run.curve(name, x), smooth if name.startswith("train/") else 0.0, colour, dash)
            axes.set_xlabel(x)
            axes.set_ylabel(_title(name))
            axes.grid(axis="y", color="#dddddd", linewidth=0.6)
            axes.set_axisbelow(True)
        plots[0].set_xlim(left=0)
        if labels != [""]:
            _legend(figure, plots[0], runs, looks)
        if title:
            figure.suptitle(title)
    return figure


def smoothed(values: Sequence[float], factor: float) -> list[float]:
    """The mean of all values so far, of which one that lies k values back has the weight factor ** k."""
    total = weight = 0.0
    means = []
    for value in values:
        total, weight = factor * total + value, factor * weight + 1
        means.append(total / weight)
    return means


def save(figure: Figure, out: Path) -> None:
    """Raises UserError where the disk refuses."""
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with matplotlib.rc_context(STYLE):
            metadata = {"Date": None} if out.suffix.lower() == ".svg" else None
            figure.savefig(out, dpi=160, metadata=metadata)
    except OSError as error:
        raise UserError(f"out={out} cannot be written: {error.strerror or error}") from error


def _line(axes: Axes, curve: list[tuple[float, float]], smooth: float, colour: str, dash: str) -> None:
    if not curve:
        return
    xs, ys = zip(*curve, strict=True)
    marker = "o" if len(xs) <= FEW else ""
    if smooth:
        axes.plot(xs, ys, color=colour, linewidth=0.8, alpha=0.3)
        ys = smoothed(ys, smooth)
    axes.plot(xs, ys, dash, color=colour, linewidth=1.5, marker=marker, markersize=3)


def _legend(figure: Figure, axes: Axes, runs: Sequence[tuple[str, Run]], looks: dict[str, tuple[str, str]]) -> None:
    """Below the plots or, long, beside them. Several runs of a label are several seeds."""
    for label, (colour, dash) in looks.items():
        count = sum(own == label for own, _ in runs)
        text = (label or "the others") + (f" ({count} runs)" if count > 1 else "")
        axes.plot([], [], dash, color=colour, linewidth=1.5, label=text)
    if len(looks) > ASIDE:
        figure.legend(loc="outside right upper", frameon=False, fontsize=8)
    else:
        longest = max(map(len, looks)) + 6
        columns = max(1, min(len(looks), int(figure.get_figwidth() * LETTERS / longest)))
        figure.legend(loc="outside lower center", ncols=columns, frameon=False)


def _size(count: int, labels: Sequence[str]) -> tuple[float, float]:
    """Of `count` plots and their legend, in inches."""
    width, height = 0.6 + 4.6 * count, 3.6
    if len(labels) <= ASIDE:
        return width, height
    return width + (10 + max(map(len, labels))) / (LETTERS + 3), max(height, 0.4 + 0.18 * len(labels))


def _title(name: str) -> str:
    split, _, key = name.partition("/")
    return f"{SPLITS[split]} {UNITS.get(key, key.replace('_', ' '))}"
