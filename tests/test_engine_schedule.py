"""Learning rates and parameter groups, against torch's own schedulers and a network counted by hand."""

from __future__ import annotations

import functools
import io
import math
import random

import pytest
import torch
from torch import nn
from torch.optim import lr_scheduler

from tdaf.engine import optim
from tdaf.engine.schedule import Plateau, Schedule, constant, cosine, multistep
from tdaf.errors import UserError

STEPS, PER_EPOCH = 60, 5


def torchs(make: object) -> list[float]:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = make(optimizer)
    rates = []
    for _ in range(STEPS):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return rates


def ours(decay: object, **settings: object) -> list[float]:
    schedule = Schedule(decay, steps_per_epoch=PER_EPOCH, steps=STEPS, **settings)
    return [schedule.factor(step) for step in range(STEPS)]


def test_multistep_is_torchs() -> None:
    expected = torchs(lambda o: lr_scheduler.MultiStepLR(o, [20, 45], gamma=0.2))
    assert ours(multistep([4, 9], 0.2)) == pytest.approx(expected)
    assert ours(multistep([20, 45], 0.2), unit="step") == pytest.approx(expected)


@pytest.mark.parametrize("floor", [0.0, 0.1])
def test_cosine_is_torchs(floor: float) -> None:
    expected = torchs(lambda o: lr_scheduler.CosineAnnealingLR(o, STEPS, eta_min=floor))
    assert ours(cosine(floor)) == pytest.approx(expected)
    assert ours(cosine(floor), unit="step") == pytest.approx(expected)


def test_linear_warm_up_is_torchs() -> None:
    def both(o: torch.optim.Optimizer) -> lr_scheduler.LRScheduler:
        rise = lr_scheduler.LinearLR(o, start_factor=0.1, total_iters=12)
        return lr_scheduler.ChainedScheduler([rise, lr_scheduler.MultiStepLR(o, [20])])

    expected = torchs(both)
    assert ours(multistep([4]), warmup_epochs=2, warmup_steps=2, warmup_factor=0.1) == pytest.approx(expected)


def test_constant_warm_up_is_torchs() -> None:
    expected = torchs(lambda o: lr_scheduler.ConstantLR(o, 1 / 3, total_iters=7))
    assert ours(constant(), warmup="constant", warmup_steps=7, warmup_factor=1 / 3) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"warmup": "slow"}, "warmup=slow"),
        ({"unit": "day"}, "unit=day"),
        ({"warmup_steps": -1}, "warmup_steps=-1: give 0 or more"),
    ],
)
def test_settings_that_cannot_be_are_refused(settings: dict[str, object], said: str) -> None:
    with pytest.raises(UserError, match=said):
        ours(constant(), **settings)
    with pytest.raises(UserError, match="rising order"):
        multistep([60, 30])


class Mixed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)  # weight 108, bias 4
        self.depthwise = nn.Conv2d(4, 4, 3, groups=4, bias=False)  # 36
        self.grouped = nn.Conv2d(4, 4, 1, groups=2, bias=False)  # 8
        self.norm = nn.BatchNorm2d(4)  # 4 + 4
        self.group_norm = nn.GroupNorm(2, 4)  # 4 + 4
        self.frozen = nn.Linear(5, 5).requires_grad_(False)
        self.again = self.conv  # shared: counted once


def sizes(**settings: object) -> dict[tuple[float, float], int]:
    """(learning rate, weight decay): number of values."""
    sgd = functools.partial(torch.optim.SGD, momentum=0.9)
    made = optim.optimizer(Mixed(), sgd, **{"lr": 0.1, "weight_decay": 0.01, "batch": 8, **settings})
    return {(g["lr"], g["weight_decay"]): sum(p.numel() for p in g["params"]) for g in made.param_groups}


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, {(0.1, 0.01): 172}),
        ({"norm_weight_decay": False}, {(0.1, 0.01): 156, (0.1, 0.0): 16}),
        ({"bias_weight_decay": False}, {(0.1, 0.01): 168, (0.1, 0.0): 4}),
        ({"depthwise_weight_decay": False}, {(0.1, 0.01): 136, (0.1, 0.0): 36}),
        ({"bias_lr": 2.0, "bias_weight_decay": False}, {(0.1, 0.01): 168, (0.2, 0.0): 4}),
        (
            {"bias_lr": 2.0, "bias_weight_decay": False, "norm_biases": True},
            {(0.1, 0.01): 160, (0.2, 0.0): 12},
        ),
        ({"base_batch": 32}, {(0.025, 0.01): 172}),
    ],
)
def test_parameter_groups(settings: dict[str, object], expected: dict[tuple[float, float], int]) -> None:
    assert sizes(**settings) == expected


