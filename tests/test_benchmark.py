"""scripts/benchmark.py runs in a small setting, writes its table and its data, and judges by its bars. No timing."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "scripts"))

import benchmark  # noqa: E402
from benchmarks import clips, latency, report, timing  # noqa: E402
from benchmarks.bars import BARS, Bar  # noqa: E402
from benchmarks.settings import Settings  # noqa: E402
from benchmarks.timing import Result, Times, interleaved, spread  # noqa: E402

CPU = torch.device("cpu")
SMALL = ("backbone=tiny", "size=32", "batch=2", "pairs=1", "images=64", "threads=1", "device=cpu")
ABOUT = {
    "date": "2026-01-01",
    "commit": None,
    "machine": "a machine",
    "cores": 2,
    "threads": 2,
    "gpu": None,
    "load": [0.0, 0.0],
    "versions": {"torch": "2"},
    "precision": "fp32",
    "batch": 8,
    "seconds": 60,
    "command": "python scripts/benchmark.py",
}


def run(*arguments: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "scripts/benchmark.py", *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=environment)


def test_it_measures_and_writes(tmp_path):
    out = tmp_path / "folder" / "found"
    done = run("what=loader,trainer,model,fold,memory", *SMALL, f"out={out}")
    assert done.returncode == 0, done.stderr
    data = json.loads(out.with_suffix(".json").read_text())
    assert set(data) == {f"{subject} cpu" for subject in ("loader", "trainer", "model", "fold", "memory")}
    about = data["model cpu"]
    assert about["machine"] and about["threads"] == 1 and about["versions"]["torch"] == torch.__version__
    assert "out=" not in about["command"] and str(tmp_path) not in json.dumps(data)
    rows = {(row["key"], row["device"]): row for section in data.values() for row in section["rows"]}
    assert len(rows) == sum(len(BARS[section.split()[0]]) for section in data)
    timed = ("forward", "cpu"), ("training", "cpu"), ("folded", "any"), ("trainer", "any"), ("loader", "any")
    for key in timed:
        row = rows[key]
        assert row["ratio"]["pairs"] == row["null"]["pairs"] == 1
        assert 0 < row["ratio"]["low"] <= row["value"] == row["ratio"]["median"] <= row["ratio"]["high"]
    # counted, so known: TDAF costs and keeps more; folding changes rounding alone
    assert rows["gflops", "any"]["value"] > 1 and rows["saved", "any"]["value"] > 1
    assert 0 < rows["folded_difference", "any"]["value"] < 1e-4
    # a bar for ResNet-50 is not one for another network; the trainer's bar holds for any
    assert rows["forward", "cpu"]["bar"] == "-" and rows["forward", "cpu"]["met"] is None
    assert rows["trainer", "any"]["met"] in (True, False)
    assert rows["forward", "gpu"]["value"] is None
    page = out.with_suffix(".md").read_text()
    assert sum(line.startswith("| ") for line in page.splitlines()) == len(data) + len(rows)
    assert all(line in page for line in done.stdout.splitlines())


@pytest.mark.parametrize(
    "argument, said",
    [
        ("what=modle", "'modle' is none of startup, loader"),
        ("backbon=res18", "did you mean backbone?"),
        ("trainer.batch=3", "this script has no setting trainer.batch"),
        ("batch=0", "batch=0: give a whole number, 1 or more"),
        ("pairs=two", "pairs=two: give a whole number"),
        ("images=65", "images=65: give a multiple of 32"),
        ("device=tpu", "device=tpu: give auto, cpu or cuda"),
    ],
)
def test_mistakes_are_one_line(argument, said):
    done = run(argument)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1 and said in done.stderr


def test_latency_of_a_small_network(monkeypatch):
    """All rows that a CPU has; compiling, which takes minutes, is left to the subject that does the same."""
    monkeypatch.setattr(latency, "compiling", lambda settings: {"compiled": Result(1.5)})
    monkeypatch.setattr(timing, "BLOCK", 0.01)
    settings = Settings("tiny", 3, 3, 2, 32, CPU, pairs=1)
    table = {row["key"]: row for row in report.rows("latency", latency.latency(settings), settings)}
    missing = {key for key, row in table.items() if row["value"] is None}
    assert missing == {"forward_graphs", "training_compiled", "peak"}
    assert table["forward_compiled"]["value"] == 1.5
    timed = {key for key, row in table.items() if row["ratio"]}
    assert timed == {"forward", "forward_folded", "training"}
    # counted, so known: the parts add up, and gates are the smaller one of what is added
    parts = [table[f"gflops_{part}"]["value"] for part in ("flows", "gates", "rest")]
    assert sum(parts) == pytest.approx(table["gflops"]["value"]) and parts[0] > 1 > parts[1] > 0
    assert table["saved"]["value"] > 1
    assert not any(row["note"].startswith("paper") for row in table.values())


def test_latency_has_a_table_a_network():
    settings = Settings("res18", 3, 3, 8, 224, CPU)
    names = {section: one.backbone for section, one in benchmark._tables("latency", settings, None).items()}
    assert names == {"latency_res50": "res50", "latency_res101": "res101"}
    assert benchmark._tables("latency", settings, "res18") == {"latency_res18": settings}
    assert benchmark._tables("model", settings, "res18") == {"model": settings}


def test_the_clip_loaders_read_the_same_frames(tmp_path, monkeypatch):
    """Of a video with short groups; in workers as in this process."""
    monkeypatch.setattr(clips, "LENGTH", 40)
    path = str(tmp_path / "12.mp4")
    clips.write(path, 12)
    for start in (0, 5, 13, 24):
        assert torch.equal(clips.ours(path, start), clips.plain(path, start))
    cut = clips.Cut(clips.ours, path, [3])[0]
    assert torch.equal(cut[7].permute(2, 0, 1), clips.plain(path, 3)[7, :, 72:184, 114:226])


def test_rounds_are_interleaved_and_turned_round():
    called = []
    names = ("base", "other")
    times = interleaved({name: lambda name=name: called.append(name) for name in names}, 2, CPU, warm=1)
    groups = [name for name, _ in itertools.groupby(called)]
    # warm-up of both, the base's first timing, then base-other-base both ways
    assert groups == ["base", "other", "base", "other", "base", "other", "base"]
    assert all(len(times.seconds[name]) == 2 for name in ("base", "other", "base, again"))


def test_a_steady_drift_cancels():
    times = Times(["base", "other"])
    for start in (1.0, 4.0, 7.0):
        for step, name in enumerate(times.order):
            times.add(name, start + step)
    assert times.ratio("other", "base").median == 1
    assert times.ratio("base", "other").median == 1
    assert times.null().median == 6 / 4


def test_spread():
    found = spread([5.0, 1.0, 3.0, 2.0, 4.0])
    assert (found.low, found.median, found.high, found.pairs) == (2, 3, 4, 5)
    assert spread([2.0]).median == 2


@pytest.mark.parametrize("value, low, high, met", [(1.3, None, 1.3, True), (1.31, None, 1.3, False),
                                                   (1.6, 1.7, None, False), (1.7, 1.7, None, True),
                                                   (1.2, 1.231, 1.241, False), (1.24, 1.231, 1.241, True)])  # fmt: skip
def test_bars(value, low, high, met):
    assert Bar("", "", "", low=low, high=high).met(value) is met


def test_table_says_what_is_missed_and_leaves_out_the_other_device():
    settings = Settings("res50", 3, 3, 8, 224, CPU)
    ratio = spread([1.4, 1.5, 1.6])
    table = report.rows("model", {"forward": Result(1.5, ratio, ratio)}, settings)
    table += report.rows("memory", {"saved": Result(1.25, note="counted")}, settings)
    lines = report.markdown(table, ABOUT, figures=False).splitlines()
    shown = "1.500 (1.450, 1.550)"
    assert f"| forward (CPU) | plain | <= 1.3 | {shown} | {shown} | 3 | **no** | - |" in lines
    assert "| forward (GPU) | plain | <= 1.38 | - | - | - | - | - |" in lines
    assert "| bytes saved for backward | plain | <= 1.3 | 1.250 | - | - | yes | counted |" in lines


def test_a_page_keeps_its_own_words_and_the_other_device(tmp_path):
    out = tmp_path / "page"
    before, after = "# Title\n\nBefore.\n\n<!-- measured: model cpu -->\n", "\n<!-- end: model cpu -->\n\nAfter.\n"
    out.with_suffix(".md").write_text(f"{before}old{after}")
    report.write(out, "model", [], {**ABOUT, "gpu": "a GPU"}, "from the GPU")
    report.write(out, "model", [], ABOUT, "new")
    page = out.with_suffix(".md").read_text()
    assert page.startswith(f"{before}### model cpu\n\nnew{after}")
    assert "from the GPU" in page and "old" not in page
    assert set(json.loads(out.with_suffix(".json").read_text())) == {"model cpu", "model gpu"}
