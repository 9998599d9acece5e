"""Training curves: what is read of several runs, what they are called, and the picture."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from commands import ROOT, call
from PIL import Image

from tdaf.cli.compose import compose, to_yaml
from tdaf.cli.script import main

sys.path.insert(0, str(ROOT / "scripts"))

import curves  # noqa: E402


def event(step: int, split: str = "train", **values: Any) -> dict[str, Any]:
    usual = {"loss": 2.0 - step / 100} if split == "train" else {"top1": float(step), "loss": 1.0}
    return {"step": step, "epoch": step / 10, "split": split, **usual, **values}


def run(folder: Path, *settings: str, task: str = "imagenet", events: list[dict[str, Any]] | None = None) -> Path:
    """A run folder as train.py leaves it."""
    folder.mkdir(parents=True)
    config = compose([f"task={task}", "recipe=demo", *settings, f"run_dir={folder}"])
    (folder / "config.yaml").write_text(to_yaml(config))
    if events is None:
        events = [event(5), event(10), event(10, "val"), event(15), event(20), event(20, "val")]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in events))
    return folder


def test_numbers_over_steps_and_epochs(tmp_path: Path) -> None:
    folder = run(tmp_path / "a")
    with open(folder / "metrics.jsonl", "a") as file:
        file.write('{"step": 20, "epoch": 2.0, "split": "tra')  # a kill
    (found,) = curves.read([folder])
    assert found.curve("train/loss", "step") == [(5, 1.95), (10, 1.9), (15, 1.85), (20, 1.8)]
    assert found.curve("val/top1", "epoch") == [(1.0, 10.0), (2.0, 20.0)]
    assert found.curve("val/top5", "step") == []
    assert curves.numbers([found]) == ["train/loss", "val/top1"]
    assert curves.numbers([found], ["val/loss"]) == ["val/loss"]
    (folder / "summary.json").write_text(json.dumps({"metric": {"name": "loss"}}))  # the task's own, once it is known
    assert curves.numbers([found]) == ["train/loss", "val/loss"]


def test_the_plot_has_every_curve_and_its_units(tmp_path: Path) -> None:
    found = curves.read([run(tmp_path / "a", "flows=1"), run(tmp_path / "b", "flows=3", "seed=1"), run(tmp_path / "c")])
    labelled = list(zip(curves.labels(found), found, strict=True))
    left, right = curves.figure(labelled, ["train/loss", "val/top1"], "epoch", 0.5, "a title").axes
    assert (left.get_xlabel(), left.get_ylabel()) == ("epoch", "training loss")
    assert (right.get_xlabel(), right.get_ylabel()) == ("epoch", "validation top-1 (%)")
    lines = [line for line in right.lines if len(line.get_xdata())]
    assert len(lines) == 3 and list(lines[0].get_xdata()) == [1, 2] and list(lines[0].get_ydata()) == [10, 20]
    assert lines[1].get_color() == lines[2].get_color() != lines[0].get_color()  # two seeds of flows=3
    assert sum(len(line.get_xdata()) > 0 for line in left.lines) == 6  # the numbers, pale, and their mean
    (legend,) = left.figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["flows 1", "flows 3 (2 runs)"]


@pytest.mark.parametrize("many", [5, 30])
def test_a_legend_has_room(many: int) -> None:
    """Beside the plots."""
    labelled = [
        (f"a long name of a run, number {n}", curves.Run(Path(), {}, [event(5), event(10)])) for n in range(many)
    ]
    figure = curves.figure(labelled, ["train/loss"], "step", 0.0, "")
    figure.draw_without_rendering()
    (legend,), (axes,) = figure.legends, figure.axes
    box, plotted = legend.get_window_extent(), axes.get_window_extent()
    assert box.x0 > plotted.x1
    assert box.x0 >= 0 and box.x1 <= figure.bbox.x1 and box.y0 >= 0
    looks = {(line.get_color(), line.get_linestyle()) for line in axes.lines if len(line.get_xdata())}
    assert len(looks) >= min(many, 28)


def command(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    return call(monkeypatch, [*map(str, arguments)], lambda: main(curves.curves, curves.__doc__))


def test_the_command_writes_a_picture(tmp_path: Path, monkeypatch, capsys) -> None:
    sweep, odd = tmp_path / "sweep", tmp_path / "c,d=1"
    for flows in (1, 2):
        run(sweep / str(flows), f"flows={flows}")
    run(odd, "flows=3", events=[event(5)])
    (sweep / "notes").mkdir()
    for out in ("a.png", "deep/b.svg"):
        assert command(monkeypatch, odd, f"runs={sweep}", f"out={tmp_path / out}", "smooth=0.5", "x=step") == 0
    printed = capsys.readouterr()
    assert "train/loss, val/top1 of 3 runs" in printed.out and printed.err == f"{odd} has no val/top1 yet\n" * 2
    pixels = np.asarray(Image.open(tmp_path / "a.png").convert("RGB")).reshape(-1, 3)
    for colour in curves.COLOURS[:3]:
        assert (np.abs(pixels - np.array([int(colour[k : k + 2], 16) for k in (1, 3, 5)])).max(1) < 3).any()
    text = (tmp_path / "deep" / "b.svg").read_text()
    assert all(word in text for word in ("flows 1", "flows 2", "flows 3", "training loss", ">step<"))
    again = f"runs={sweep / '1'},{sweep / '2'}"
    assert command(monkeypatch, again, f"out={tmp_path / 'c.png'}", "--what", "val/loss") == 0


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("", "give run folders"),
        ("no", "neither a run folder nor one with runs below it"),
        ("one other", "different tasks"),
        ("bare", "not one number"),
        ("one what=val/top2", "did you mean val/top1"),
        ("one out=a.jpg", "ends in .png, .svg, .pdf"),
        ("one smooth=1.5", "smooth=1.5"),
        ("one matplotlib", "pip install -e '.[plots]'"),
    ],
)
def test_a_mistake_is_a_line(arguments: str, words: str, tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    run(Path("one"))
    run(Path("other"), task="cifar10")
    run(Path("bare"), events=[])
    if "matplotlib" in arguments:
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert command(monkeypatch, *arguments.split()) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and words in error and error.count("\n") == 1
