"""Every setting that ships against values that mean nothing: one line, or the value is meaningful; never a trace."""

from __future__ import annotations

import pytest
import torch

from tdaf.build import make
from tdaf.cli import build
from tdaf.cli.compose import Config, compose, flat, overridden
from tdaf.errors import UserError

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
