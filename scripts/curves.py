"""Training curves of several runs in one picture, as beside the paper's Table 4:

    python scripts/curves.py RUN [RUN ...] [out=curves.png] [what=train/loss,val/top1] [x=epoch] [smooth=0]
                             [title=TEXT]

RUN is a run folder or one with run folders below it; runs=A,B,... is another way to say it. what: numbers of
metrics.jsonl with their split before them, a plot each; without it the sum of the training losses and the task's own
metric. x: epoch or step. smooth: from 0 to 1, an exponential mean of the training numbers (0.9 is strong) over the
pale numbers themselves. out: ends in .png, .svg or .pdf. The legend has the settings in which the runs differ; runs
that differ in the seed alone share a colour. A run that still goes on is drawn as far as it is. Needs matplotlib: pip
install -e '.[plots]'. Exit codes: 0; 2 a mistake in the arguments.
"""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import tdaf.cli.ending  # noqa: F401  first: from here on Ctrl-C is a line
from tdaf.cli.script import Share, hint, main
from tdaf.errors import UserError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ENDINGS = (".png", ".svg", ".pdf")
SPLITS = {"train": "training", "val": "validation"}
# told apart by colour-blind eyes too (Okabe and Ito 2008)
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
DASHES = ("-", "--", ":", "-.")
FEW = 12  # points up to which each is marked
UNITS = {
    "top1": "top-1 (%)", "top5": "top-5 (%)", "clip_top1": "top-1 of clips (%)", "clip_top5": "top-5 of clips (%)",
    "lr": "learning rate", "images_per_second": "speed (samples/s)", "data_seconds": "wait for data (s a step)",
}  # fmt: skip
STYLE = {
    "svg.hashsalt": "tdaf", "svg.fonttype": "none",  # the same file each time, with texts in it
    "font.size": 10, "axes.spines.top": False, "axes.spines.right": False,
}  # fmt: skip


@dataclass(frozen=True)
class Run:
    """A run, finished or not. events: the lines of metrics.jsonl."""

    folder: Path
    config: dict[str, Any]
    events: list[dict[str, Any]]

    def curve(self, name: str, x: str) -> list[tuple[float, float]]:
        """The number `name` ("val/top1") over "epoch" or "step"."""
        split, _, key = name.partition("/")
        return [(event[x], event[key]) for event in self.events if event["split"] == split and _is_number(event, key)]

    def names(self) -> list[str]:
        """What there are curves of, those of training first."""
        events = sorted(self.events, key=lambda event: event["split"])
        keys = [(event["split"], key) for event in events for key in event if _is_number(event, key)]
        return [f"{split}/{key}" for split, key in dict.fromkeys(keys) if key not in ("step", "epoch")]

    def metric(self) -> str | None:
        """The task's own: the first number of an evaluation; summary.json says it too, at the end of a run."""
        try:
            return f"val/{json.loads((self.folder / 'summary.json').read_text())['metric']['name']}"
        except (OSError, ValueError, KeyError, TypeError):
            return next((name for name in self.names() if name.startswith("val/")), None)


def curves(
    *words: str,
    runs: list[Path] | None = None,
    out: Path = Path("curves.png"),
    what: list[str] | None = None,
    x: Literal["epoch", "step"] = "epoch",
    smooth: Share = 0.0,
    title: str = "",
) -> int:
    folders = [*(Path(word).expanduser() for word in words), *(runs or [])]
    if not folders:
        raise UserError("give run folders, or folders with runs below them; --help says more")
    if out.suffix.lower() not in ENDINGS:
        raise UserError(f"out={out}: give a name that ends in {', '.join(ENDINGS)}")
    if importlib.util.find_spec("matplotlib") is None:
        raise UserError("curves needs matplotlib: pip install -e '.[plots]'")
    loaded = read(folders)
    names = numbers(loaded, what or [])
    for name, run in product(names, loaded):
        if not run.curve(name, x):
            print(f"{run.folder} has no {name} yet", file=sys.stderr)
    save(figure(list(zip(labels(loaded), loaded, strict=True)), names, x, smooth, title), out)
    print(f"{out}: {', '.join(names)} of {len(loaded)} runs")
    return 0


def read(folders: Sequence[Path]) -> list[Run]:
    """The runs in these folders or below them, each once. Raises UserError where there are none, and for runs of
    different tasks, whose numbers mean different things."""
    from tdaf.cli.compose import from_folder

    places: dict[Path, None] = {}
    for folder in folders:
        logs = [folder / "metrics.jsonl"] if (folder / "metrics.jsonl").is_file() else folder.rglob("metrics.jsonl")
        below = sorted(path.parent for path in logs if (path.parent / "config.yaml").is_file())
        if not below:
            raise UserError(f"{folder}: neither a run folder nor one with runs below it (metrics.jsonl, config.yaml)")
        places |= dict.fromkeys(below)
    runs = [Run(place, from_folder(place), events(place / "metrics.jsonl")) for place in places]
    tasks = {run.config.get("name"): run.folder for run in runs}
    if len(tasks) > 1:
        which = ", ".join(f"{folder} is of {task}" for task, folder in tasks.items())
        raise UserError(f"these are runs of different tasks: {which}; give those of one task")
    return runs


