"""Every choice with every other: whatever is chosen together starts, or is refused by a sentence about the choice."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch

from tdaf.build import make
from tdaf.cli import build, rehearsal
from tdaf.cli.compose import compose, group_options
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


def test_the_rows_cover_every_pair() -> None:
    seen = {frozenset(pair) for row in ROWS for pair in itertools.combinations(row.items(), 2)}
    for a, b in itertools.combinations(CHOICES, 2):
        assert all(frozenset([(a, x), (b, y)]) in seen for x, y in itertools.product(CHOICES[a], CHOICES[b]))
    assert len(ROWS) < 150


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