def test_the_rate_of_every_group_follows_the_factor() -> None:
    made = optim.optimizer(Mixed(), torch.optim.SGD, lr=0.1, batch=16, base_batch=8, bias_lr=2.0)
    assert optim.set_rate(made, 0.5) == 0.1
    assert [g["lr"] for g in made.param_groups] == [0.1, 0.2]
    optim.set_rate(made, 1.0)
    assert [g["lr"] for g in made.param_groups] == [0.2, 0.4]
    assert optim.describe(made) == "SGD lr 0.2 = 0.1 x 16/8"


def test_mistakes_are_said_in_one_line() -> None:
    with pytest.raises(UserError, match=r"^lr=0: give a number above 0$"):
        sizes(lr=0)
    with pytest.raises(UserError, match=r"^weight_decay=-1: give 0 or more$"):
        sizes(weight_decay=-1)
    with pytest.raises(UserError, match="everything is frozen"):
        optim.optimizer(nn.Linear(2, 2).requires_grad_(False), torch.optim.SGD, lr=1.0, batch=1)


def losses(seed: int, count: int = 80) -> list[float]:
    """Falling, then by less than the threshold and with noise, then level; one is not a number."""
    numbers = random.Random(seed)
    values = [max(1.0, 3 - 0.2 * i) * (1 - 2e-5 * min(i, 50)) + numbers.choice([0, 0, 0.1]) for i in range(count)]
    values[30] = math.nan
    return values


@pytest.mark.parametrize(("patience", "threshold"), [(0, 1e-4), (3, 1e-4), (10, 1e-4), (3, 0.0), (3, 0.05)])
def test_plateau_is_torchs(patience: int, threshold: float) -> None:
    schedule = Schedule(Plateau(patience=patience, gamma=0.5, threshold=threshold), steps_per_epoch=5, steps=400)
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    torchs = lr_scheduler.ReduceLROnPlateau(optimizer, factor=0.5, patience=patience, threshold=threshold, eps=0)
    factors = []
    for epoch, loss in enumerate(losses(patience)):
        schedule.step({"top1": 50.0, "loss": loss})
        torchs.step(loss)
        factors.append(schedule.factor(5 * epoch + 3))
        assert factors[-1] == optimizer.param_groups[0]["lr"]
    assert factors[0] == 1 and factors[-1] < 1


def test_a_plateau_goes_on_where_its_checkpoint_was_written() -> None:
    make = functools.partial(Schedule, steps_per_epoch=5, steps=400, warmup_steps=10)
    whole, values = make(Plateau(patience=2)), losses(1)
    for stop in (0, 17, 33):
        for loss in values[:stop]:
            whole.step({"loss": loss})
        file = io.BytesIO()
        torch.save(whole.state_dict(), file)
        file.seek(0)
        other = make(Plateau(patience=2))
        other.load_state_dict(torch.load(file, weights_only=True))
        for loss in values[stop:]:
            whole.step({"loss": loss})
            other.step({"loss": loss})
            assert [whole.factor(s) for s in (4, 90)] == [other.factor(s) for s in (4, 90)]
        assert whole.factor(90) < 1
        whole = make(Plateau(patience=2))


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"patience": -1}, r"patience=-1: give 0 or more"),
        ({"gamma": 1.0}, r"gamma=1.0: give a factor between 0 and 1"),
        ({"threshold": 1.0}, "threshold=1: give less than 1"),
    ],
)
def test_plateaus_that_cannot_be_are_refused(settings: dict[str, float], said: str) -> None:
    with pytest.raises(UserError, match=said):
        Plateau(**settings)
    with pytest.raises(UserError, match=r"value=loss: the evaluation gives AP, AP50"):
        Plateau().step({"AP": 0.3, "AP50": 0.5})
