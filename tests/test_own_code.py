"""Users' own data sets, heads, losses and tasks, and TDAF in their own code, by what docs/extending.md shows."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pages
import pytest
import torch
from commands import call, pictures, script
from PIL import Image

from scripts import evaluate, predict
from tdaf.errors import UserError
from tdaf.model.flows import TDAF

SMALL = (
    "backbone=tiny flows=2 gpus=0 loader.workers=0 trainer.epochs=1 trainer.batch=4 trainer.max_steps=2 "
    "trainer.pictures=1 pretrained=null optim.lr=0.01"
).split()
IMAGES = (
    "task.train_transform.size=24 task.train_transform.short_side=[26,30] "
    "task.val_transforms.1crop.size=24 task.val_transforms.1crop.short_side=26 stem=small"
).split()


def summary(run: Path) -> dict:
    return json.loads((run / "summary.json").read_text())


def test_own_data_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    pages.module("mydata", "data set", tmp_path, monkeypatch)
    mine = pages.install(tmp_path)
    root = pictures(tmp_path / "data")
    for split in ("train", "val"):
        files = sorted((root / split).rglob("*.JPEG"))
        lines = [f"{file.relative_to(root)};{file.parent.name}\n" for file in files]
        (root / f"{split}.csv").write_text("".join(lines))
    run = tmp_path / "run"
    command = [mine, "task=mydata", *SMALL, *IMAGES, f"run_dir={run}", f"data.root={root}"]
    assert call(monkeypatch, [*command, "+data.delimiter=;"]) == 0
    assert summary(run)["samples"] == 8
    assert call(monkeypatch, [mine, "task=mydata", *SMALL, *IMAGES, f"data.root={tmp_path}"]) == 2
    assert "train.csv: No such file or directory" in capsys.readouterr().err


@pytest.mark.parametrize(("name", "loss"), [("head", "cross_entropy"), ("loss", "focal")])
def test_own_head_and_loss(name: str, loss: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pages.module(f"my{name}", name, tmp_path, monkeypatch)
    (command,) = pages.commands(f"{name} command", PATH=pictures(tmp_path / "data"))
    run = tmp_path / "run"
    assert call(monkeypatch, [*command[1:], *SMALL, *IMAGES, "trainer.log_every=1", f"run_dir={run}"]) == 0
    first = json.loads((run / "metrics.jsonl").read_text().splitlines()[0])
    assert first[loss] == first["loss"] > 0
    weights = torch.load(run / "checkpoints/best.pt", weights_only=True)["network"]
    assert ("head.power" in weights) == (name == "head")


def test_own_loss_is_the_focal_loss(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    space: dict = {}
    exec(pages.block("loss"), space)
    task = object.__new__(space["Focal"])
    task.gamma, logits = 2.0, torch.tensor([[0.0, 1.0], [3.0, 0.0]])
    p = logits.softmax(1)[torch.arange(2), torch.tensor([1, 1])]
    expected = float((-((1 - p) ** 2) * p.log()).mean())
    assert float(task.losses(logits, {"label": torch.tensor([1, 1])})["focal"]) == pytest.approx(expected)


def scenes(root: Path) -> Path:
    """A bright square on dark ground, of unequal image sizes; a rim of it is unlabelled."""
    rng = np.random.default_rng(0)
    for split, count in (("train", 8), ("val", 3)):
        (root / split / "images").mkdir(parents=True)
        (root / split / "masks").mkdir()
        for number in range(count):
            image = rng.integers(0, 60, (40 + number, 50, 3), dtype=np.uint8)
            mask = np.zeros(image.shape[:2], np.uint8)
            image[10:25, 10:30], mask[9:26, 9:31], mask[10:25, 10:30] = 220, 255, 1
            Image.fromarray(image).save(root / split / "images" / f"{number}.jpg")
            Image.fromarray(mask).save(root / split / "masks" / f"{number}.png")
    return root


def test_own_task_trains_evaluates_and_predicts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pages.module("myseg", "task", tmp_path, monkeypatch)
    mine = pages.install(tmp_path)
    root, run, out = scenes(tmp_path / "data"), tmp_path / "run", tmp_path / "out"
    settings = "task.size=32 stem=small trainer.epochs=6 trainer.max_steps=12 trainer.evaluate_every=0".split()
    settings += ["optim=adamw", "optim.base_batch=4", "optim.lr=0.003"]
    assert call(monkeypatch, [mine, "task=myseg", *SMALL, *settings, f"data.root={root}", f"run_dir={run}"]) == 0
    found = summary(run)
    assert found["protocol"] == "miou" and found["samples"] == 3
    assert found["metric"]["best"] > 60, "background everywhere would be 42"
    assert script(evaluate.evaluate, [f"checkpoint={run}", "trust=myseg"]) == 0
    look = [f"checkpoint={run}", f"input={root / 'val' / 'images'}", f"out={out}"]
    with pytest.raises(UserError, match="myseg.Folder, which is not part of tdaf.*trust=myseg"):
        script(predict.predict, look)
    assert script(predict.predict, [*look, "trust=myseg"]) == 0
    rows = json.loads((out / "predictions.json").read_text())["predictions"]
    assert len(rows) == 3 and all(sum(row["shares"].values()) == pytest.approx(1, abs=1e-5) for row in rows)
    assert Image.open(out / "0.jpg.png").size[0] >= 50


def test_own_metric_is_intersection_over_union() -> None:
    space: dict = {}
    exec(pages.block("task"), space)
    judge = space["MeanIoU"](["a", "b"])
    logits = torch.nn.functional.one_hot(torch.tensor([[[0, 1], [1, 1]]]), 2).permute(0, 3, 1, 2).float()
    records = judge.update(logits, {"mask": torch.tensor([[[0, 0], [1, 255]]])})
    # a: 1 of 2 pixels found; b: 1 right of 2 said
    assert judge.compute(records) == {"miou": pytest.approx(100 * (1 / 2 + 1 / 2) / 2)}


def test_tdaf_in_own_code() -> None:
    torch.manual_seed(0)
    space: dict = {}
    exec(pages.block("own code"), space)
    assert isinstance(space["body"], TDAF)
    assert [tuple(m.shape[1:]) for m in space["maps"]] == [(64, 24, 24), (128, 12, 12), (256, 6, 6), (512, 3, 3)]
    assert set(space["masks"]) == {(2, 1), (2, 2), (3, 1), (3, 2), (3, 3)}
    with torch.no_grad():
        ours, folded = space["body"](space["images"])[-1], space["fast"](space["images"])[-1]
    torch.testing.assert_close(folded, ours, rtol=1e-3, atol=1e-3 * float(ours.abs().max()))
    assert all(p.grad is not None for p in space["body"].parameters())


def test_a_trained_network_in_own_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    old = pages.ROOT / "tests" / "old" / "run"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)).save("picture.png")
    space: dict = {}
    exec(pages.block("predictor").replace("RUN_FOLDER", str(old)), space)
    shown = capsys.readouterr().out.splitlines()
    assert len(shown) == 3 and shown[2] in shown[0] != shown[1] and space["answer"]["top5"][0]["class"] in shown[0]
    data = pictures(tmp_path / "data", train="abcdefghij", val="abcdefghij")
    text = pages.block("load checkpoint").replace(
        '"10crop"}', f'"10crop", "data.root": "{data}", "data.changed": True}}'
    )
    exec(text.replace("RUN_FOLDER", str(old)), space)
    assert space["task"].protocol == space["settings"]["task"]["protocol"] == "10crop"
    sample = space["samples"][0]["input"]
    assert space["network"](sample[None]).shape == (1, 10, 10), "ten crops and ten classes"
