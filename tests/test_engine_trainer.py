"""The loop itself: equal to one written by hand; precision, accumulation, clipping, averaging, evaluation."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_run import ColourTask, Pictures, little, run, same, trained, trainer
from torch import Tensor, nn

from tdaf.engine import checkpoint, seeds
from tdaf.engine.loader import Loader
from tdaf.engine.order import TrainingOrder
from tdaf.engine.precision import Precision, float32
from tdaf.engine.schedule import Schedule, cosine
from tdaf.engine.settings import Settings
from tdaf.errors import UserError


def weights(network: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in network.state_dict().items()}


def events(folder: Path, split: str) -> list[dict[str, Any]]:
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [event for event in map(json.loads, lines) if event["split"] == split]


def test_a_run_equals_a_loop_written_by_hand(tmp_path: Path) -> None:
    made = run(trainer(tmp_path, ema=0.8, clip=0.5, max_steps=7, channels_last=False))
    seeds.set_all(1)
    network, steps = little(), 7
    seeds.set_all(seeds.mix(1, 0))
    optimizer = torch.optim.SGD(network.parameters(), lr=0.05, momentum=0.9)
    schedule = Schedule(cosine(), steps_per_epoch=5, steps=steps, warmup_steps=2)
    averaged, losses = None, []
    for step, batch in zip(range(steps), Loader(Pictures(44), TrainingOrder(44, 8, seed=5), seed=5), strict=False):
        optimizer.param_groups[0]["lr"] = 0.05 * schedule.factor(step)
        loss = sum(ColourTask().losses(network(batch["input"]), batch).values())
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), 0.5)
        optimizer.step()
        losses.append(loss.item())
        own = dict(network.named_parameters())
        averaged = {k: averaged[k] * 0.8 + v.detach() * 0.2 if averaged else v.detach().clone() for k, v in own.items()}
    assert same(weights(made.network), weights(network))
    assert made.ema is not None
    for name, value in made.ema.module.named_parameters():
        torch.testing.assert_close(value, averaged[name])
    logged = events(tmp_path, "train")
    assert [event["step"] for event in logged] == [3, 4, 5, 6, 7]
    assert logged[0]["loss"] == pytest.approx(sum(losses[:3]) / 3, rel=1e-5)
    assert logged[0]["loss"] == pytest.approx(logged[0]["cross_entropy"] + logged[0]["size"])
    assert [event["step"] for event in events(tmp_path, "val")] == [5, 7]


def test_what_is_evaluated_is_the_average(tmp_path: Path) -> None:
    made = run(trainer(tmp_path, ema=0.5, train=Pictures(44, noise=0.3), max_steps=10))
    best = checkpoint.load(tmp_path / "checkpoints" / checkpoint.BEST)
    assert made.ema is not None and made.best["step"] == best["step"]
    if best["step"] == 10:
        assert same(best["network"], weights(made.ema.module))
    assert not same(weights(made.ema.module), weights(made.network))
    assert made.last is not None and made.last.samples == 21 and made.last.values["places"] == 210


def test_it_learns(tmp_path: Path) -> None:
    made = run(trainer(tmp_path, train=Pictures(44, noise=0.1), val=Pictures(21, noise=0.1), max_steps=40))
    assert made.best["value"] > 0.9


def test_two_parts_give_the_step_of_one(tmp_path: Path) -> None:
    one, two = (
        run(trainer(tmp_path / str(n), network=lambda: little(False, 0.0), max_steps=4, accumulate=n)) for n in (1, 2)
    )
    for a, b in zip(one.network.parameters(), two.network.parameters(), strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-5)


def test_clipping_bounds_the_step(tmp_path: Path) -> None:
    made = trainer(tmp_path, clip=1e-3, lr=1.0, factory=torch.optim.SGD, max_steps=3)
    before = [p.detach().clone() for p in made.network.parameters()]
    run(made)
    moved = torch.cat([(p - b).flatten() for p, b in zip(made.network.parameters(), before, strict=True)]).norm()
    assert 0 < moved <= 3e-3


def test_the_same_run_twice_is_the_same(tmp_path: Path) -> None:
    for name in "ab":
        run(trainer(tmp_path / name, deterministic=True, ema=0.9))
    torch.use_deterministic_algorithms(False)
    assert same(trained(tmp_path / "a"), trained(tmp_path / "b"))


def test_bf16_on_the_cpu(tmp_path: Path) -> None:
    seen = []
    made = trainer(tmp_path, precision="bf16", max_steps=4)
    made.network[-1].register_forward_hook(lambda module, inputs, output: seen.append(output.dtype))
    run(made)  # ColourTask asserts float32
    assert set(seen) == {torch.bfloat16}
    assert all(p.dtype == torch.float32 and p.isfinite().all() for p in made.network.parameters())


def test_outputs_of_any_structure_become_float32() -> None:
    half = torch.ones(2, dtype=torch.bfloat16)
    out = float32({"a": [half, half.long()], "b": (half, None)})
    assert out["a"][0].dtype == out["b"][0].dtype == torch.float32
    assert out["a"][1].dtype == torch.int64 and out["b"][1] is None


def test_kernels_are_channels_last() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv3d(3, 4, 3), nn.Linear(2, 2))
    Precision("fp32", torch.device("cpu")).place(network)
    assert network[0].weight.is_contiguous(memory_format=torch.channels_last)
    assert network[1].weight.is_contiguous(memory_format=torch.channels_last_3d)
    with pytest.raises(UserError, match="trainer.precision=int8"):
        Precision("int8", torch.device("cpu"))


@pytest.mark.parametrize("every", [0, 0.5, 2])
def test_evaluation_comes_when_it_was_asked_for(tmp_path: Path, every: float) -> None:
    run(trainer(tmp_path, max_steps=13, evaluate_every=every))
    expected = {0: [13], 0.5: [2, 4, 6, 8, 10, 12, 13], 2: [10, 13]}[every]
    assert [event["step"] for event in events(tmp_path, "val")] == expected


def test_pictures_do_not_change_the_weights(tmp_path: Path) -> None:
    for name, pictures in (("without", 0), ("with", 3)):
        run(trainer(tmp_path / name, pictures=pictures))
    assert same(trained(tmp_path / "without"), trained(tmp_path / "with"))
    assert list((tmp_path / "with" / "tensorboard").glob("events*"))


def test_the_schedule_is_that_of_all_epochs(tmp_path: Path) -> None:
    made = trainer(tmp_path, epochs=2.5, max_steps=4)
    assert (made.steps, made.schedule.length) == (4, 2.6)  # 12.5 steps are 13, at 5 an epoch
    assert trainer(tmp_path, epochs=2, max_steps=None).steps == 10


def test_compiled_weights_are_those_of_an_eager_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compile, backends = nn.Module.compile, []

    def with_a_light_backend(module: nn.Module) -> None:
        backends.append("aot_eager")
        compile(module, backend="aot_eager")

    monkeypatch.setattr(nn.Module, "compile", with_a_light_backend)  # the default one calls a C++ compiler for 20 s
    eager, compiled = (
        run(trainer(tmp_path / str(c), network=lambda: little(True, 0.0), max_steps=4, compile=c))
        for c in (False, True)
    )
    assert backends == ["aot_eager"]
    assert compiled.network.state_dict().keys() == eager.network.state_dict().keys()
    for a, b in zip(compiled.network.parameters(), eager.network.parameters(), strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-5)


def test_a_checkpoint_of_another_network_is_refused(tmp_path: Path) -> None:
    run(trainer(tmp_path, max_steps=3))
    with pytest.raises(UserError, match="checkpoint is of another network"):
        trainer(tmp_path, network=lambda: nn.Sequential(nn.Flatten(), nn.Linear(192, 4)))


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"epochs": None}, "both null"),
        ({"batch": 0}, "trainer.batch=0"),
        ({"accumulate": 0}, "trainer.accumulate=0"),
        ({"ema": 1.0}, "trainer.ema=1.0"),
        ({"clip": -1.0}, "trainer.clip=-1.0"),
        ({"evaluate_every": -1}, "trainer.evaluate_every=-1"),
        ({"checkpoint_every": 0}, "trainer.checkpoint_every=0"),
    ],
)
def test_settings_that_cannot_be_are_refused(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        Settings(**settings)


def test_averaging_starts_at_the_first_weights_and_survives_a_copy(tmp_path: Path) -> None:
    made = run(trainer(tmp_path, ema=0.5, max_steps=1))
    assert made.ema is not None
    assert same(weights(made.ema.module), weights(made.network))
    assert same(weights(copy.deepcopy(made.ema).module), weights(made.network))
