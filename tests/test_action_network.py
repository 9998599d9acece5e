"""The action network: 3D-ResNet and TDAF's 3D form, counted on the meta device; 2D weights in it."""

from __future__ import annotations

import functools
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor, nn

from tasks.action.task import Action
from tasks.action.transforms import area_box, clip_train, clip_val, corner_box
from tdaf.cli import build
from tdaf.cli.compose import compose
from tdaf.errors import UserError
from tdaf.model.backbones.resnet import resnet
from tdaf.model.classifier import Classifier, LinearHead
from tdaf.model.flows import TDAF, pyramid
from tdaf.model.inflate import inflate_weight
from tdaf.model.normalise import Normalise
from tdaf.model.pretrained import load

torch.set_num_threads(1)
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
    torch.manual_seed(0)
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
