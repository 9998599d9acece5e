"""recipe=demo is a real training: far above chance already after a part of it. CI runs the whole of ImageNet's, the
README's command, after the tests."""

import json
from pathlib import Path

import pytest

from train import main

FIELDS = (
    "task", "protocol", "metric", "samples", "skipped", "params", "gflops", "images_per_second", "seconds", "config",
    "versions", "git",
)  # fmt: skip

SMALL_BATCHES = "trainer.batch=16 optim.base_batch=16"  # more steps for fewer samples
# task: (shorter than the recipe by, metric, protocol, validation samples, floor)
DEMOS = {
    "cifar10": ("demo.train=1000 demo.val=300 trainer.epochs=3 " + SMALL_BATCHES, "top1", "1crop", 300, 20),
    "coco_fcos": ("demo.train=500 demo.val=60 trainer.epochs=4", "AP", "coco", 60, 0.05),
    "coco_pose": ("demo.train=300 demo.val=30 trainer.epochs=5", "AP", "gt+flip", None, 0.08),
    "kinetics": ("demo.val=60 trainer.epochs=8", "top1", "clip", 180, 30),
}


@pytest.mark.parametrize("task", DEMOS)
def test_demo_learns(task: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shorter, metric, protocol, samples, floor = DEMOS[task]
    arguments = [f"task={task}", "recipe=demo", *shorter.split(), f"run_dir={tmp_path / 'run'}"]
    more = ["trainer.pictures=1", "trainer.evaluate_every=0", "gpus=0", f"demo.root={tmp_path / 'demo'}"]
    monkeypatch.setattr("sys.argv", ["train.py", *arguments, *more])
    assert main() == 0
    summary = json.loads((tmp_path / "run/summary.json").read_text())
    assert set(FIELDS) <= set(summary)
    assert summary["task"] == task and summary["protocol"] == protocol
    assert summary["metric"]["name"] == metric and summary["metric"]["best"] >= summary["metric"]["last"] > floor
    assert summary["samples"] == (samples or summary["samples"]) > 0 and summary["skipped"] == 0
    assert list((tmp_path / "run/tensorboard").iterdir())
