"""The action task: crops of clips, accuracy by clip and by video; 3D-ResNet and TDAF's 3D form, 2D weights in it."""

import functools
import math
import random
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from torch import Tensor, nn
from torchvision.transforms.v2 import functional as v2F

from tasks.action.task import Action, VideoAccuracy
from tasks.action.transforms import area_box, clip_three_crops, clip_train, clip_val, corner_box
from tdaf.cli import build
from tdaf.cli.compose import compose
from tdaf.errors import RunError, UserError
from tdaf.model.backbones.resnet import resnet
from tdaf.model.classifier import Classifier, LinearHead
from tdaf.model.flows import TDAF, pyramid
from tdaf.model.inflate import inflate_weight
from tdaf.model.normalise import Normalise
from tdaf.model.pretrained import load


def coordinates(frames: int, height: int, width: int) -> Tensor:
    """uint8 (T, 3, H, W) whose pixels say where they are: column, row, frame."""
    clip = torch.empty(frames, 3, height, width, dtype=torch.uint8)
    clip[:, 0], clip[:, 1] = torch.arange(width).byte(), torch.arange(height).byte()[:, None]
    clip[:, 2] = torch.arange(frames).byte()[:, None, None]
    return clip


@pytest.mark.parametrize("settings", [{}, {"scale": None, "corner_scales": 5}])
def test_all_frames_are_cut_and_mirrored_alike(settings: dict) -> None:
    transform = clip_train(size=24, **settings)
    mirrored = 0
    for seed in range(40):
        torch.manual_seed(seed)
        clip = transform(coordinates(7, 50, 70))
        assert clip.shape == (3, 7, 24, 24) and clip.dtype == torch.uint8 and clip.is_contiguous()
        assert all(torch.equal(clip[:2, t], clip[:2, 0]) for t in range(7))
        assert clip[2, :, 0, 0].tolist() == list(range(7))
        mirrored += int(clip[0, 0, 0, 0] > clip[0, 0, 0, -1])
        torch.manual_seed(seed)
        assert torch.equal(transform(coordinates(7, 50, 70)), clip)
    assert 10 < mirrored < 30


def test_corner_boxes_are_haras() -> None:
    """Five places, five sizes (3D-ResNets-PyTorch, CVPR2018, MultiScaleCornerCrop), all equally often."""
    height, width = 101, 140
    scales = [1.0]
    for _ in range(4):
        scales.append(scales[-1] * 0.84089641525)
    expected = set()
    for scale in scales:
        side = int(height * scale)
        centre = (height - side) // 2, (width - side) // 2
        for y, x in (centre, (0, 0), (0, width - side), (height - side, 0), (height - side, width - side)):
            expected.add((y, x, side, side))
    torch.manual_seed(0)
    found = [corner_box(height, width, 5) for _ in range(2000)]
    assert set(found) == expected
    sides = [side for _, _, side, _ in found]
    assert all(330 < sides.count(int(101 * scale)) < 470 for scale in scales)


