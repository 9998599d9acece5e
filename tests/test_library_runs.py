"""Networks of timm and torchvision in the tasks, in a run of the command line, with their weights; the page."""

import re
import warnings
from pathlib import Path

import pages
import pytest
import timm
import torch
from commands import ROOT, call, pictures, script
from torch import nn
from torchvision.models import get_model

import tdaf
from scripts import attention
from tasks.detection.fcos import level_strides
from tasks.pose.simplepose import deconvolved
from tdaf import TDAF, MultiScale, load_checkpoint
from tdaf.cli.compose import compose
from tdaf.errors import UserError
from tdaf.model import pretrained, zoo
from tdaf.model.backbones import library
from tdaf.model.classifier import Classifier

PAGE = ROOT / "docs" / "backbones.md"


def classifier(network: str, **settings: object) -> Classifier:
    body = TDAF(tdaf.stages(network), gate_init="identity", **settings)
    return Classifier(body, body.classifier(body.widths[-1], 7), nn.Identity())


@pytest.mark.parametrize("network", ["timm/test_convnext", "timm/test_efficientnet", "torchvision/mobilenet_v3_small"])
def test_the_librarys_weights_load_by_name(network: str) -> None:
    """With wrappers' prefixes, into TDAF, which starts as the plain network; the head is that of 7 classes."""
    name = network.partition("/")[2]
    build = timm.create_model if network.startswith("timm") else get_model
    theirs = build(name, num_classes=7).eval()
    for part in theirs.modules():  # so that no two networks agree by chance
        if isinstance(part, nn.BatchNorm2d):
            nn.init.uniform_(part.running_mean, -0.1, 0.1)
    ours = classifier(network, flows=3, anar_width=32).eval()
    state = {f"module._orig_mod.{key}": value for key, value in theirs.state_dict().items()}
    report = pretrained.load(ours, state)
    assert not report.mismatched and not report.unexpected
    assert all(".gates." in key for key in report.missing)
    image = torch.randn(1, 3, 96, 128)
    with torch.no_grad():
        torch.testing.assert_close(ours(image), theirs(image), rtol=1e-3, atol=1e-5)
    with pytest.raises(UserError, match="another architecture"):
        pretrained.load(ours, timm.create_model("test_resnet").state_dict())


def test_tasks_take_the_strides_that_the_network_reports() -> None:
    staged = tdaf.stages("timm/test_resnet", out_indices=[1, 2, 3])
    assert level_strides(staged) == [4, 8, 16, 32, 64]
    pose = TDAF(deconvolved(staged, [8, 8]), flows=3, gated="appended", anar_width=32)
    assert pose.strides == [4, 8, 16, 8, 4] and list(pose.gates) == ["4"]
    assert pose(torch.rand(2, 3, 64, 48))[-1].shape == (2, 8, 16, 12)
    with torch.device("meta"), pytest.raises(UserError, match="halve the map each.*strides 7, 14, 14"):
        level_strides(tdaf.stages("timm/sequencer2d_s"))
    several = MultiScale(staged, flows=2)
    with pytest.raises(UserError, match="head=linear"):
        several.classifier(several.widths[-1], 10)


def test_settings_of_the_command_line_come_from_the_weights() -> None:
    config = compose(["task=imagenet", "backbone=timm", "model=test_resnet.r160_in1k", "data.root=x"])
    crop = config["task"]["val_transforms"]["1crop"]
    known = timm.data.resolve_data_config(pretrained_cfg=vars(timm.get_pretrained_cfg("test_resnet")))
    assert config["task"]["mean"] == list(known["mean"]) != [0.485, 0.456, 0.406]
    assert config["task"]["std"] == list(known["std"])
    assert crop["size"] == known["input_size"][1] == config["task"]["train_transform"]["size"] == 160
    assert crop["short_side"] == int(160 / known["crop_pct"]) and crop["interpolation"] == known["interpolation"]
    assert config["weights"] == "timm/test_resnet.r160_in1k"
    config = compose(["task=coco_fcos", "backbone=torchvision", "model=resnet18", "task.mean=[0.1,0.2,0.3]"])
    assert config["task"]["mean"] == [0.1, 0.2, 0.3] and config["task"]["std"] == [0.229, 0.224, 0.225]
    assert config["run_dir"].startswith("runs/coco_fcos/torchvision-") and "model=resnet18" in config["run_dir"]
    for words, message in (
        (["backbone=timm", "model=test_resnt"], "^model=test_resnt: .*did you mean test_resnet"),
        (["backbone=timm"], "^model=: name one of timm's networks"),
        (["model=resnet18"], "^model=resnet18: there is no setting model"),
    ):
        with pytest.raises(UserError, match=message):
            compose(["task=imagenet", *words])


