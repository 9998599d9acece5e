"""The loop itself: equal to one written by hand; precision, accumulation, clipping, averaging, evaluation."""

import math
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_run import ColourTask, DrawingTask, Pictures, little, numbers, run, same, trained, trainer
from torch import Tensor, nn

from tdaf.engine import checkpoint, data, optim
from tdaf.engine.data import Loader, TrainingOrder
from tdaf.engine.evaluate import evaluate
from tdaf.engine.precision import Precision
from tdaf.engine.schedule import Schedule, cosine
from tdaf.engine.settings import LoaderSettings, Settings
from tdaf.engine.trainer import Trainer
from tdaf.errors import RunError, UserError


def weights(network: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in network.state_dict().items()}


def events(folder: Path, split: str) -> list[dict[str, Any]]:
    return [event for event in numbers(folder) if event["split"] == split]


def test_a_run_equals_a_loop_written_by_hand(tmp_path: Path) -> None:
    made = run(trainer(tmp_path, ema=0.8, clip=0.5, max_steps=7, channels_last=False))
    data.seed_everything(1)
    network, steps = little(), 7
    data.seed_everything(data.mix_seed(5, "rank", 0))
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
        own = {k: v.clone() for k, v in network.state_dict().items() if v.is_floating_point()}
        kept = min(0.8, (1 + step) / (10 + step))
        averaged = {k: averaged[k] * kept + v * (1 - kept) if averaged else v for k, v in own.items()}
    assert same(weights(made.network), weights(network))
    assert made.ema is not None
    state = weights(made.ema.module)
    for name, value in averaged.items():  # the running statistics too
        torch.testing.assert_close(state[name], value)
    assert state["1.num_batches_tracked"] == steps
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


def test_an_average_of_few_steps_is_not_their_beginning(tmp_path: Path) -> None:
    """With a decay that is constant 20 steps would leave 0.998 of the first weights in it."""
    quick = {"train": Pictures(44, noise=0.1), "val": Pictures(21, noise=0.1), "max_steps": 20, "lr": 0.2}
    made = run(trainer(tmp_path / "a", ema=0.9999, **quick))
    live = evaluate(made.network, made.task, made.val_set, batch=8).values["accuracy"]
    assert live > 0.5 and made.last is not None and made.last.values["accuracy"] > 0.8 * live
    assert "not averaged" not in (tmp_path / "a/log.txt").read_text()