@pytest.mark.parametrize(("height", "width"), [(40, 64), (64, 40), (40, 40)])
def test_validation_crops(height: int, width: int) -> None:
    clip = coordinates(3, height, width)
    centre = clip_val(size=36, short_side=40)(clip)
    y, x = (height - 36) // 2, (width - 36) // 2
    assert torch.equal(centre, clip[..., y : y + 36, x : x + 36].transpose(0, 1)) and centre.is_contiguous()
    views = clip_three_crops(size=40, short_side=40)(clip)
    assert views.shape == (3, 3, 3, 40, 40) and views.is_contiguous()
    starts = [(0, 0), ((height - 40) // 2, (width - 40) // 2), (height - 40, width - 40)]
    for view, (y, x) in zip(views, starts, strict=True):
        assert torch.equal(view, clip[..., y : y + 40, x : x + 40].transpose(0, 1))
    small = clip_three_crops(size=30, short_side=40)(clip)[:, :2, 0, 0, 0].tolist()
    along = [[0, 5], [(width - 30) // 2, 5], [width - 30, 5]] if width > height else [[5, 0], [5, 17], [5, 34]]
    assert small == (along if width != height else [[0, 5], [5, 5], [10, 5]])
    halved = clip_val(size=20, short_side=20)(clip)
    assert halved.shape == (3, 3, 20, 20)
    expected = v2F.center_crop(v2F.resize(clip, [20]), [20, 20])
    assert torch.equal(halved, expected.transpose(0, 1))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"size": 0}, "size=0: give 1 or more"),
        ({"corner_scales": 5}, "give scale .* or corner_scales .*, not both"),
        ({"scale": None}, "give scale .* or corner_scales .*, not both"),
        ({"scale": [0.5, 0.2]}, r"scale=\[0.5, 0.2\]: give two parts"),
    ],
)
def test_crops_that_cannot_be(settings: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        clip_train(**settings)
    for make in (clip_val, clip_three_crops):
        with pytest.raises(UserError, match="size=50: give at most 40"):
            make(size=50, short_side=40)


def evaluator(classes: int, protocol: str = "hara") -> VideoAccuracy:
    return VideoAccuracy(protocol, [f"class {k}" for k in range(classes)], lambda video: f"video {video}.mp4")


def softmax(row: np.ndarray) -> np.ndarray:
    exponents = np.exp(row - row.max(-1, keepdims=True))
    return exponents / exponents.sum(-1, keepdims=True)


def literal(outputs: np.ndarray, videos: Sequence[int], labels: Sequence[int]) -> dict[str, float]:
    """As it is told: softmax of each view and window, means over both, the first five of a sorted list."""
    probabilities = softmax(outputs.astype(np.float64))
    if probabilities.ndim == 3:
        probabilities = probabilities.mean(1)
    values = dict.fromkeys(("top1", "top5", "clip_top1", "clip_top5", "loss"), 0.0)
    for p, label in zip(probabilities, labels, strict=True):
        best = sorted(range(len(p)), key=lambda k: (-p[k], k))[:5]
        values["clip_top1"] += 100 * (best[0] == label) / len(labels)
        values["clip_top5"] += 100 * (label in best) / len(labels)
        values["loss"] -= math.log(p[label]) / len(labels)
    names = sorted(set(videos))
    for video in names:
        windows = [i for i, v in enumerate(videos) if v == video]
        mean = [sum(probabilities[i][k] for i in windows) / len(windows) for k in range(probabilities.shape[1])]
        best = sorted(range(len(mean)), key=lambda k: (-mean[k], k))[:5]
        values["top1"] += 100 * (best[0] == labels[windows[0]]) / len(names)
        values["top5"] += 100 * (labels[windows[0]] in best) / len(names)
    return {**values, "videos": len(names)}


@pytest.mark.parametrize(("classes", "views"), [(3, 0), (11, 0), (11, 3)])
def test_accuracy_by_brute_force(classes: int, views: int) -> None:
    """Videos with 1 to 9 windows, the last one with a single window, in batches that cut through videos."""
    rng = np.random.default_rng(classes)
    videos = [video for video in range(23) for _ in range(int(rng.integers(1, 10)))] + [23]
    labels = [int(k) for k in rng.integers(0, classes, 24)]
    shape = (len(videos), views, classes) if views else (len(videos), classes)
    outputs = rng.normal(size=shape).astype(np.float32)
    for i, video in enumerate(videos):
        outputs[i, ..., labels[video]] += 0.8
    judge, records, start = evaluator(classes), [], 0
    while start < len(videos):
        part = slice(start, start + 7)
        batch = {"video": torch.tensor(videos[part]), "label": torch.tensor([labels[v] for v in videos[part]])}
        records += judge.update(torch.from_numpy(outputs[part]), batch)
        start += 7
    expected = literal(outputs, videos, [labels[v] for v in videos])
    assert judge.compute(records)[0] == pytest.approx(expected, rel=1e-5)
    assert 20 < expected["top1"] < 90 and expected["clip_top1"] != expected["top1"]
    # windows may come from any rank, in any order
    random.Random(0).shuffle(records)
    assert judge.compute(records)[0] == pytest.approx(expected, rel=1e-5)
    with pytest.raises(RunError, match="no sample"):
        judge.compute([])


def test_equal_probabilities_go_to_the_smaller_number() -> None:
    judge = evaluator(7)
    batch = {"video": torch.arange(7), "label": torch.arange(7)}
    found, _ = judge.compute(judge.update(torch.zeros(7, 7), batch))
    assert found["top1"] == found["clip_top1"] == pytest.approx(100 / 7)
    assert found["top5"] == found["clip_top5"] == pytest.approx(100 * 5 / 7)


plain = lambda staged: staged  # noqa: E731


def task(classes: int = 400, **settings: Any) -> Action:
    data = SimpleNamespace(classes=[f"class {k}" for k in range(classes)])
    colours = [0.4345, 0.4051, 0.3775], [0.2768, 0.2713, 0.2737]
    return Action(data, clip_train(), {"clip": clip_val()}, *colours, **settings)


@pytest.mark.parametrize(
    ("depth", "tdaf", "parameters"),
    [
        (50, plain, 47_018_576),  # paper, Table 6: 47.019M
        (101, plain, 86_064_720),  # 86.065M
        (50, functools.partial(TDAF, flows=3, anar=5), 48_416_995),  # 48.417M
        (50, functools.partial(TDAF, flows=1, anar=5), 47_018_576),
    ],
)
def test_parameters(depth: int, tdaf: Any, parameters: int) -> None:
    with torch.device("meta"):
        network = task().network(resnet(depth, dims=3), tdaf).to("meta")
        logits = network.eval()(torch.zeros(2, 3, 16, 112, 112, dtype=torch.uint8))
        views = network(torch.zeros(2, 3, 3, 16, 112, 112, dtype=torch.uint8))
    assert sum(p.numel() for p in network.parameters()) == parameters
    assert logits.shape == (2, 400) and views.shape == (2, 3, 400)
    assert all(key.startswith(("body.", "head.fc.")) for key in network.state_dict())


@pytest.mark.parametrize(("flows", "least"), [(2, 2), (3, 3), (4, 5)])
def test_what_the_network_cannot_take_is_said_in_one_line(flows: int, least: int) -> None:
    with pytest.raises(UserError, match="^dims=2: this task's inputs are clips; give dims=3$"):
        task().network(resnet(18, width=8), plain)

    def built(frames: int) -> nn.Module:
        network = task(frames=frames).network(resnet(18, width=8, dims=3), functools.partial(TDAF, flows=flows))
        return network.to("meta")

    message = f"^flows={flows}, frames={least - 1}: .* or {least} frames or more$"
    with torch.device("meta"):
        with pytest.raises(UserError, match=message):
            built(least - 1)
        built(least).eval()(torch.zeros(1, 3, least, 32, 32))
        # and it is true: the pyramid itself cannot go on
        with pytest.raises(RuntimeError, match="smaller than kernel size"):
            pyramid(torch.zeros(1, 3, least - 1, 32, 32), flows, 3)


def draw(network: nn.Module) -> dict[str, Tensor]:
    """A state dict with nothing in it that a fresh network has."""
    for tensor in network.state_dict().values():
        if tensor.is_floating_point():
            tensor.uniform_(0.5, 1.5)
    return network.state_dict()


def test_torchvisions_weights_in_the_action_network() -> None:
    """All of the backbone is inflated, and the classifier is the task's own."""
    theirs = draw(torchvision.models.resnet18(num_classes=7))
    network = task(5).network(resnet(18, dims=3), functools.partial(TDAF, flows=3, anar=5, anar_width=32))
    report = load(network, theirs)
    assert report.inflated == sum(t.ndim == 4 for t in theirs.values()) == 20
    assert {name for name, *_ in report.mismatched} == {"head.fc.weight", "head.fc.bias"}
    assert report.missing and all(".gates." in name for name in report.missing)
    weight = network.state_dict()["body.stages.2.layer3.0.conv2.weight"]
    assert torch.equal(weight, inflate_weight(theirs["layer3.0.conv2.weight"], tuple(weight.shape)))


def images(classes: int, **settings: Any) -> Classifier:
    """As our classification task builds it."""
    body = TDAF(resnet(18, width=16), **settings)
    return Classifier(body, LinearHead(body.widths[-1], classes), Normalise([0.5] * 3, [0.5] * 3))


@pytest.mark.parametrize("anar", [3, 5])
def test_our_2d_weights_bring_their_gates(anar: int) -> None:
    settings = {"flows": 3, "anar": anar, "anar_width": 32}
    theirs = draw(images(9, **settings))
    network = task(5).network(resnet(18, width=16, dims=3), functools.partial(TDAF, **settings))
    report = load(network, theirs)
    ours = network.state_dict()
    assert report.missing == [] and {name for name, *_ in report.mismatched} == {"head.fc.weight", "head.fc.bias"}
    for name, tensor in theirs.items():
        if ".gates." in name and tensor.ndim == 4:  # of which the transposed ones have time as the third axis too
            assert torch.equal(ours[name], inflate_weight(tensor, tuple(ours[name].shape)))
            torch.testing.assert_close(ours[name].sum(2), tensor)
        elif ".gates." in name or "earlier" in name and "running" in name:
            assert torch.equal(ours[name], tensor)


def test_both_lines_of_haras_recipe_are_settings() -> None:
    """recipe=paper is the master branch's; the branch CVPR2018 is what its comment says to add."""
    recipe = Path(__file__).parent.parent / "configs/recipe/task/kinetics_paper.yaml"
    overrides = " ".join(line[4:] for line in recipe.read_text().splitlines() if line.startswith("#   ")).split()
    assert overrides[0] == "schedule=plateau" and len(overrides) == 6
    found = {}
    for name, more in (("master", []), ("CVPR2018", overrides)):
        config = compose(["task=kinetics", "recipe=paper", *more])
        optimizer = build.optimizer(config)(nn.Linear(2, 2))
        schedule = build.make(config["schedule"], "schedule")(steps_per_epoch=10, steps=2000)
        made = build.make(config["task"], "task", data=SimpleNamespace(classes=["a", "b"]))
        for epoch in range(49):
            schedule.step({"loss": 2.0})
            if schedule.factor(10 * epoch) < 1:
                break
        group = optimizer.param_groups[0]
        pixel = made.network(resnet(18, width=8, dims=3), plain).normalise(torch.full((1, 3, 1, 1, 1), 200.0))
        assert (group["lr"], group["momentum"], group["weight_decay"]) == (0.1, 0.9, 1e-3)
        assert (config["trainer"]["epochs"], config["trainer"]["batch"]) == (200, 128)
        found[name] = group["dampening"], epoch, made.train_transform.keywords["box"].func, pixel.flatten().tolist()
    assert found["master"][:3] == (0, 48, area_box)
    assert found["CVPR2018"][:3] == (0.9, 11, corner_box)  # ten evaluations later, and one more
    expected = [(200 / 255 - m) / s for m, s in zip([0.4345, 0.4051, 0.3775], [0.2768, 0.2713, 0.2737], strict=True)]
    assert found["master"][3] == pytest.approx(expected, rel=1e-5)
    assert found["CVPR2018"][3] == pytest.approx([200 - m for m in (114.7748, 107.7354, 99.4750)], rel=1e-3)
