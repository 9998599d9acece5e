"""A run folder that was written before the engine was redrawn: it goes on, is evaluated, and keeps what it knew.

tests/old/run was stopped at step 23 of 160, with averaged weights, in a backbone with attention.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from commands import ROOT, process

from tdaf.engine import checkpoint

OLD = ROOT / "tests" / "old" / "run"


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the old run, gone on with to its end, in a folder where its demo data are drawn."""
    root = tmp_path_factory.mktemp("old")
    shutil.copytree(OLD, root / "run")
    done = process([str(ROOT / "train.py"), "resume=run", "gpus=0"], root)
    assert done.returncode == 0, done.stderr
    assert "going on from step 23 of 160" in done.stdout
    return root / "run"


def test_an_old_run_goes_on_to_its_end(finished: Path) -> None:
    old, new = (checkpoint.load(folder / "checkpoints" / checkpoint.LAST) for folder in (OLD, finished))
    assert (old["step"], new["step"]) == (23, 160)
    assert new["ema"]["n_averaged"] == 160 and new["ema"].keys() == old["ema"].keys()
    assert not torch.equal(new["network"]["head.fc.weight"], old["network"]["head.fc.weight"])
    before, after = ((folder / "metrics.jsonl").read_text() for folder in (OLD, finished))
    assert after.startswith(before)
    assert json.loads((finished / "summary.json").read_text())["metric"]["best"] >= old["best"]["value"]


def test_an_old_run_is_evaluated(finished: Path) -> None:
    done = process([str(ROOT / "scripts" / "evaluate.py"), "checkpoint=run", "gpus=0"], finished.parent)
    assert done.returncode == 0, done.stderr
    best = checkpoint.load(finished / "checkpoints" / checkpoint.BEST)["metric"]
    assert json.loads((finished / "evaluation-1crop.json").read_text())["values"] == pytest.approx(best, rel=1e-5)


def test_the_best_checkpoint_of_an_old_run_is_evaluated_to_its_own_numbers(finished: Path) -> None:
    """The averaged network's, whose running statistics were the live network's then."""
    shutil.copytree(OLD, finished.parent / "untouched")
    done = process([str(ROOT / "scripts" / "evaluate.py"), "checkpoint=untouched", "gpus=0"], finished.parent)
    assert done.returncode == 0, done.stderr
    best = checkpoint.load(OLD / "checkpoints" / checkpoint.BEST)["metric"]
    numbers = json.loads((finished.parent / "untouched" / "evaluation-1crop.json").read_text())["values"]
    assert numbers == pytest.approx(best, rel=1e-5)