def numbers(runs: Sequence[Run], what: Sequence[str] = ()) -> list[str]:
    """Which numbers are drawn. Raises UserError for one that no run has."""
    known = list(dict.fromkeys(name for run in runs for name in run.names()))
    if not known:
        raise UserError(f"{runs[0].folder}: not one number in metrics.jsonl yet")
    for name in what:
        if name not in known:
            raise UserError(f"what={name}: no run has this number; {hint(name, known)}")
    usual = ["train/loss", next(filter(None, (run.metric() for run in runs)), None)]
    return list(what) or [name for name in usual if name in known] or known[:1]


def labels(runs: Sequence[Run]) -> list[str]:
    """The settings in which the runs differ; the same for runs that differ in the seed or the place of their data
    alone, and the folder's name for other runs that no short list of settings tells apart."""
    from results.ablation import ABSENT, differing
    from results.runs import key

    alike: dict[str, list[Run]] = {}
    for run in runs:
        alike.setdefault(key(run.config), []).append(run)
    settings, _ = differing([same[0].config for same in alike.values()])
    texts = {}
    for one, *values in zip(alike, *settings.values(), strict=True):
        pairs = zip(settings, values, strict=True)
        texts[one] = ", ".join(_label(name, value) for name, value in pairs if value != ABSENT)
    for one, text in list(texts.items()):
        if list(texts.values()).count(text) > 1:
            texts[one] = ", ".join(filter(None, [text, alike[one][0].folder.name]))
    return [texts[key(run.config)] for run in runs]


def smoothed(values: Sequence[float], factor: float) -> list[float]:
    """The mean of all values so far, of which one that lies k values back has the weight factor ** k."""
    total = weight = 0.0
    means = []
    for value in values:
        total, weight = factor * total + value, factor * weight + 1
        means.append(total / weight)
    return means


def figure(runs: Sequence[tuple[str, Run]], names: Sequence[str], x: str, smooth: float, title: str) -> Figure:
    """A plot a number, side by side, a colour and dash a label. runs: (label, run). smooth: see `smoothed`."""
    import matplotlib
    from matplotlib.figure import Figure

    labels = list(dict.fromkeys(label for label, _ in runs))
    looks = dict(zip(labels, ((colour, dash) for dash, colour in product(DASHES, COLOURS)), strict=False))
    width = 0.6 + 4.6 * len(names) + (labels != [""]) * (10 + max(map(len, labels))) / 16  # inches
    size = width, max(3.6, 0.4 + 0.18 * len(labels))
    with matplotlib.rc_context(STYLE):
        page = Figure(figsize=size, layout="constrained")
        plots = page.subplots(1, len(names), squeeze=False, sharex=True)[0]
        for axes, name in zip(plots, names, strict=True):
            for label, run in runs:
                colour, dash = looks.get(label, ("#888888", "-"))
                curve = run.curve(name, x)
                if not curve:
                    continue
                xs, ys = zip(*curve, strict=True)
                if smooth and name.startswith("train/"):
                    axes.plot(xs, ys, color=colour, linewidth=0.8, alpha=0.3)
                    ys = smoothed(ys, smooth)
                marker = "o" if len(xs) <= FEW else ""
                axes.plot(xs, ys, dash, color=colour, linewidth=1.5, marker=marker, markersize=3)
            split, _, key = name.partition("/")
            axes.set(xlabel=x, ylabel=f"{SPLITS[split]} {UNITS.get(key, key.replace('_', ' '))}", axisbelow=True)
            axes.grid(axis="y", color="#dddddd", linewidth=0.6)
        plots[0].set_xlim(left=0)
        for label, (colour, dash) in looks.items() if labels != [""] else ():
            count = sum(own == label for own, _ in runs)
            text = (label or "the others") + (f" ({count} runs)" if count > 1 else "")
            plots[0].plot([], [], dash, color=colour, linewidth=1.5, label=text)
        if labels != [""]:
            page.legend(loc="outside right upper", frameon=False, fontsize=8)
        page.suptitle(title or None)
    return page


def save(page: Figure, out: Path) -> None:
    """The same figure is the same SVG, byte for byte. Raises UserError where the disk refuses."""
    import matplotlib

    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with matplotlib.rc_context(STYLE):
            page.savefig(out, dpi=160, metadata={"Date": None} if out.suffix.lower() == ".svg" else None)
    except OSError as error:
        raise UserError(f"out={out} cannot be written: {error.strerror or error}") from error


def events(path: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl, without one that a kill cut off."""
    events = []
    for line in path.read_text(errors="replace").splitlines():
        try:
            event = json.loads(line)
            events += [event] if event["split"] in SPLITS and event["step"] >= 0 and event["epoch"] >= 0 else []
        except (ValueError, KeyError, TypeError):
            continue
    return events


def _is_number(event: dict[str, Any], key: str) -> bool:
    return isinstance(event.get(key), (int, float)) and not isinstance(event[key], bool)


def _label(name: str, value: Any) -> str:
    """A name says enough for itself, a number needs that of its setting; of a class its own name is enough."""
    if name in ("backbone", "recipe", "tdaf"):
        return str(value)
    return f"{name} {value.rpartition('.')[2] if isinstance(value, str) and value.count('.') > 1 else value}"


if __name__ == "__main__":
    sys.exit(main(curves, __doc__))
