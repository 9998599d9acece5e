"""What export writes is the checkpoint's network: the same answers from onnxruntime and from torch.export's file."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pages
import pytest
import torch
from commands import ROOT, script
from PIL import Image
from torch import nn
from torchvision.ops import batched_nms

from scripts.evaluate import evaluate
from scripts.export import export as command
from scripts.predict import predict
from tasks.detection.deploy import kept
from tdaf.cli.compose import compose
from tdaf.demo.prepare import prepare
from tdaf.engine import checkpoint
from tdaf.engine.export import Exported, export
from tdaf.engine.predict import Predictor
from tdaf.engine.trained import build_network, build_task, load_checkpoint
from tdaf.errors import RunError, UserError

DRAWN = {"imagenet": 48, "coco_fcos": 128, "coco_pose": 128, "kinetics": 32}
SMALL = {
    "imagenet": "task.val_transforms.1crop.size=48 task.val_transforms.1crop.short_side=48",
    "coco_fcos": "task.channels=16 task.convs=1 task.top=50 task.per_image=20",
    "coco_pose": "task.size=[64,96] task.deconvolutions=[16,16,16]",
    "kinetics": "task.frames=8 task.val_transforms.clip.size=32 task.val_transforms.clip.short_side=32",
}


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("demo")
    made: dict[str, Path] = {}

    def at(task: str) -> Path:
        if task not in made:
            made[task] = prepare(task, folder / task, seed=0, train=10, val=10, size=DRAWN[task])
        return made[task]

    return at


def saved(folder: Path, task: str, root: Path, *words: str) -> Path:
    """A run folder whose network has seen a batch, so that its statistics and answers are not those of a fresh one."""
    torch.manual_seed(0)
    usual = f"task={task} recipe=demo gpus=0 loader.workers=0 trainer.batch=4".split()
    settings = compose([*usual, f"data.root={root}", *words, *SMALL[task].split()])
    built = build_task(settings)
    network = build_network({**settings, "pretrained": None}, built).train()
    dataset = built.dataset("val")
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if name in ("head.logits.weight", "head.weight"):
                nn.init.normal_(parameter, std=0.3)  # FCOS and SimplePose start with next to no answer
        for _ in range(8):
            network(dataset.collate([dataset[index] for index in range(2)])["input"])
    about = {"config": settings, "classes": list(built.classes), "class_ids": getattr(built, "class_ids", None)}
    checkpoint.save({"network": network.state_dict(), "about": about}, folder / "checkpoints" / checkpoint.BEST)
    return folder


def numbers(folder: Path) -> dict[str, float]:
    (path,) = folder.glob("evaluation-*.json")
    return json.loads(path.read_text())["values"]


@pytest.fixture(scope="module")
def exported(demo: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """(run folder, its file) by task and flows, made once."""
    made: dict[tuple[str, int], tuple[Path, Path]] = {}

    def at(task: str, flows: int = 2) -> tuple[Path, Path]:
        if (task, flows) not in made:
            folder = tmp_path_factory.mktemp(task)
            run = saved(folder / "run", task, demo(task), f"flows={flows}")
            assert script(command, [f"checkpoint={run}", f"out={folder / 'model.onnx'}", "tolerance=0.0001"]) == 0
            made[task, flows] = run, folder / "model.onnx"
        return made[task, flows]

    return at


@pytest.mark.parametrize(
    ("task", "flows"), [("imagenet", 2), ("imagenet", 1), ("coco_fcos", 2), ("coco_pose", 2), ("kinetics", 2)]
)
def test_the_file_answers_as_the_checkpoint(
    task: str, flows: int, exported: Any, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    run, out = exported(task, flows)
    assert "largest difference from the checkpoint: " in capsys.readouterr().out
    about = {entry.key: entry.value for entry in onnx.load(out).metadata_props}
    assert json.loads(about["classes"]) == load_checkpoint(run).classes and about["task"] == task
    assert about["commit"] and "uint8" in about["input"] and about["protocol"]
    for given in (run, out):
        assert script(evaluate, [f"checkpoint={given}", f"out={tmp_path / given.stem}"]) == 0
    assert numbers(tmp_path / "model") == pytest.approx(numbers(tmp_path / "run"), abs=1e-4)


def test_detection_takes_any_size_and_predicts_alike(exported: Any, tmp_path: Path) -> None:
    run, out = exported("coco_fcos")
    noise = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    pictures = [
        np.array(Image.fromarray(noise).resize(size, Image.Resampling.BICUBIC)) for size in ((90, 150), (70, 61))
    ]
    ours, theirs = (Predictor(given, device="cpu", batch=2)(pictures) for given in (run, out))
    for (one,), (other,) in zip(ours, theirs):
        assert len(one["detections"]) == len(other["detections"]) > 0
        for a, b in zip(one["detections"], other["detections"]):
            assert a["class"] == b["class"] and a["box"] == pytest.approx(b["box"], abs=1e-2)
    Image.fromarray(pictures[0]).save(tmp_path / "a.png")
    assert script(predict, [f"checkpoint={out}", f"input={tmp_path / 'a.png'}", f"out={tmp_path / 'drawn'}"]) == 0
    assert json.loads((tmp_path / "drawn" / "predictions.json").read_text())["annotations"]


def test_persons_and_key_points_in_one_call(exported: Any) -> None:
    persons, boxes = exported("coco_pose")[1], exported("coco_fcos")[1]
    picture = np.random.default_rng(1).integers(0, 256, (120, 100, 3), dtype=np.uint8)
    (found,) = Predictor(boxes, device="cpu")(picture)
    kind, score = found["detections"][0]["class"], found["detections"][0]["score"]
    predictor = Predictor(persons, device="cpu", detector=boxes)
    answers = predictor(picture, person=kind, box_score=score)
    assert answers[0]["box"] == pytest.approx(found["detections"][0]["box"], abs=1e-3)
    assert predictor([picture, picture], person=kind, box_score=1.0) == [[], []]  # nobody is there
    with pytest.raises(UserError, match="knows no person; give person=NAME, one of circle"):
        predictor(picture)
    with pytest.raises(UserError, match="takes no boxes"):
        Predictor(boxes, detector=boxes)


@pytest.mark.parametrize("task", DRAWN)
def test_the_pages_examples_run(
    task: str, exported: Any, demo: Any, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    page = {"imagenet": "classification", "coco_fcos": "detection", "coco_pose": "pose", "kinetics": "action"}[task]
    given = next(path for path in sorted(demo(task).rglob("*")) if path.suffix in (".JPEG", ".jpg", ".mp4"))
    words = {"RUN_FOLDER": exported(task)[1], "FCOS_RUN": exported("coco_fcos")[1], "PICTURE": given, "VIDEO": given}
    words |= {'person="person"': 'person="circle"', "box_score=0.3": "box_score=0"}
    code = pages.block("use", ROOT / "docs" / f"{page}.md")
    for word, value in words.items():
        code = code.replace(word, str(value))
    exec(code, {})
    assert len(capsys.readouterr().out.splitlines()) > 1


def test_torch_export_writes_it_too(exported: Any, tmp_path: Path) -> None:
    run, out = exported("imagenet", 1)[0], tmp_path / "model.pt2"
    assert script(command, [f"checkpoint={run}", f"out={out}"]) == 0
    files = {"classes": "", "task": ""}
    network = torch.export.load(out, extra_files=files).module()
    assert json.loads(files["classes"]) == load_checkpoint(run).classes and files["task"] == "imagenet"
    found = network(torch.zeros(5, 3, 64, 96, dtype=torch.uint8))["probabilities"]
    assert found.shape == (5, 10) and found.sum(1).tolist() == pytest.approx([1] * 5)


def test_suppression_is_the_same_by_torchvision_alone() -> None:
    corners = torch.rand(3, 60, 4) * 20
    boxes = torch.cat([corners[..., :2], corners[..., :2] + corners[..., 2:]], -1)
    scores, labels = torch.rand(3, 60) - 0.2, torch.randint(0, 3, (3, 60))
    found = kept(boxes, scores, labels, 3, 0.3)
    for image, real in enumerate(scores > 0):
        own = batched_nms(boxes[image, real], scores[image, real], labels[image, real], 0.3)
        assert found[image].nonzero()[:, 0].tolist() == sorted(real.nonzero()[own, 0].tolist())
    assert 3 < found.sum() < (scores > 0).sum() and torch.equal(
        torch.ops.tdaf.kept(boxes, scores, labels, 3, 0.3), found
    )


def test_a_network_for_clips_is_exported_where_its_data_are_gone(demo: Any, tmp_path: Path) -> None:
    run = saved(tmp_path / "run", "kinetics", demo("kinetics"), "flows=1")
    words = [f"checkpoint={run}", f"out={tmp_path / 'model.pt2'}", f"data.root={tmp_path / 'gone'}"]
    assert script(command, words) == 0 and (tmp_path / "model.pt2").is_file()


def test_mistakes(exported: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, out = exported("imagenet", 1)
    for words, message in (
        (f"checkpoint={run} out=a.pb", "give a name that ends in .onnx or .pt2"),
        (f"checkpoint={out} out=a.onnx", "is exported already"),
    ):
        with pytest.raises(UserError, match=message):
            script(command, words.split())
    model = onnx.load(out)
    del model.metadata_props[:]
    onnx.save(model, tmp_path / "others.onnx")
    with pytest.raises(UserError, match="was not written by scripts/export.py"):
        load_checkpoint(tmp_path / "others.onnx")
    target = tmp_path / "model.onnx"
    with monkeypatch.context() as patch:
        patch.setattr(
            Exported, "outputs", lambda self, input: {"probabilities": torch.ones(len(input), 10), "logits": 0}
        )
        with pytest.raises(RunError, match="does not run on an input|differs from"):
            export(load_checkpoint(run), target)
    assert not target.exists()
    monkeypatch.setitem(__import__("sys").modules, "onnxruntime", None)
    with pytest.raises(UserError, match="needs onnxruntime: pip install"):
        load_checkpoint(out)