def test_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Pretrained, averaged, rematerialised, loaded again, looked at."""
    root = pictures(tmp_path / "data")
    theirs = timm.create_model("test_efficientnet_ln")
    monkeypatch.setattr(library, "weights", lambda network: theirs.state_dict())
    run = tmp_path / "run"
    command = ["task=imagenet", "backbone=timm", "model=test_efficientnet_ln", "pretrained=imagenet",
               "task.train_transform.size=64", "task.train_transform.short_side=[64,70]", "trainer.max_steps=2",
               "task.val_transforms.1crop.size=64", "task.val_transforms.1crop.short_side=64", "trainer.batch=4",
               "trainer.ema=0.5", "tdaf.anar_width=32", "tdaf.rematerialise=true", "loader.workers=0", "gpus=0",
               "trainer.pictures=2", "optim.lr=0.001", f"data.root={root}", f"run_dir={run}"]  # fmt: skip
    assert call(monkeypatch, command) == 0, capsys.readouterr().err
    said = capsys.readouterr().out
    assert "pixels as timm/test_efficientnet_ln has them: mean [0.485, 0.456, 0.406]" in said
    assert said.count("the backbone has no batch norm") == 1 and "loaded " in said
    opened = load_checkpoint(run)
    network = opened.network()
    assert len(tdaf.attention_maps(network, torch.zeros(1, 3, 64, 64))) == 3 + 4
    with torch.no_grad():
        pixels = torch.randint(0, 256, (1, 3, 64, 64))
        torch.testing.assert_close(tdaf.fold(network)(pixels), network(pixels), rtol=1e-3, atol=1e-4)
    words = [f"checkpoint={run}", f"input={root / 'val/a/0.JPEG'}", f"out={tmp_path / 'maps'}"]
    assert script(attention.attention, words) == 0


def test_the_zoo(capsys: pytest.CaptureFixture[str]) -> None:
    assert zoo.main(["timm/test_resnet", "timm/test_vi*", "squeezenet1_1"]) == 0
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in capsys.readouterr().out.splitlines()]
    assert lines[0] == list(zoo.HEAD)
    total = sum(p.numel() for p in timm.create_model("test_resnet").parameters()) / 1e6
    shape = ["5", "32 32 48 192 96", "2 4 8 16 32", "batch 15", "160"]
    assert lines[2][:7] == ["timm/test_resnet", *shape, f"{total:.2f}"] and float(lines[2][7]) > total
    assert [line[0] for line in lines[3:]] == [*(f"timm/test_vit{n}" for n in ("", 2, 3, 4, "_relpos")),
                                               "torchvision/squeezenet1_1"]  # fmt: skip
    assert lines[3][1].startswith("all 6 maps have one size, 1/16 of the image")
    assert zoo.main(["resnt18"]) == 2 and "did you mean resnet18" in capsys.readouterr().err


def refused(network: str) -> str:
    """Why, without the library's own words."""
    with torch.device("meta"), warnings.catch_warnings(), pytest.raises(UserError) as error:
        warnings.simplefilter("ignore")
        tdaf.stages(f"timm/{network}")
    return re.split(r": at | \(", str(error.value).partition("cannot have TDAF: ")[2])[0]


ROWS = re.findall(r"^\| (\w+) \| `(\w+)` \| (.*) \|$", PAGE.read_text(encoding="utf-8"), re.MULTILINE)


def test_the_page_says_what_is_refused_and_why() -> None:
    """Of the table's rows every fourth, which is a matter of seconds."""
    assert len(ROWS) > 30
    assert {name: refused(name) for _, name, _ in ROWS[::4]} == {name: reason for _, name, reason in ROWS[::4]}


def test_the_page_runs() -> None:
    exec(pages.block("stages", PAGE), space := {})
    assert [x.shape[-1] for x in space["maps"]] == [32, 16, 8, 4] and space["body"].strides == [4, 8, 16, 32]


def test_a_sweeps_check_builds_what_cannot_be_built_without_values() -> None:
    """On the meta device; the constructor of torchvision's RegNet computes its widths with tensors."""
    with torch.device("meta"):
        staged = tdaf.stages("torchvision/regnet_y_400mf")
        head = staged.classifier(staged.widths[-1], 5)
    assert {p.device.type for part in (staged, head) for p in part.parameters()} == {"meta"}
    assert staged.widths == [32, 48, 104, 208, 440]
