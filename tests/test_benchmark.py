"""scripts/benchmark.py runs in a small setting, writes its table and data, and compares with its bars. No timing."""

import importlib
import itertools
import json
import sys
from pathlib import Path

import pytest
import torch
from commands import ROOT, process

sys.path.insert(0, str(ROOT / "scripts"))

import benchmark  # noqa: E402
from benchmark import Row, filled, markdown, write  # noqa: E402
from benchmarks import data, networks, timing  # noqa: E402
from benchmarks.timing import Settings, Times, interleaved, spread  # noqa: E402

CPU = torch.device("cpu")
SMALL = ("backbone=tiny", "size=32", "batch=2", "pairs=1", "images=64", "threads=1", "device=cpu")
REFERENCE = Settings("res50", 3, 3, 8, 224, CPU)
ABOUT = {"date": "2026-01-01", "commit": None, "machine": "a machine", "cores": 2, "threads": 2, "gpu": None,
         "load": [0.0, 0.0], "versions": {"torch": "2"}, "precision": "fp32", "batch": 8, "seconds": 60,
         "command": "python scripts/benchmark.py"}  # fmt: skip


def test_it_measures_and_writes(tmp_path: Path) -> None:
    out = tmp_path / "folder" / "found"
    done = process(["scripts/benchmark.py", "what=loader,trainer,model,fold,memory", *SMALL, f"out={out}"], ROOT)
    assert done.returncode == 0, done.stderr
    sections = json.loads(out.with_suffix(".json").read_text())
    assert set(sections) == {f"{subject} cpu" for subject in ("loader", "trainer", "model", "fold", "memory")}
    about = sections["model cpu"]
    assert (
        about["machine"]
        and about["threads"] == 1
        and about["versions"]["torch"].split("+")[0] == torch.__version__.split("+")[0]
    )
    assert "batch=2" in about["command"] and str(tmp_path) not in json.dumps(sections)
    rows = {(row["key"], row["device"]): row for section in sections.values() for row in section["rows"]}
    assert len(rows) == sum(len(benchmark.ROWS[section.split()[0]]) for section in sections)
    for key in (("forward", "cpu"), ("training", "cpu"), ("folded", "any"), ("trainer", "any"), ("loader", "any")):
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
    assert sum(line.startswith("| ") for line in page.splitlines()) == len(sections) + len(rows)
    assert all(line in page for line in done.stdout.splitlines())


@pytest.mark.parametrize(
    "argument, words",
    [("what=modle", "'modle' is none of startup"), ("backbon=res18", "backbone?"), ("images=65", "multiple of 32")],
)
def test_mistakes_are_one_line(argument: str, words: str) -> None:
    done = process(["scripts/benchmark.py", argument], ROOT)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1 and words in done.stderr


def test_latency_of_a_small_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """All rows that a CPU has; compiling, which takes minutes, is left out."""
    monkeypatch.setattr(networks, "compiled", lambda settings: {})
    monkeypatch.setattr(timing, "BLOCK", 0.01)
    rows = benchmark.measure("latency", Settings("tiny", 3, 3, 2, 32, CPU, pairs=1), "")[1]
    assert {row["key"] for row in rows if row["ratio"]} == {"forward", "forward_folded", "training"}
    counted = {row["key"]: row["value"] for row in rows if row["value"] and not row["ratio"]}
    assert counted.keys() == {"saved", "gflops", "gflops_flows", "gflops_gates", "gflops_rest"}
    # the parts add up, and gates are the smaller one of what is added
    assert sum(counted[f"gflops_{part}"] for part in ("flows", "gates", "rest")) == pytest.approx(counted["gflops"])
    assert counted["gflops_flows"] > 1 > counted["gflops_gates"] > 0


def test_subjects_are_whole() -> None:
    """Each has a table and functions that exist; latency has a table a network."""
    assert benchmark.MEASURED_BY.keys() == benchmark.ROWS.keys()
    for function in itertools.chain(*benchmark.MEASURED_BY.values()):
        module, _, name = function.partition(".")
        assert callable(getattr(importlib.import_module(f"benchmarks.{module}"), name))
    both = benchmark.sections("latency", REFERENCE, None)
    assert {name: one.backbone for name, one in both.items()} == {"latency_res50": "res50", "latency_res101": "res101"}
    assert benchmark.sections("latency", REFERENCE, "res50") == {"latency_res50": REFERENCE}
    assert benchmark.sections("model", REFERENCE, "res50") == {"model": REFERENCE}


