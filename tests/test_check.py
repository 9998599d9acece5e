"""recipe=check: everything once, and one batch by heart; a task that cannot learn is told."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from commands import call

from tasks.classification.task import Classification
from tdaf.cli import rehearsal

WORDS = (
    "recipe=check backbone=tiny gpus=0 loader.workers=0 task.train_transform.size=32 task.val_transforms.1crop.size=32"
)


@pytest.mark.parametrize("task", ["task=imagenet", "task=coco_pose task.size=[64,64] task.deconvolutions=[32,32,32]"])
def test_everything_works(task: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.chdir(tmp_path)
    words = WORDS if "imagenet" in task else WORDS.partition(" task.train")[0]
    assert call(monkeypatch, [*task.split(), *words.split()]) == 0
    said = capsys.readouterr().out
    assert "one batch learnt by heart: loss " in said and "everything works" in said
    assert [path.name for path in tmp_path.iterdir()] == ["data"]  # drawn; no run folder


def test_what_cannot_be_learnt_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    def constant(self: Any, outputs: torch.Tensor, batch: Any) -> dict[str, torch.Tensor]:
        return {"cross_entropy": outputs.square().mean() * 0 + 2.0}

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(Classification, "losses", constant)
    monkeypatch.setattr(rehearsal, "SECONDS", 1)
    assert call(monkeypatch, ["task=imagenet", *WORDS.split()]) == 1
    assert "loss 2 to 2 in" in (said := capsys.readouterr().err) and "look at the labels" in said
