"""Users' own images, backbones, attention mechanisms, data sets, heads, losses, tasks and training scripts, by what
docs/extending.md shows."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pages
import pytest
import torch
from commands import call, pictures, process, script
from PIL import Image
from tiny_run import ROOT, same, trained, until
from torch import nn
from torchvision.models import regnet_y_400mf

from scripts import check_data, evaluate, predict
from tasks.classification.folder import ImageFolder
from tdaf.errors import UserError
from tdaf.model import pretrained
from tdaf.model.backbones.resnet import resnet
from tdaf.model.backbones.vgg import vgg
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


IN_FOLDERS = [
    "recipe=demo", "trainer.batch=6", "trainer.max_steps=2", "trainer.pictures=0", "loader.workers=0", "gpus=0",
    "task.train_transform.size=24", "task.train_transform.short_side=[26,30]",
    "task.val_transforms.1crop.size=24", "task.val_transforms.1crop.short_side=26",
]  # fmt: skip


@pytest.fixture
def own_folder(tmp_path: Path) -> Path:
    return pictures(tmp_path / "pets", ("cats", "dogs"), ("cats", "dogs"), each=5)


def test_own_backbone(tmp_path: Path, own_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert len(pages.block("backbone").splitlines()) <= 30
    pages.module("mynet", "backbone", tmp_path, monkeypatch)
    run = [*IN_FOLDERS, pages.install(tmp_path), "backbone=mynet", "flows=3", f"data.root={own_folder}"]
    assert call(monkeypatch, ["task=imagenet", *run, f"run_dir={tmp_path / 'run'}"]) == 0
    weights = torch.load(tmp_path / "run/checkpoints/best.pt", weights_only=True)["network"]
    assert weights["body.stages.2.0.weight"].shape == (128, 64, 3, 3)
    assert {name[:12] for name in weights if name.startswith("body.gates.")} == {"body.gates.1", "body.gates.2"}
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
    run = [
        *IN_FOLDERS,
        pages.install(tmp_path),
        "attention=eca",
        "attention.reach=5",
        "flows=2",
        f"data.root={own_folder}",
    ]
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
    assert "recipe=demo" in first and IN_FOLDERS[0] == "recipe=demo"
    assert call(monkeypatch, [*first[1:], *IN_FOLDERS[1:], "flows=2", "trainer.epochs=1", f"run_dir={run}"]) == 0
    assert torch.load(run / "checkpoints/best.pt", weights_only=True)["about"]["classes"] == ["cats", "dogs"]
    assert script(predict.predict, [*look[1:], f"out={tmp_path / 'drawn'}"]) == 0
    assert "cats" in capsys.readouterr().out


def test_own_script_goes_on_where_it_was_killed(tmp_path: Path) -> None:
    code = pages.block("own script")
    own = [line for line in code.splitlines() if line.strip() and not line.startswith(("import", "from"))]
    assert len(own) <= 40
    # a module that cannot be imported stands for one that is not installed
    (tmp_path / "myscript.py").write_text(code)
    for name in ("hydra", "omegaconf", "av"):
        (tmp_path / f"{name}.py").write_text("raise ImportError")
    path = {"PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""}
    whole = process(["myscript.py", "whole"], tmp_path, **path)
    assert whole.returncode == 0 and "accuracy" in whole.stdout.splitlines()[-1], whole.stderr
    log = tmp_path / "cut" / "log.txt"
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **path}
    words = [sys.executable, "myscript.py", "cut"]
    cut = subprocess.Popen(words, cwd=tmp_path, env=environment, start_new_session=True)
    assert until(lambda: log.exists() and "epoch 1 val" in log.read_text(), cut)
    os.killpg(cut.pid, signal.SIGKILL)
    assert cut.wait(60) == -signal.SIGKILL
    again = process(["myscript.py", "cut"], tmp_path, **path)
    assert again.returncode == 0 and "going on from step" in again.stdout, again.stderr
    assert same(trained(tmp_path / "cut"), trained(tmp_path / "whole"))
    assert json.loads((tmp_path / "cut" / "summary.json").read_text())["metric"]["best"] > 80
    assert "is finished: accuracy" in process(["myscript.py", "cut"], tmp_path, **path).stdout


def test_own_script_joins_the_ranks_of_torchrun(tmp_path: Path) -> None:
    (tmp_path / "myscript.py").write_text(pages.block("own script"))
    words = ["-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone", "myscript.py", "both"]
    done = process(words, tmp_path, PYTHONPATH=str(ROOT), CUDA_VISIBLE_DEVICES="")
    assert done.returncode == 0, done.stderr
    assert "(2 ranks x 8 x 1 part)" in done.stdout and done.stdout.count("finished: accuracy") == 1