def test_all_readers_of_clips_read_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A video with short groups."""
    monkeypatch.setattr(data, "LENGTH", 40)
    path = str(tmp_path / "12.mp4")
    data.write_video(path, 12)
    for start in (0, 5, 13, 24):
        assert torch.equal(data.our_clip(path, start), data.plain_clip(path, start))
    batch = data.centre_clips(lambda start: data.our_clip(path, start), [3])
    assert torch.equal(batch[0, 7].permute(2, 0, 1), data.plain_clip(path, 3)[7, :, 72:184, 114:226])


def test_rounds_are_interleaved_and_turned_round() -> None:
    called = []
    names = ("base", "other")
    times = interleaved({name: lambda name=name: called.append(name) for name in names}, 2, CPU, warm=1)
    groups = [name for name, _ in itertools.groupby(called)]
    # warm-up of both, the base's first timing, then base-other-base both ways
    assert groups == ["base", "other", "base", "other", "base", "other", "base"]
    assert all(len(times.seconds[name]) == 2 for name in ("base", "other", "base, again"))


def test_a_steady_drift_cancels() -> None:
    times = Times(["base", "other"])
    for start in (1.0, 4.0, 7.0):
        for step, name in enumerate(times.order):
            times.add(name, start + step)
    assert times.ratio("other", "base").median == times.ratio("base", "other").median == 1
    assert times.null().median == 6 / 4
    found = spread([5.0, 1.0, 3.0, 2.0, 4.0])
    assert (found.low, found.median, found.high, found.pairs) == (2, 3, 4, 5)


def test_rows() -> None:
    """A ratio of seconds, one of speeds, and a count; a missed bar, a missing peer, and the other device."""
    times = Times(["plain", "TDAF"])
    for name, seconds in (("plain", 0.25), ("TDAF", 0.5), (times.again, 0.25)):
        times.add(name, seconds)
    rows = [
        Row("forward", "forward", "TDAF", "plain", device="cpu", high=1.3, reference=True),
        Row("forward", "forward", "TDAF", "plain", device="gpu", high=1.38),
        Row("speed", "images/s", "plain", "TDAF", measured="forward", low=2, rate=True),
        Row("timm", "images/s", "TDAF", "timm", measured="forward", low=2, rate=True),
        Row("gflops", "GFLOPs", "TDAF", "plain", low=1.2, high=1.24),
    ]
    measured = {"forward": times.of(8, "images", "a note"), "gflops": {"TDAF": 5.0, "plain": 4.0}}
    lines = markdown([filled(row, measured, REFERENCE) for row in rows], ABOUT).splitlines()[-5:]
    ratio, null = "2.000 (2.000, 2.000)", "1.000 (1.000, 1.000)"
    assert lines[0] == f"| forward (CPU) | plain | <= 1.3 | {ratio} | {null} | 1 | **no** | a note |"
    assert lines[1] == "| forward (GPU) | plain | <= 1.38 | - | - | - | - | - |"
    assert lines[2] == f"| images/s | TDAF | >= 2 | {ratio} | {null} | 1 | yes | a note |"
    assert lines[3].startswith("| images/s | timm | >= 2 | - | - | - | - | not installed")
    assert lines[4] == "| GFLOPs | plain | 1.2 to 1.24 | 1.250 | - | - | **no** | TDAF 5; plain 4 |"
    other = filled(rows[0], measured, Settings("res18", 3, 3, 8, 224, CPU))
    assert (other["bar"], other["met"], other["value"]) == ("-", None, 2)


def test_a_page_keeps_its_own_words_and_the_other_device(tmp_path: Path) -> None:
    out = tmp_path / "page"
    before, after = "# Title\n\nBefore.\n\n<!-- measured: model cpu -->\n", "\n<!-- end: model cpu -->\n\nAfter.\n"
    out.with_suffix(".md").write_text(f"{before}old{after}")
    write(out, "model", [], {**ABOUT, "gpu": "a GPU"}, "from the GPU")
    write(out, "model", [], ABOUT, "new")
    page = out.with_suffix(".md").read_text()
    assert page.startswith(f"{before}### model cpu\n\nnew{after}")
    assert "from the GPU" in page and "old" not in page
    assert set(json.loads(out.with_suffix(".json").read_text())) == {"model cpu", "model gpu"}
