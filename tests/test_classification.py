"""The classification task: network, mixing, losses, accuracy and pictures."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from torch import Tensor, nn

from tasks.classification.task import Classification
from tasks.classification.transforms import Mixing, cifar_val, imagenet_val
from tdaf.errors import RunError, UserError
from tdaf.model.backbones.mobilenet import mobilenet
from tdaf.model.backbones.resnet import resnet
from tdaf.model.backbones.vgg import vgg
from tdaf.model.classifier import Classifier, LinearHead
from tdaf.model.normalise import Normalise
from tdaf.model.staged import Staged

MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]


class Images:
    """Six images of 8 x 8, each of one value; the label is the place modulo `classes`."""

    skipped = 1

    def __init__(self, classes: int) -> None:
        self.classes = classes

    def __len__(self) -> int:
        return 6

    def name(self, index: int) -> str:
        return f"image {index}"

    def read(self, index: int) -> tuple[Tensor, int]:
        return torch.full((3, 8, 8), 40 * index, dtype=torch.uint8), index % self.classes


class Source:
    def __init__(self, classes: list[str]) -> None:
        self.classes = classes

    def split(self, name: str) -> Images:
        return Images(len(self.classes))


def task(classes: int = 4, **settings: Any) -> Classification:
    names = [f"class {k}" for k in range(classes)]
    views = {"1crop": cifar_val(), "10crop": imagenet_val(size=6, short_side=8, crops=10)}
    return Classification(Source(names), cifar_val(), views, MEAN, STD, **settings)


def body(width: int = 5, classifier: Any = None) -> Staged:
    return Staged([nn.Conv2d(3, 4, 3), nn.Conv2d(4, width, 2)], [4, width], [1, 1], classifier=classifier)


PUBLISHED = [
    (lambda: resnet(50), "published", 25_557_032, "fc.weight"),
    (lambda: vgg(16), "published", 138_357_544, "classifier.0.weight"),
    (lambda: vgg(16), "linear", 15_227_688, "fc.weight"),
    (lambda: mobilenet(), "published", 4_231_976, "fc.weight"),
]


@pytest.mark.parametrize(("backbone", "head", "parameters", "first"), PUBLISHED)
def test_parameters_and_keys(backbone: Any, head: str, parameters: int, first: str) -> None:
    with torch.device("meta"):
        network = task(1000, head=head).network(backbone(), lambda staged: staged)
    assert sum(p.numel() for p in network.parameters()) == parameters
    keys = list(network.state_dict())
    assert all(key.startswith(("body.stages.", "head.")) for key in keys)
    assert [key for key in keys if key.startswith("head.")][0] == f"head.{first}"


def test_head_follows_the_body_that_tdaf_gives() -> None:
    def published(width: int, classes: int) -> nn.Module:
        return nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(4 * width, classes))

    wide = lambda staged: body(9, staged.classifier)  # noqa: E731
    assert task().network(body(), wide).head.fc.in_features == 9
    assert task().network(body(classifier=published), wide).head[2].in_features == 36
    assert isinstance(task(head="linear").network(body(classifier=published), wide).head, LinearHead)
    assert task(dropout=0.3).network(body(), wide).head.dropout.p == 0.3
    with pytest.raises(UserError, match="dropout=0.3.*head=linear"):
        task(dropout=0.3).network(body(classifier=published), wide)


def test_normalise_equals_torchvisions() -> None:
    x = torch.randint(0, 256, (2, 3, 5, 4), dtype=torch.uint8)
    expected = torchvision.transforms.functional.normalize(x.float() / 255, MEAN, STD)
    normalise = Normalise(MEAN, STD)
    torch.testing.assert_close(normalise(x), expected, atol=1e-6, rtol=1e-6)
    assert torch.equal(normalise(x.float()), normalise(x)) and not normalise.state_dict()
    assert normalise(x.to(memory_format=torch.channels_last)).is_contiguous(memory_format=torch.channels_last)
    clip = x[:, :, None].expand(2, 3, 7, 5, 4)
    torch.testing.assert_close(Normalise(MEAN, STD, dims=3)(clip), expected[:, :, None].expand(2, 3, 7, 5, 4))
    assert normalise.to(torch.bfloat16)(x).dtype == torch.bfloat16


def test_views_are_samples_to_the_network() -> None:
    network = task().network(body(), lambda staged: staged)
    x = torch.randint(0, 256, (2, 10, 3, 8, 8), dtype=torch.uint8)
    logits = network(x)
    assert logits.shape == (2, 10, 4)
    torch.testing.assert_close(logits[1], network(x[1]))
    volume = Staged([nn.Conv3d(3, 5, 1)], [5], [1], dims=3)
    clips = Classifier(volume, LinearHead(5, 4), Normalise(MEAN, STD, dims=3))
    assert clips(torch.zeros(2, 3, 4, 6, 6)).shape == (2, 4) and clips(torch.zeros(2, 7, 3, 4, 6, 6)).shape == (2, 7, 4)


@pytest.mark.parametrize("kind", ["mixup", "cutmix"])
def test_mixing_equals_torchvisions(kind: str) -> None:
    images = torch.randint(0, 256, (5, 3, 17, 12), dtype=torch.uint8)
    labels = torch.tensor([3, 1, 0, 2, 2])
    cut = 0
    for seed in range(12):
        torch.manual_seed(seed)
        batch = Mixing(**{"mixup": 0.0, "cutmix": 0.0, kind: 0.8})(images, labels)
        weight = float(batch["mixed_weight"][0])
        assert torch.equal(batch["mixed_label"], torch.tensor([2, 3, 1, 0, 2])) and torch.equal(batch["label"], labels)
        assert batch["mixed_weight"].shape == (5,) and (batch["mixed_weight"] == weight).all()
        others = images.roll(1, 0)
        if kind == "mixup":
            torch.manual_seed(seed)
            theirs = torchvision.transforms.v2.MixUp(alpha=0.8, num_classes=4)(images.float(), labels)
            assert (batch["input"] - theirs[0]).abs().max() <= 0.5 + 1e-4
            hot = nn.functional.one_hot(labels, 4)
            torch.testing.assert_close((1 - weight) * hot + weight * hot.roll(1, 0), theirs[1])
        else:
            taken = (batch["input"] == others).all(1) & ~(batch["input"] == images).all(1)
            assert ((batch["input"] == others) | (batch["input"] == images)).all()
            rows, columns = taken[0].any(1).sum(), taken[0].any(0).sum()
            assert taken[0].sum() == rows * columns  # a box
            assert weight == pytest.approx(int(taken[0].sum()) / (17 * 12))
            cut += int(rows > 0)
    assert kind == "mixup" or cut > 6


def test_mixup_and_cutmix_take_turns() -> None:
    images = torch.tensor([0, 200], dtype=torch.uint8).view(2, 1, 1, 1).expand(2, 3, 16, 16).contiguous()
    torch.manual_seed(0)
    blended = 0
    for _ in range(200):
        mixed = Mixing(1.0, 1.0)(images, torch.tensor([0, 1]))["input"]
        blended += bool(((mixed != 0) & (mixed != 200)).any())
    assert 70 < blended < 130


def test_losses_written_out() -> None:
    logits = torch.randn(3, 4)
    label, other, weight = torch.tensor([0, 3, 2]), torch.tensor([2, 0, 3]), torch.tensor([0.2, 0.2, 0.7])
    expected = 0.0
    for i in range(3):
        target = np.full(4, 0.1 / 4)
        target[label[i]] += 0.9 * (1 - float(weight[i]))
        target[other[i]] += 0.9 * float(weight[i])
        p = np.exp(logits[i].double().numpy())
        expected -= float((target * np.log(p / p.sum())).sum()) / 3
    smoothed = task(label_smoothing=0.1)
    losses = smoothed.losses(logits, {"label": label, "mixed_label": other, "mixed_weight": weight})
    assert list(losses) == ["cross_entropy"] and float(losses["cross_entropy"]) == pytest.approx(expected, rel=1e-5)
    plain = smoothed.losses(logits.bfloat16(), {"label": label})["cross_entropy"]
    reference = nn.CrossEntropyLoss(label_smoothing=0.1)(logits.bfloat16().float(), label)
    assert plain.dtype == torch.float32 and torch.allclose(plain, reference)


@pytest.mark.parametrize(("classes", "views"), [(3, 0), (7, 0), (7, 10), (1, 0)])
def test_accuracy_by_brute_force(classes: int, views: int) -> None:
    torch.manual_seed(classes)
    shape = (40, views, classes) if views else (40, classes)
    outputs = torch.randint(-2, 3, shape).float()  # few values: many ties
    labels = torch.randint(0, classes, (40,))
    evaluator = task(classes, protocol="10crop" if views else "1crop").evaluator()
    records = []
    for part in (slice(0, 33), slice(33, 40)):
        records += evaluator.update(outputs[part], {"label": labels[part]})
    top1, top5, loss = 0, 0, 0.0
    for row, label in zip(outputs.double().numpy(), labels.tolist(), strict=True):
        p = np.exp(row) / np.exp(row).sum(-1, keepdims=True)
        p = p.mean(0) if views else p
        better = sum(bool(q > p[label] + 1e-9) for q in p)
        rank = better + sum(abs(q - p[label]) <= 1e-9 for q in p[:label])
        top1, top5, loss = top1 + (rank == 0), top5 + (rank < 5), loss - np.log(p[label])
    got = evaluator.compute(records)
    if views:  # means over views tie only by chance in float32
        assert abs(got["top1"] - 100 * top1 / 40) <= 2.5 and abs(got["top5"] - 100 * top5 / 40) <= 2.5
    else:
        assert got["top1"] == 100 * top1 / 40 and got["top5"] == 100 * top5 / 40
    assert got["loss"] == pytest.approx(loss / 40, rel=1e-5) and set(got) == {"top1", "top5", "loss"}
    assert len(records) == 40 and evaluator.protocol == ("10crop" if views else "1crop")
    with pytest.raises(RunError, match="no sample"):
        evaluator.compute([])


def test_answers_and_their_document(tmp_path: Path) -> None:
    logits = torch.tensor([[0.0, 3, 1, 2], [5, 0, 0, 0]])
    ours = task()
    answers = ours.postprocess(logits, {})
    assert [entry["class"] for entry in answers[0]["top5"]] == ["class 1", "class 3", "class 2", "class 0"]
    for answer, row in zip(answers, logits.softmax(1), strict=True):
        got = {entry["class"]: entry["probability"] for entry in answer["top5"]}
        assert got == pytest.approx({f"class {k}": float(p) for k, p in enumerate(row)})
    assert answers[0]["text"] == "class 1 64.4%, class 3 23.7%, class 2 8.7%, class 0 3.2%"
    found = [(tmp_path / "a.jpg", None, answers[:1]), (tmp_path / "b.mp4", 3, answers[1:])]
    assert ours.to_json(found) == {
        "predictions": [
            {"file": str(tmp_path / "a.jpg"), "top5": answers[0]["top5"]},
            {"file": str(tmp_path / "b.mp4"), "frame": 3, "top5": answers[1]["top5"]},
        ]
    }


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"protocol": "5crop"}, "protocol=5crop: this data set has 1crop, 10crop"),
        ({"head": "mlp"}, "^head=mlp: give published or linear"),
        ({"mixup": float("inf")}, "^mixup=inf: give 0 .off. or the positive alpha"),
    ],
)
def test_settings_that_cannot_be(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        task(**settings)


def test_training_loads_neither_a_decoder_of_videos_nor_the_demos_renderer(tmp_path: Path) -> None:
    """All of a training on real data but the engine, which knows no task and draws nothing."""
    for folder in ("train/a", "train/b", "val/a", "val/b"):
        (tmp_path / folder).mkdir(parents=True)
        torchvision.io.write_png(torch.zeros(3, 9, 9, dtype=torch.uint8), str(tmp_path / folder / "x.png"))
    code = """
import sys, torch, tdaf.cli.build, tdaf.engine.trainer
from tasks.classification.folder import ImageFolder
from tasks.classification.task import Classification
from tasks.classification.transforms import imagenet_train, imagenet_val
from tdaf.model.backbones.resnet import resnet
task = Classification(ImageFolder(sys.argv[1]), imagenet_train(size=9, short_side=[9, 12]),
                      {"1crop": imagenet_val(size=9, short_side=9)}, [0.5] * 3, [0.5] * 3)
network, samples = task.network(resnet(18), lambda body: body).eval(), task.dataset("train")
batch = samples.collate([samples[0], samples[1]])
outputs = network(batch["input"])
task.losses(outputs, batch), task.visualize(outputs, batch), task.evaluator().update(outputs, batch)
loaded = {"av", "tdaf.demo.scene", "tdaf.demo.action", "tdaf.media.video"} & set(sys.modules)
assert not loaded, loaded"""
    assert subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False).returncode == 0
