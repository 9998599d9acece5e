"""Training curves of several runs in one picture, as beside the paper's Table 4:

    python scripts/curves.py RUN [RUN ...] [out=curves.png] [what=train/loss,val/top1] [x=epoch] [smooth=0]
                             [title=TEXT]
    python scripts/curves.py runs=FOLDER [...]

RUN is a run folder or one with run folders below it; runs=A,B,... is another way to say it. what: numbers of
metrics.jsonl with their split before them, a plot each; without it the sum of the training losses and the task's own
metric. x: epoch or step. smooth: 0 to below 1, an exponential mean of the training numbers (0.9 is strong) over the
pale numbers themselves. out: ends in .png, .svg or .pdf. The legend has the settings in which the runs differ; runs
that differ in the seed alone share a colour. A run that still goes on is drawn as far as it is. Needs matplotlib: pip
install -e '.[plots]'. Exit codes: 0; 2 a mistake in the arguments.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

from tdaf.cli.arguments import given, main
from tdaf.errors import UserError

OWN = ("runs", "out", "what", "x", "smooth", "title")
ENDINGS = (".png", ".svg", ".pdf")


def curves(arguments: list[str]) -> int:
    folders = [argument for argument in arguments if "=" not in argument or Path(argument).expanduser().is_dir()]
    own, _ = given([argument for argument in arguments if argument not in folders], OWN, others=False)
    folders += _listed(own["runs"])
    if not folders:
        raise UserError("give run folders, or runs=FOLDER with run folders below it")
    out, x, smooth = Path(own["out"] or "curves.png").expanduser(), own["x"] or "epoch", _smooth(own["smooth"])
    if out.suffix.lower() not in ENDINGS:
        raise UserError(f"out={out}: give a name that ends in {', '.join(ENDINGS)}")
    if x not in ("epoch", "step"):
        raise UserError(f"x={x}: give epoch or step")
    if importlib.util.find_spec("matplotlib") is None:
        raise UserError("curves needs matplotlib: pip install -e '.[plots]'")

    from figures import plot, runs

    found = runs.read([Path(folder).expanduser() for folder in folders])
    names = runs.numbers(found, own["what"])
    for name in names:
        for run in found:
            if not run.curve(name, x):
                print(f"{run.folder} has no {name} yet", file=sys.stderr)
    labels = runs.labels(found)
    figure = plot.drawn(list(zip(labels, found, strict=True)), names, x, smooth, own["title"] or "")
    plot.save(figure, out)
    print(f"{out}: {', '.join(names)} of {len(found)} runs")
    return 0


def _listed(given: str | None) -> list[str]:
    """A folder's own name may have commas in it."""
    if not given:
        return []
    return [given] if Path(given).expanduser().is_dir() else [part for part in given.split(",") if part]


def _smooth(given: str | None) -> float:
    try:
        value = float(given or 0)
    except ValueError:
        value = -1.0
    if not 0 <= value < 1:
        raise UserError(f"smooth={given}: give a number from 0 to below 1")
    return value


if __name__ == "__main__":
    sys.exit(main(curves, __doc__))
