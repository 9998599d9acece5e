"""The loop itself: precision, accumulation, clipping, averaging, faults, and one run equal to a loop written by hand."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_run import ROOT, ColourTask, Pictures, little, run, same, trained, trainer
from torch import Tensor, nn

from tdaf.engine import checkpoint, seeds
from tdaf.engine.loader import Loader, TrainingOrder
from tdaf.engine.precision import Precision, float32
from tdaf.engine.schedule import Schedule, cosine
from tdaf.engine.settings import Settings
from tdaf.errors import RunError, UserError


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


class Exploding(ColourTask):
    def __init__(self, sample: int) -> None:
        self.sample = sample

    def losses(self, outputs: Tensor, batch: dict[str, Any]) -> dict[str, Tensor]:
        found = super().losses(outputs, batch)
        if self.sample in batch["index"].tolist():
            found["size"] = found["size"] * torch.inf
        return found


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path: Path) -> None:
    made = trainer(tmp_path, checkpoint_every=2, log_every=50)
    order, step = iter(TrainingOrder(44, 8, seed=5)), 3
    samples = [i for _, i in [next(order) for _ in range(step)][-1]]
    made.task = Exploding(samples[5])
    with pytest.raises(RunError) as raised:
        run(made)  # it is found when the losses are read, which is before anything is saved
    said = str(raised.value)
    assert said.startswith(f"non-finite loss at step {step}: cross_entropy=") and "size=inf" in said
    assert f"samples {samples};" in said
    kept, _ = checkpoint.load_last(tmp_path / "checkpoints")
    assert kept is not None and kept["step"] == step - 1
    assert all(v.isfinite().all() for v in kept["network"].values())
    assert (tmp_path / "log.txt").read_text().splitlines()[-1].endswith(f"ended by RunError: {said}")


def test_weights_that_are_not_finite_are_not_saved(tmp_path: Path) -> None:
    made = trainer(tmp_path, checkpoint_every=1, log_every=1)
    network, calls = made.network, []

    def spoil(gradient: Tensor) -> Tensor:
        calls.append(1)
        return gradient * torch.inf if len(calls) == 3 else gradient

    network[0].weight.register_hook(spoil)  # the loss of step 3 is finite, and so is all that was logged
    with pytest.raises(RunError, match="non-finite weights at step 3; the checkpoint before is kept"):
        run(made)
    kept, _ = checkpoint.load_last(tmp_path / "checkpoints")
    assert kept is not None and kept["step"] == 2


def test_a_batch_of_which_nothing_can_be_read_ends_the_run(tmp_path: Path) -> None:
    made = trainer(tmp_path, train=Pictures(44, bad=tuple(range(44))), max_bad=100)
    with pytest.raises(RunError, match="not one sample of a batch could be read"):
        run(made)


def test_bad_samples_up_to_max_bad_are_trained_around(tmp_path: Path) -> None:
    made = run(trainer(tmp_path, train=Pictures(44, bad=(3,)), val=Pictures(21, bad=(4, 20)), max_bad=2))
    assert made.last is not None and made.last.samples == 19 and made.last.skipped == 2
    assert str(made.last).endswith("(counting, 19 samples, 2 skipped)")
    with pytest.raises(RunError, match=r"cannot read picture-20\.jpg"):
        run(trainer(tmp_path / "more", val=Pictures(21, bad=(4, 20)), max_bad=1))


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
        run(trainer(tmp_path / str(c), network=lambda: little(True, 0.0), max_steps=4, compile=c)) for c in (False, True)
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


HANGING = """
import sys, time
from pathlib import Path
sys.path.insert(0, "tests")
from tiny_run import Pictures, run, trainer

class Hanging(Pictures):
    def __getitem__(self, index):
        if index == 30:
            time.sleep(600)
        return super().__getitem__(index)

run(trainer(Path(sys.argv[1]), train=Hanging(44), workers=int(sys.argv[2]), hang_timeout=1.0))
"""


@pytest.mark.parametrize("workers", [0, 1])
def test_a_rank_that_hangs_says_where_and_ends(tmp_path: Path, workers: int) -> None:
    done = subprocess.run(
        [sys.executable, "-c", HANGING, str(tmp_path), str(workers)], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 1, done.stderr
    said = done.stderr.splitlines()[-1]
    assert said.startswith("error: rank 0: no step within trainer.hang_timeout=1 s; files being read: picture-30.jpg; stacks: ")
    stacks = (tmp_path / "hang-rank0.txt").read_text()
    assert stacks.startswith(said) and "_one_step" in stacks
    assert checkpoint.load_last(tmp_path / "checkpoints")[1] == ""


def test_averaging_starts_at_the_first_weights_and_survives_a_copy(tmp_path: Path) -> None:
    made = run(trainer(tmp_path, ema=0.5, max_steps=1))
    assert made.ema is not None
    assert same(weights(made.ema.module), weights(made.network))
    assert same(weights(copy.deepcopy(made.ema).module), weights(made.network))
