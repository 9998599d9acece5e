"""What README shows for users' own backbones and data works as it stands there."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tasks.classification.folder import ImageFolder
from tdaf.model.flows import TDAF
from train import main

ROOT = Path(__file__).parent.parent
SMALL = [
    "recipe=demo", "trainer.batch=6", "trainer.max_steps=2", "trainer.pictures=0", "loader.workers=0", "gpus=0",
    "task.train_transform.size=24", "task.train_transform.short_side=[26,30]",
    "task.val_transforms.1crop.size=24", "task.val_transforms.1crop.short_side=26",
]  # fmt: skip


def block(name: str) -> str:
    """The fenced block of README below <!-- test: NAME -->."""
    found = re.search(rf"<!-- test: {name} -->\n```\w*\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert found, f"README has no block {name}"
    return found[1]


@pytest.fixture
def own_folder(tmp_path: Path) -> Path:
    """Images of odd sizes in two classes of the user's own, one of them grey."""
    rng = np.random.default_rng(0)
    for split in ("train", "val"):
        for name in ("cats", "dogs"):
            folder = tmp_path / "pets" / split / name
            folder.mkdir(parents=True)
            for place in range(5):
                pixels = rng.integers(0, 256, (30 + place, 41, 3), dtype=np.uint8)
                image = Image.fromarray(pixels)
                (image.convert("L") if place == 0 else image).save(folder / f"{place}.jpg")
    return tmp_path / "pets"


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr("sys.argv", ["train.py", *arguments])
    return main()


def test_own_backbone(tmp_path: Path, own_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = block("backbone")
    assert len(source.splitlines()) <= 30
    (tmp_path / "mynet.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    config = ROOT / "configs" / "backbone" / "mynet.yaml"
    assert not config.exists()
    config.write_text(block("backbone config"))
    try:
        code = run(
            monkeypatch, "task=imagenet", *SMALL, "backbone=mynet", "flows=3", f"data.root={own_folder}",
            f"run_dir={tmp_path / 'run'}",
        )  # fmt: skip
    finally:
        config.unlink()
    assert code == 0
    weights = torch.load(tmp_path / "run/checkpoints/best.pt", weights_only=True)["network"]
    assert weights["body.stages.2.0.weight"].shape == (128, 64, 3, 3)
    assert {"body.gates.1", "body.gates.2"} == {".".join(name.split(".")[:3]) for name in weights if ".gates." in name
                                                and "earlier" not in name}
    assert weights["head.fc.weight"].shape == (2, 128)


def test_own_backbone_fuses_with_the_gate(tmp_path: Path) -> None:
    """README promises it of a stage that ends in its own ReLU: the gated map alone is kept, not the ReLU's too."""
    space: dict = {}
    exec(block("backbone"), space)
    torch.manual_seed(0)
    network = TDAF(space["mynet"](), flows=2, anar=3)
    gated, last = network(torch.rand(2, 3, 32, 32))[0], network(torch.rand(2, 3, 32, 32))[-1]
    assert gated.grad_fn.name() == "_ReluGateBackward"
    assert last.grad_fn.name() == "ReluBackward0"


def test_own_images(tmp_path: Path, own_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert ImageFolder(str(own_folder)).classes == ["cats", "dogs"]
    code = run(monkeypatch, "task=imagenet", *SMALL, "flows=2", f"data.root={own_folder}", f"run_dir={tmp_path / 'run'}")
    assert code == 0
    assert torch.load(tmp_path / "run/checkpoints/best.pt", weights_only=True)["about"]["classes"] == ["cats", "dogs"]
