"""recipe=demo is a real training: far above chance (10) already after a part of its epochs. CI runs the whole of it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from train import main

FIELDS = (
    "task", "protocol", "metric", "samples", "skipped", "params", "gflops", "images_per_second", "seconds", "config",
    "versions", "git",
)  # fmt: skip


@pytest.mark.parametrize(("task", "epochs", "samples", "floor"), [("imagenet", 6, 400, 25), ("cifar10", 3, 800, 35)])
def test_demo_learns(
    task: str, epochs: int, samples: int, floor: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = [f"task={task}", "recipe=demo", f"trainer.epochs={epochs}", f"run_dir={tmp_path / 'run'}"]
    monkeypatch.setattr("sys.argv", ["train.py", *arguments, "trainer.pictures=1", f"demo.root={tmp_path / 'demo'}"])
    assert main() == 0
    summary = json.loads((tmp_path / "run/summary.json").read_text())
    assert set(FIELDS) <= set(summary)
    assert summary["task"] == task and summary["protocol"] == "1crop"
    assert summary["metric"]["name"] == "top1" and summary["metric"]["best"] >= summary["metric"]["last"] > floor
    assert summary["samples"] == samples and summary["skipped"] == 0
    assert list((tmp_path / "run/tensorboard").iterdir())
