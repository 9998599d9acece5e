"""Every choice with every other, and every setting with values that mean nothing: it starts, or is refused by a line.
And recipe=check: everything once, and one batch by heart."""

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from commands import call

from tasks.classification.task import Classification
from tdaf.build import make
from tdaf.cli import build, rehearsal
from tdaf.cli.compose import Config, compose, flat, group_options, overridden
from tdaf.errors import UserError

CHOICES: dict[str, list[str]] = {
    "task": group_options("task"),
    "attention": group_options("attention") or ["none", "se"],
    "backbone": ["res18", "res50", "resx50", "vgg11", "mobile", "tiny"],  # one of a kind; test_config has all of them
    "recipe": group_options("recipe"),
    "schedule": group_options("schedule"),
    "optim": group_options("optim"),
    "tdaf": group_options("tdaf"),
    "stem": ["imagenet", "small", "cifar"],
    "dims": ["2", "3"],
    "flows": ["1", "3"],
}
# two samples of each task; 2D networks take images, 3D ones clips
INPUTS = {
    "imagenet": (2, 3, 64, 64),
    "cifar10": (2, 3, 32, 32),
    "coco_fcos": (2, 3, 128, 160),
    "coco_pose": (2, 3, 128, 96),
    "kinetics": (2, 3, 8, 64, 64),
}


def covering(choices: dict[str, list[str]]) -> list[dict[str, str]]:
    """Rows in which every pair of two settings' values occurs; greedy, always the same."""
    names = list(choices)
    open_pairs = {
        frozenset([(a, x), (b, y)])
        for a, b in itertools.combinations(names, 2)
        for x, y in itertools.product(choices[a], choices[b])
    }
    rows = []
    while open_pairs:
        row = dict(sorted(min(open_pairs, key=sorted)))
        for name in names:
            if name not in row:
                row[name] = max(
                    choices[name],
                    key=lambda value, name=name: sum(frozenset([(name, value), i]) in open_pairs for i in row.items()),
                )
        open_pairs -= {frozenset(pair) for pair in itertools.combinations(row.items(), 2)}
        rows.append(row)
    return rows


ROWS = covering(CHOICES)
# what makes a choice impossible, by words of the sentence that says so
REASONS = (
    "attention",
    "dims",
    "clips",
    "images",
    "stem",
    "stage",
    "flows",
    "gated",
    "backbone",
    "ResNet",
    "VGG",
    "Mobile",
    "recipe=night: there is none for task=",
    "recipe=search: there is none for task=",
)


def started(row: dict[str, str]) -> None:
    """As far as a run gets without samples: composed, built, one forward pass in the shapes of its task."""
    config = compose([f"{name}={value}" for name, value in row.items()])
    network: Any = rehearsal.choices(config)
    clips = len(INPUTS[row["task"]]) == 5
    if clips == (config["dims"] == 3):
        network(torch.empty(INPUTS[row["task"]], dtype=torch.uint8, device="meta"))


@pytest.mark.parametrize("part", range(6))
def test_every_choice_with_every_other(part: int) -> None:
    refused = 0
    for row in ROWS[part::6]:
        try:
            started(row)
        except UserError as error:
            refused += 1
            assert "\n" not in str(error) and any(word in str(error) for word in REASONS), f"{row}: {error}"
    assert refused < len(ROWS[part::6]), "nothing goes together"


@pytest.mark.parametrize("schedule", ["cosine", "constant", "plateau", "multistep"])
def test_what_the_user_names_wins_over_a_recipe(schedule: str) -> None:
    """The recipe's values are for the optimizer and the schedule that it was written for."""
    for task, recipe in itertools.product(CHOICES["task"], ("paper", "modern", "demo")):
        config = compose([f"task={task}", f"recipe={recipe}", f"schedule={schedule}", "optim=adamw"])
        assert config["schedule"]["decay"]["_target_"].lower().endswith(schedule)
        assert config["optim"]["factory"]["_target_"] == "torch.optim.AdamW"
        assert config["optim"]["lr"] <= 0.003, "a rate of SGD's is none of AdamW's"
        build.optimizer(config)
        make(config["schedule"], "schedule")(steps_per_epoch=10, steps=100)