def test_a_run_says_where_its_average_is_far_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In its first evaluations, and again without another step of training."""
    monkeypatch.setattr(optim.Average, "update", lambda self, network: None)  # it stays where it began
    quick = {"train": Pictures(44, noise=0.1), "val": Pictures(21, noise=0.1), "lr": 0.2}
    averaging = run(trainer(tmp_path / "a", ema=0.9, max_steps=25, **quick))
    lines = [line for line in (tmp_path / "a/log.txt").read_text().splitlines() if " val: " in line]
    told = ["weights that are not averaged have accuracy" in line for line in lines]
    assert len(told) == 5 and told[2] and not any(told[3:]), lines
    plain = run(trainer(tmp_path / "b", max_steps=25, **quick))
    assert same(weights(averaging.network), weights(plain.network))


def test_two_parts_give_the_step_of_one(tmp_path: Path) -> None:
    one, two = (
        run(trainer(tmp_path / str(n), network=lambda: little(False, 0.0), max_steps=4, accumulate=n)) for n in (1, 2)
    )
    for a, b in zip(one.network.parameters(), two.network.parameters(), strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-5)


def test_the_same_run_twice_is_the_same(tmp_path: Path) -> None:
    for name in "ab":
        run(trainer(tmp_path / name, deterministic=True, ema=0.9))
    assert same(trained(tmp_path / "a"), trained(tmp_path / "b"))
    assert not torch.are_deterministic_algorithms_enabled()


def test_a_users_own_deterministic_mode_is_left_on(tmp_path: Path) -> None:
    torch.use_deterministic_algorithms(True)
    try:
        run(trainer(tmp_path, max_steps=2))
        assert torch.are_deterministic_algorithms_enabled()
        assert not torch.is_deterministic_algorithms_warn_only_enabled()
    finally:
        torch.use_deterministic_algorithms(False)


def test_bf16_on_the_cpu(tmp_path: Path) -> None:
    seen = []
    made = trainer(tmp_path, precision="bf16", max_steps=4)
    made.network[-1].register_forward_hook(lambda module, inputs, output: seen.append(output.dtype))
    run(made)  # ColourTask asserts float32
    assert set(seen[:4]) == {torch.bfloat16}
    assert all(p.dtype == torch.float32 and p.isfinite().all() for p in made.network.parameters())


def test_kernels_are_channels_last() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv3d(3, 4, 3), nn.Linear(2, 2))
    Precision("fp32", torch.device("cpu")).place(network)
    assert network[0].weight.is_contiguous(memory_format=torch.channels_last)
    assert network[1].weight.is_contiguous(memory_format=torch.channels_last_3d)
    with pytest.raises(UserError, match="precision=int8"):
        Precision("int8", torch.device("cpu"))


@pytest.mark.parametrize("every", [0, 0.5, 2])
def test_evaluation_comes_when_it_was_asked_for(tmp_path: Path, every: float) -> None:
    run(trainer(tmp_path, max_steps=13, evaluate_every=every))
    expected = {0: [13], 0.5: [2, 4, 6, 8, 10, 12, 13], 2: [10, 13]}[every]
    assert [event["step"] for event in events(tmp_path, "val")] == expected


def test_pictures_do_not_change_the_weights(tmp_path: Path) -> None:
    for name, pictures in (("without", 0), ("with", 3)):
        run(trainer(tmp_path / name, pictures=pictures, task=DrawingTask()))
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
    (tmp_path / "summary.json").unlink()
    with pytest.raises(UserError, match="checkpoint is of another network"):
        run(trainer(tmp_path, max_steps=6, network=lambda: nn.Sequential(nn.Flatten(), nn.Linear(192, 4))))


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"epochs": None}, "both null"),
        ({"ema": 1.0}, "ema=1: give less than 1"),
        ({"evaluate_every": -1}, "evaluate_every=-1"),
        ({"workers": -1}, "workers=-1"),
    ],
)
def test_settings_that_cannot_be_are_refused(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        (LoaderSettings if "workers" in settings else Settings)(**settings)


class Reordered(ColourTask):
    """Gives its two losses in a changing order, or without one of them in the first batch whose samples are even."""

    def __init__(self, drop: bool = False) -> None:
        super().__init__()
        self.drop, self.batches = drop, 0

    def losses(self, outputs: Tensor, batch: dict[str, Any]) -> dict[str, Tensor]:
        self.batches += 1
        losses = super().losses(outputs, batch)
        if self.batches % 2:
            return losses
        return {"cross_entropy": losses["cross_entropy"]} if self.drop else dict(reversed(losses.items()))


def test_losses_are_added_by_name(tmp_path: Path) -> None:
    for name, task in (("plain", ColourTask()), ("reordered", Reordered())):
        run(trainer(tmp_path / name, task=task))
    plain, reordered = (events(tmp_path / name, "train") for name in ("plain", "reordered"))
    assert [e["cross_entropy"] for e in plain] == pytest.approx([e["cross_entropy"] for e in reordered])
    with pytest.raises(RunError, match="step 2 lacks the loss size"):
        run(trainer(tmp_path / "dropped", task=Reordered(drop=True)))


class Watched(nn.Module):
    """Notes the modes that its parts are in at every forward pass."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.teacher, self.modes = little(), nn.Dropout(), []

    def forward(self, x: Tensor) -> Tensor:
        self.modes.append((self.training, self.body.training, self.teacher.training))
        return self.body(x)


@pytest.mark.parametrize("frozen", [False, True])
def test_the_network_trains_in_train_mode_and_what_is_frozen_stays_so(tmp_path: Path, frozen: bool) -> None:
    network = Watched()
    if frozen:
        network.teacher.eval()
    else:
        network.eval()
    run(trainer(tmp_path, network=lambda: network, task=DrawingTask(), pictures=2, max_steps=12))
    training = [modes for modes in network.modes if modes[0]]
    assert len(training) == 12 and set(training) == {(True, True, not frozen)}
    assert (False, False, False) in network.modes


class Scored(ColourTask):
    """Its metric is the next of given values."""

    def __init__(self, values: list[float]) -> None:
        super().__init__()
        self.values = iter(values)

    def evaluator(self) -> Any:
        judge = super().evaluator()
        judge.compute = lambda records: {"accuracy": next(self.values)}
        return judge


