"""Users' own images, backbones and attention mechanisms, by what docs/extending.md shows."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pages
import pytest
import torch
from commands import call, script
from PIL import Image
from torch import nn
from torchvision.models import regnet_y_400mf

from scripts import check_data, predict
from tasks.classification.folder import ImageFolder
from tdaf.errors import UserError
from tdaf.model import pretrained
from tdaf.model.backbones.resnet import resnet
from tdaf.model.backbones.vgg import vgg
from tdaf.model.flows import TDAF

SMALL = [
    "recipe=demo", "trainer.batch=6", "trainer.max_steps=2", "trainer.pictures=0", "loader.workers=0", "gpus=0",
    "task.train_transform.size=24", "task.train_transform.short_side=[26,30]",
    "task.val_transforms.1crop.size=24", "task.val_transforms.1crop.short_side=26",
]  # fmt: skip


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


def test_own_backbone(tmp_path: Path, own_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert len(pages.block("backbone").splitlines()) <= 30
    pages.module("mynet", "backbone", tmp_path, monkeypatch)
    run = [
        *SMALL,
        pages.install(tmp_path),
        "backbone=mynet",
        "flows=3",
        f"data.root={own_folder}",
        f"run_dir={tmp_path / 'run'}",
    ]
    assert call(monkeypatch, ["task=imagenet", *run]) == 0
    weights = torch.load(tmp_path / "run/checkpoints/best.pt", weights_only=True)["network"]
    assert weights["body.stages.2.0.weight"].shape == (128, 64, 3, 3)
    assert {"body.gates.1", "body.gates.2"} == {
        ".".join(name.split(".")[:3]) for name in weights if ".gates." in name and "earlier" not in name
    }
    assert weights["head.fc.weight"].shape == (2, 128)


def test_own_backbone_fuses_with_the_gate() -> None:
    """The page promises it of a stage that ends in its own ReLU: the gated map alone is kept, not the ReLU's too."""
    space: dict = {}
    exec(pages.block("backbone"), space)
    torch.manual_seed(0)
    network = TDAF(space["mynet"](), flows=2, anar=3)
    gated, last = network(torch.rand(2, 3, 32, 32))[0], network(torch.rand(2, 3, 32, 32))[-1]
    assert gated.grad_fn.name() == "_ReluGateBackward"
    assert last.grad_fn.name() == "ReluBackward0"


def test_an_existing_network_keeps_its_publishers_names_and_maps() -> None:
    space: dict = {}
    exec(pages.block("existing network"), space)
    torch.manual_seed(0)
    theirs, images = regnet_y_400mf().eval(), torch.rand(2, 3, 64, 64)
    plain = space["regnet"]().eval()
    report = pretrained.load(plain, theirs.state_dict())
    assert not report.missing and not report.mismatched
    assert all(name.startswith("fc.") for name in report.unexpected)
    maps = plain(images)
    torch.testing.assert_close(maps[-1], theirs.trunk_output(theirs.stem(images)))
    assert [m.shape[1] for m in maps] == plain.widths and [64 // m.shape[2] for m in maps] == [4, 8, 16, 32]
    body = TDAF(plain, flows=3, gate_init="identity").eval()
    torch.testing.assert_close(body(images)[0], maps[0], msg="masks of 1 - eta change nothing at stage 1")


def test_an_attention_mechanism_of_ones_own(tmp_path: Path, own_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pages.module("myattention", "attention", tmp_path, monkeypatch)
    pages.module("late", "attention elsewhere", tmp_path, monkeypatch)
    from late import LateECA
    from myattention import ECA

    def found(network: nn.Module) -> list[str]:
        return [name for name, module in network.named_modules() if isinstance(module, ECA)]

    plain = resnet(18, width=16, attention=ECA)
    assert len(found(plain)) == 8, "one a block"
    assert [m.shape[1] for m in TDAF(plain, flows=3)(torch.rand(2, 3, 33, 47))] == [16, 32, 64, 128]
    assert resnet(18, width=16, attention=ECA, dims=3)(torch.rand(2, 3, 4, 33, 33))[-1].shape == (2, 128, 1, 2, 2)
    assert found(resnet(50, width=8, attention=LateECA())) == ["stages.2.layer3.4.after"]
    with pytest.raises(UserError, match="attention: LateECA goes into the residual blocks of a ResNet"):
        vgg(11, attention=LateECA())
    run = [*SMALL, pages.install(tmp_path), "attention=eca", "attention.reach=5", "flows=2", f"data.root={own_folder}"]
    assert call(monkeypatch, ["task=imagenet", *run, f"run_dir={tmp_path / 'run'}"]) == 0
    weights = torch.load(tmp_path / "run/checkpoints/best.pt", weights_only=True)["network"]
    assert weights["body.stages.0.layer1.0.attention.mix.weight"].shape == (1, 1, 5)


def test_own_images(
    tmp_path: Path, own_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ImageFolder(str(own_folder)).classes == ["cats", "dogs"]
    skip, run = tmp_path / "skip.txt", tmp_path / "run"
    words = {"PATH": own_folder, "skip.txt": skip, "RUN_FOLDER": run, "PICTURE_OR_FOLDER": own_folder / "val"}
    check, first, _, look = pages.commands("own images", **words)
    assert script(check_data.check, [*check[1:], "loader.workers=0"]) == 0
    assert "recipe=demo" in first and SMALL[0] == "recipe=demo"
    assert call(monkeypatch, [*first[1:], *SMALL[1:], "flows=2", "trainer.epochs=1", f"run_dir={run}"]) == 0
    assert torch.load(run / "checkpoints/best.pt", weights_only=True)["about"]["classes"] == ["cats", "dogs"]
    assert script(predict.predict, [*look[1:], f"out={tmp_path / 'drawn'}"]) == 0
    assert "cats" in capsys.readouterr().out
