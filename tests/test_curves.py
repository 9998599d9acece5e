"""Training curves: what is read of several runs, what they are called, and the picture."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from commands import call
from PIL import Image

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "scripts"))

from figures import plot, runs  # noqa: E402

from tdaf.cli.arguments import main  # noqa: E402
from tdaf.cli.compose import compose, to_yaml  # noqa: E402
from scripts.curves import curves  # noqa: E402
from tdaf.errors import UserError  # noqa: E402


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
    (found,) = runs.read([run(tmp_path / "a")])
    assert found.curve("train/loss", "step") == [(5, 1.95), (10, 1.9), (15, 1.85), (20, 1.8)]
    assert found.curve("val/top1", "epoch") == [(1.0, 10.0), (2.0, 20.0)]
    assert found.curve("val/top5", "step") == []
    assert runs.numbers([found], None) == ["train/loss", "val/top1"]
    assert runs.numbers([found], "val/loss") == ["val/loss"]


def test_the_metric_is_what_the_summary_says(tmp_path: Path) -> None:
    folder = run(tmp_path / "a", events=[event(5), {"step": 5, "epoch": 1, "split": "val", "loss": 1.0, "AP": 0.5}])
    assert runs.numbers(runs.read([folder]), None) == ["train/loss", "val/loss"]
    (folder / "summary.json").write_text(json.dumps({"metric": {"name": "AP"}}))
    assert runs.numbers(runs.read([folder]), None) == ["train/loss", "val/AP"]


def test_lines_of_a_run_that_was_cut_and_went_on(tmp_path: Path) -> None:
    first = [event(10), event(10, "val"), event(15)]
    again = [event(10, loss=7.0), event(10, "val"), event(15, loss=6.0)]
    folder = run(tmp_path / "a", events=[event(5), *first, *again])
    with open(folder / "metrics.jsonl", "a") as file:
        file.write('{"step": 20, "epoch": 2.0, "split": "tra')
    (found,) = runs.read([folder])
    assert found.curve("train/loss", "step") == [(5, 1.95), (10, 7.0), (15, 6.0)]
    assert found.curve("val/top1", "step") == [(10, 10.0)]


def test_labels_say_what_differs_and_no_more(tmp_path: Path) -> None:
    def labels(*settings: list[str]) -> list[str]:
        base = tmp_path / str(len(list(tmp_path.iterdir())))
        return runs.labels(runs.read([run(base / f"run{k}", *own) for k, own in enumerate(settings)]))

    assert labels(["flows=3"]) == [""]
    assert labels(["flows=1"], ["flows=3"]) == ["flows 1", "flows 3"]
    seeds = labels(["flows=1", "seed=0"], ["flows=1", "seed=1"], ["flows=2", "seed=0"], ["flows=2", "demo.root=else"])
    assert seeds == ["flows 1", "flows 1", "flows 2", "flows 2"]
    assert labels(["tdaf=multiscale"], ["tdaf=tdaf"]) == ["multiscale", "tdaf"]
    four = labels(["anar=2", "flows=2"], ["anar=2", "flows=3"], ["anar=3", "flows=2"], ["anar=3", "flows=3"])
    assert four == ["anar 2, flows 2", "anar 2, flows 3", "anar 3, flows 2", "anar 3, flows 3"]
    common = labels(["flows=1"], ["flows=3"], ["flows=3", "eta=0"], ["flows=3", "eta=1"], ["flows=3", "anar=5"])
    assert common == ["flows 1", "anar 3, flows 3, eta 0.5", "eta 0.0", "eta 1.0", "anar 5"]


def test_smoothing_is_a_weighted_mean_of_what_came_before() -> None:
    assert plot.smoothed([4.0, 1.0, 7.0], 0.0) == [4, 1, 7]
    assert plot.smoothed([4.0, 1.0, 7.0], 0.5) == pytest.approx([4, 2, (4 / 4 + 1 / 2 + 7) / 1.75])
    assert plot.smoothed([3.0] * 5, 0.9) == pytest.approx([3] * 5)


def test_the_plot_has_every_curve_and_its_units(tmp_path: Path) -> None:
    found = runs.read([run(tmp_path / "a", "flows=1"), run(tmp_path / "b", "flows=3", "seed=1"), run(tmp_path / "c")])
    labels = runs.labels(found)
    figure = plot.drawn(list(zip(labels, found, strict=True)), ["train/loss", "val/top1"], "epoch", 0.5, "a title")
    left, right = figure.axes
    assert (left.get_xlabel(), left.get_ylabel()) == ("epoch", "training loss")
    assert (right.get_xlabel(), right.get_ylabel()) == ("epoch", "validation top-1 (%)")
    curves = [line for line in right.lines if len(line.get_xdata())]
    assert len(curves) == 3 and list(curves[0].get_xdata()) == [1, 2] and list(curves[0].get_ydata()) == [10, 20]
    assert curves[1].get_color() == curves[2].get_color() != curves[0].get_color()  # two seeds of flows=3
    assert sum(len(line.get_xdata()) > 0 for line in left.lines) == 6  # the numbers, pale, and their mean
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["flows 1", "flows 3 (2 runs)"]


def test_many_labels_stand_beside_the_plots() -> None:
    labels = [f"a long name of a run, number {place}" for place in range(30)]
    found = [runs.Run(Path(), {}, [event(5), event(10)]) for _ in labels]
    figure = plot.drawn(list(zip(labels, found, strict=True)), ["train/loss"], "step", 0.0, "")
    figure.canvas.draw()
    (legend,), (axes,) = figure.legends, figure.axes
    box, plotted = legend.get_window_extent(), axes.get_window_extent()
    assert box.x0 > plotted.x1 and box.x1 <= figure.bbox.x1 and box.y0 >= 0
    looks = {(line.get_color(), line.get_linestyle()) for line in axes.lines if len(line.get_xdata())}
    assert len(looks) >= 28


def test_the_command_writes_a_picture(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    sweep, odd = tmp_path / "sweep", tmp_path / "c,d=1"
    for flows in (1, 2):
        run(sweep / str(flows), f"flows={flows}")
    run(odd, "flows=3", events=[event(5)])
    (sweep / "notes").mkdir()
    for out in ("a.png", "deep/b.svg"):
        arguments = [str(odd), f"runs={sweep}", f"out={tmp_path / out}", "smooth=0.5", "x=step"]
        assert call(monkeypatch, arguments, lambda: main(curves, "")) == 0
    said = capsys.readouterr()
    assert "train/loss, val/top1 of 3 runs" in said.out and said.err == f"{odd} has no val/top1 yet\n" * 2
    pixels = np.asarray(Image.open(tmp_path / "a.png").convert("RGB")).reshape(-1, 3)
    for colour in plot.COLOURS[:3]:
        assert (np.abs(pixels - np.array([int(colour[k : k + 2], 16) for k in (1, 3, 5)])).max(1) < 3).any()
    text = (tmp_path / "deep" / "b.svg").read_text()
    assert all(word in text for word in ("flows 1", "flows 2", "flows 3", "training loss", ">step<"))
    again = f"runs={sweep / '1'},{sweep / '2'}"
    assert curves([again, f"out={tmp_path / 'c.png'}", "what=val/loss"]) == 0


def test_mistakes_are_a_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one, other = run(tmp_path / "one"), run(tmp_path / "other", task="cifar10")
    bare = run(tmp_path / "bare", events=[])
    (tmp_path / "empty").mkdir()
    for arguments, said in (
        ([], "give run folders"),
        ([str(tmp_path / "no")], "no: no such folder"),
        ([str(tmp_path / "empty")], "neither a run folder nor one with runs below it"),
        ([str(one), str(other)], "runs of different tasks: .*one is of imagenet, .*other is of cifar10"),
        ([str(bare)], "not one number"),
        ([str(one), "what=val/top2"], "what=val/top2: no run has this number; did you mean val/top1"),
        ([str(one), "out=a.jpg"], "ends in .png, .svg, .pdf"),
        ([str(one), "x=hours"], "x=hours: give epoch or step"),
        ([str(one), "smooth=1"], "smooth=1: give a number from 0 to below 1"),
        ([str(one), "smoth=1"], "did you mean smooth"),
        ([str(one), f"out={one / 'config.yaml' / 'a.png'}"], "cannot be written"),
    ):
        with pytest.raises(UserError, match=said):
            curves(arguments)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"needs matplotlib: pip install -e '\.\[plots\]'"):
        curves([str(one)])