@pytest.mark.parametrize(
    ("values", "best"),
    [
        ([math.nan, 0.5, 0.9, math.nan], 15),
        ([-1, math.nan, 0.2, 0.1], 15),
        ([0.5, math.nan, -1, 0.4], 5),
        ([math.nan, -1, math.nan, math.nan], 20),
    ],
)
def test_an_undefined_metric_is_neither_better_nor_worse(
    values: list[float], best: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = run(trainer(tmp_path, task=Scored(values), max_steps=20))
    assert made.best["step"] == checkpoint.load(tmp_path / "checkpoints" / checkpoint.BEST)["step"] == best
    assert capsys.readouterr().out.count("is not defined") == (values[0] in (-1,) or math.isnan(values[0]))


def test_auto_precision_is_what_the_gpu_has_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch says of every GPU that it has bf16, if emulation may count."""
    for native, kind in ((True, "bf16"), (False, "fp32")):
        answer = lambda including_emulation=True, n=native: n or including_emulation  # noqa: E731
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", answer)
        found = Precision("auto", torch.device("cuda"))
        assert found.kind == kind and ("no bf16" in found.note) == (not native)


def test_it_trains_outside_the_main_thread(tmp_path: Path) -> None:
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(run, trainer(tmp_path)).result().step == 12


def test_a_finished_run_is_returned_and_left_as_it_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = run(trainer(tmp_path))
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    again = trainer(tmp_path)
    assert again.fit() == made.last and "is finished: accuracy" in capsys.readouterr().out
    assert same(weights(again.network), weights(made.network))
    with pytest.raises(UserError, match="finished run of 12 steps, and these settings make 20"):
        trainer(tmp_path, max_steps=20).fit()
    assert before == {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}


def test_the_folder_is_free_again_when_a_run_has_ended(tmp_path: Path) -> None:
    """A sweep of hundreds of runs in one process must not keep as many files open."""

    def locks() -> int:
        return sum(str(link.readlink()).endswith(".lock") for link in Path("/proc/self/fd").iterdir() if link.exists())

    made, during = trainer(tmp_path, max_steps=2), []
    made.folder.event = lambda *arguments: during.append(locks())
    run(made)
    assert set(during) == {1} and locks() == 0


def test_after_an_evaluation_the_checkpoint_before_is_of_another_step(tmp_path: Path) -> None:
    run(trainer(tmp_path, max_steps=10, checkpoint_every=3))
    steps = {name: checkpoint.load(tmp_path / "checkpoints" / name)["step"] for name in ("last.pt", "previous.pt")}
    assert steps == {"last.pt": 10, "previous.pt": 9}


def test_without_a_word_it_is_the_papers_sgd_and_a_cosine(tmp_path: Path) -> None:
    made = Trainer(ColourTask(), little(), Settings(max_steps=4, batch=8, epochs=None), run_dir=tmp_path, device="cpu")
    group = made.optimizer.param_groups[0]
    assert (group["base_lr"], group["momentum"], group["weight_decay"]) == (0.1 * 8 / 256, 0.9, 1e-4)
    assert made.schedule.factor(2) == pytest.approx(0.5) and made.loading == LoaderSettings()


def test_it_stops_where_nothing_gets_better_and_is_then_finished(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    values = [0.1, 0.5, 0.2, 0.5, 0.4, 0.9]
    made = run(trainer(tmp_path, task=Scored(values), max_steps=30, stop_after=3))
    assert made.step == 25 and made.best["step"] == 10  # evaluated every 5 steps
    assert "stopped: 3 evaluations without a better one" in capsys.readouterr().out
    again = trainer(tmp_path, task=Scored(values), max_steps=30, stop_after=3)
    assert again.fit() == made.last and again.step == 25 and "is finished" in capsys.readouterr().out


def test_a_stopped_run_that_was_cut_before_its_summary_only_writes_that(tmp_path: Path) -> None:
    run(trainer(tmp_path, task=Scored([0.5, 0.4, 0.3]), max_steps=30, stop_after=2))
    before = (tmp_path / "metrics.jsonl").read_text()
    (tmp_path / "summary.json").unlink()
    assert run(trainer(tmp_path, task=Scored([]), max_steps=30, stop_after=2)).step == 15
    assert (tmp_path / "summary.json").exists() and (tmp_path / "metrics.jsonl").read_text() == before


def test_the_best_few_checkpoints_are_kept(tmp_path: Path) -> None:
    run(trainer(tmp_path, task=Scored([0.1, 0.5, -1, 0.3, 0.4, math.nan]), max_steps=30, keep=2))
    kept = sorted(path.name for path in (tmp_path / "checkpoints").glob("step*"))
    assert kept == ["step10-0.5.pt", "step25-0.4.pt"]
    best, other = (checkpoint.load(tmp_path / "checkpoints" / name) for name in ("best.pt", kept[0]))
    assert best["step"] == other["step"] == 10 and same(best["network"], other["network"])
