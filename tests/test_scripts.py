"""predict and check_data, as a user calls them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from PIL import Image

from scripts.check_data import check
from scripts.predict import predict
from tdaf.demo.prepare import prepare
from tdaf.errors import UserError
from train import main

SMALL = [
    "task=imagenet", "recipe=demo", "trainer.batch=8", "trainer.max_steps=2", "trainer.pictures=0", "gpus=0",
    "loader.workers=0", "task.train_transform.size=24", "task.train_transform.short_side=[26,30]",
    "task.val_transforms.1crop.size=24", "task.val_transforms.1crop.short_side=26",
]  # fmt: skip


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepare("imagenet", tmp_path_factory.mktemp("demo"), seed=0, train=20, val=11, size=32)


@pytest.fixture(scope="module")
def run(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["train.py", *SMALL, f"data.root={data}", f"run_dir={folder}"])
        assert main() == 0
    return folder


def test_predict_a_folder(run: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    given = tmp_path / "given"
    shutil.copytree(data / "val" / "n00000003", given / "deep")
    (given / "broken.jpg").write_text("no picture")
    (given / "notes.txt").write_text("no picture either")
    out = tmp_path / "out"
    assert predict([f"checkpoint={run}", f"input={given}", f"out={out}", "loader.workers=0"]) == 0
    said = capsys.readouterr()
    assert "left out" in said.err and "broken.jpg" in said.err and "notes" not in said.err
    rows = json.loads((out / "predictions.json").read_text())["predictions"]
    assert [Path(row["file"]).parent for row in rows] == [given / "deep"] * len(rows)
    assert len(rows) == len(list((given / "deep").iterdir()))
    for row in rows:
        top = row["top5"]
        assert len({entry["class"] for entry in top}) == 5 and top[0]["class"] in said.out
        assert top == sorted(top, key=lambda entry: -entry["probability"]) and top[0]["probability"] <= 1
        with Image.open(row["picture"]) as picture, Image.open(row["file"]) as own:
            assert picture.width / picture.height == pytest.approx(own.width / own.height, rel=0.02)


def test_predict_equals_evaluation(run: Path, data: Path, tmp_path: Path) -> None:
    """The share of validation pictures that predict gets right is the run's own top-1; folding does not change it."""
    names = dict(line.split() for line in (data / "classes.txt").read_text().splitlines())
    for folded in ("false", "true"):
        out = tmp_path / folded
        assert predict([f"checkpoint={run}", f"input={data / 'val'}", f"out={out}", f"folded={folded}", "batch=5"]) == 0
        rows = json.loads((out / "predictions.json").read_text())["predictions"]
        right = sum(row["top5"][0]["class"] == names[Path(row["file"]).parent.name] for row in rows)
        assert 100 * right / len(rows) == pytest.approx(json.loads((run / "summary.json").read_text())["metric"]["last"])


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["input=x"], "no such file or folder"),
        ([], "give input="),
        (["input={empty}"], "no image in this folder"),
        (["input={image}", "batch=0"], "batch=0: give a whole number"),
        (["input={image}"], "give checkpoint="),
        (["input={image}", "checkpoint={image}"], "damaged or is not a checkpoint"),
        (["input={image}", "chekpoint=y"], "did you mean checkpoint"),
    ],
)
def test_predict_mistakes(arguments: list[str], said: str, data: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    image = next((data / "val" / "n00000001").iterdir())
    places = {"empty": tmp_path / "empty", "image": image}
    with pytest.raises(UserError, match=said):
        predict([argument.format(**places) for argument in arguments])


def test_check_data_and_skip_list(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """The list that check_data writes is what makes a damaged data set usable, with the left-out samples counted."""
    root = tmp_path / "data"
    shutil.copytree(data, root)
    first = sorted((root / "val" / "n00000001").iterdir())[0]
    first.write_bytes(first.read_bytes()[:200])
    shutil.copy(sorted((root / "val" / "n00000002").iterdir())[0], root / "val" / "n00000001" / "whole.JPEG")
    settings = [*SMALL, f"data.root={root}"]
    skip = tmp_path / "skip.txt"
    assert check([*settings, f"out={skip}"]) == 1
    said = capsys.readouterr().out
    assert skip.read_text() == f"val/n00000001/{first.name}\n"
    assert "train: 20 samples read, 0 cannot be" in said and "1 in val/n00000001" in said
    assert check([*settings, f"data.skip_list={skip}"]) == 0
    assert "1 on the skip list" in capsys.readouterr().out
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["train.py", *settings, f"data.skip_list={skip}", f"run_dir={tmp_path / 'run'}"])
        assert main() == 0
    assert json.loads((tmp_path / "run/summary.json").read_text())["skipped"] == 1
    assert "1 skipped" in capsys.readouterr().out