CONFIGS = {
    "imagenet": ["task=imagenet", "backbone=tiny"],
    "cifar10": ["task=cifar10", "backbone=tiny", "schedule=plateau"],
    "coco_fcos": ["task=coco_fcos", "backbone=tiny", "pretrained=null", "optim=adamw"],
    "coco_pose": ["task=coco_pose", "backbone=tiny", "schedule=cosine", "pretrained=null"],
    "kinetics": ["task=kinetics", "recipe=demo"],
}
VALUES = ("null", "''", "[]", "{}", "[a,b]", "{a: 1}", "text", "-1", "1e12", "1000000000000", "nan", "inf", "true")


class Names:
    classes = ["a", "b"]
    keypoints = ["nose", "left_eye", "right_eye"]
    skeleton = None


def built(config: Config, key: str) -> None:
    """What the setting is for, without data."""
    part = key.partition(".")[0]
    if part == "trainer":
        build.settings(config)
    elif part == "optim":
        build.optimizer(config)
    elif part in ("schedule", "milestones"):
        schedule = make(config["schedule"], "schedule")(steps_per_epoch=10, steps=100)
        assert all(0 <= schedule.factor(step) <= 1000 for step in (0, 1, 99))
    elif part in ("task", "tdaf", "backbone", "anar", "flows", "eta", "stem", "dims", "width", "gated", "depthwise"):
        task = make(config["task"], "task", data=Names())
        if part != "task":
            with torch.device("meta"):
                build.network(config, task)


@pytest.mark.parametrize("name", CONFIGS)
def test_no_value_ends_in_a_stack_trace(name: str) -> None:
    whole = compose([*CONFIGS[name], "run_dir=run", "gpus=0"])
    refused = accepted = 0
    traces = []
    for key in flat(whole):
        if key in ("name", "recipe") or key.endswith(("_target_", "_partial_")):
            continue
        if name != "imagenet" and not key.startswith(("task.", "data.", "schedule.decay.", "optim.factory.")):
            continue  # the same for all
        for value in VALUES:
            try:
                config = overridden(whole, [f"{key}={value}"])
                built(config, key)
                accepted += 1
            except UserError as error:
                assert "\n" not in str(error) and len(str(error)) < 500, f"{key}={value}: {error}"
                refused += 1
            except Exception as error:
                traces.append(f"{key}={value}: {type(error).__name__}: {error}")
    assert not traces, "\n".join(traces)
    assert refused > accepted > 10


@pytest.mark.parametrize(
    "setting",
    "optim.lr=1e9 optim.lr=-1 optim.factory.momentum=1e12 optim.bias_lr=-1 schedule.decay.gamma=-1 trainer.batch=1e18 "
    "schedule.warmup_factor=-1 loader.workers=1000000000000 task.train_transform.size=1000000000 seed=-1 "
    "task.train_transform.short_side=[1] trainer.clip=0 trainer.epochs=inf".split(),
)
def test_nonsense_is_refused(setting: str) -> None:
    with pytest.raises(UserError, match="give"):
        compose(["task=imagenet", setting])


WORDS = (
    "recipe=check backbone=tiny gpus=0 loader.workers=0 task.train_transform.size=32 task.val_transforms.1crop.size=32"
)


@pytest.mark.parametrize("task", ["task=imagenet", "task=coco_pose task.size=[64,64] task.deconvolutions=[32,32,32]"])
def test_everything_works(task: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.chdir(tmp_path)
    words = WORDS if "imagenet" in task else WORDS.partition(" task.train")[0]
    assert call(monkeypatch, [*task.split(), *words.split()]) == 0
    said = capsys.readouterr().out
    assert "one batch learnt by heart: loss " in said and "everything works" in said
    assert [path.name for path in tmp_path.iterdir()] == ["data"]  # drawn; no run folder


def test_what_cannot_be_learnt_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    def constant(self: Any, outputs: torch.Tensor, batch: Any) -> dict[str, torch.Tensor]:
        return {"cross_entropy": outputs.square().mean() * 0 + 2.0}

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(Classification, "losses", constant)
    monkeypatch.setattr(rehearsal, "SECONDS", 1)
    assert call(monkeypatch, ["task=imagenet", *WORDS.split()]) == 1
    assert "loss 2 to 2 in" in (said := capsys.readouterr().err) and "look at the labels" in said
