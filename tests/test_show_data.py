"""show_data: training samples with what is to be learnt of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from commands import script
from PIL import Image
from tiny_run import DrawingTask, trainer

from scripts.show_data import show
from tasks.classification.task import Classification
from tasks.detection.fcos import VARIANTS
from tasks.detection.task import Fcos
from tdaf.engine.visualize import targets
from tdaf.errors import UserError
from tdaf.media.drawing import colour


class Names:
    classes = ["a", "b"]


def test_locations_that_answer_are_drawn_in_their_boxes() -> None:
    task = Fcos(Names, None, None, [0.5] * 3, [0.5] * 3)
    batch = {
        "input": torch.zeros(2, 3, 256, 256, dtype=torch.uint8),
        "size": torch.tensor([[256, 256], [200, 256]]),
        "boxes": [torch.tensor([[16.0, 16.0, 80.0, 80.0]]), torch.zeros(0, 4)],
        "labels": [torch.tensor([1]), torch.zeros(0, dtype=torch.int64)],
    }
    drawn, empty = task.draw_targets(batch)
    assert VARIANTS["original"] == task.variant and empty.shape == (3, 200, 256) and not empty.any()
    assert tuple(drawn[:, 44, 44].tolist()) == colour(1)  # stride 8, from 4 on: (44, 44) is a location
    assert not drawn[:, 40, 40].any() and not drawn[:, 100:, 100:].any()


def test_the_sheet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    monkeypatch.chdir(tmp_path)
    words = "recipe=check task.train_transform.size=40 task.mixup=0.5 samples=3 draws=2 out=deep/sheet.png"
    assert script(show, ["task=imagenet", *words.split()]) == 0
    assert "3 of 20 training samples, 2 draws each" in capsys.readouterr().out
    with Image.open("deep/sheet.png") as sheet:
        assert sheet.size[1] == pytest.approx(sheet.size[0] * 3 / 2, abs=4)
    monkeypatch.delattr(Classification, "draw_targets")
    with pytest.raises(UserError, match="has no method draw_targets"):
        script(show, ["task=imagenet", "recipe=check"])


def test_a_training_shows_its_targets_and_is_the_same(tmp_path: Path) -> None:
    class Showing(DrawingTask):
        def draw_targets(self, batch: dict[str, Any]) -> list[torch.Tensor]:
            shown.append(batch["input"])
            return [torch.zeros(3, 8, 8, dtype=torch.uint8)] * len(batch["input"])

    shown: list[torch.Tensor] = []
    made = [trainer(tmp_path / kind.__name__, task=kind(), pictures=2, max_steps=4) for kind in (Showing, DrawingTask)]
    pictures: list[str] = []
    made[0].folder.picture = lambda name, image, step: pictures.append(name)
    for each in made:
        each.fit()
    assert [name for name in pictures if name.startswith("target")] == ["target/0", "target/1"] and len(shown[0]) == 2
    one, other = (each.network.state_dict() for each in made)
    assert all(torch.equal(value, other[name]) for name, value in one.items())
    task = Showing()
    before = torch.get_rng_state()
    targets(task, task.dataset("train"), [0, 1], 3)
    targets(task, task.dataset("train"), [0, 1], 3)
    assert torch.equal(shown[-1], shown[-2]) and torch.equal(before, torch.get_rng_state())
