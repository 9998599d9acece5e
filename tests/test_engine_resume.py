"""A run that is cut, at any moment and as often as one likes, ends with the bits of one that was not."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_run import Pictures, run, same, start, trained, trainer, until

from tdaf.engine import checkpoint
from tdaf.engine.preempt import Preempted
from tdaf.errors import UserError

HOW = {"ema": 0.9, "clip": 1.0, "evaluate_every": 1, "max_steps": 17, "checkpoint_every": 3, "accumulate": 2}


def built(folder: Path, **settings: Any) -> Any:
    return trainer(folder, train=Pictures(44, mixed=True), **{**HOW, **settings})


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an uninterrupted run of the tiny task."""
    return run(built(tmp_path_factory.mktemp("whole"))).folder.folder


class Cut(Exception):
    pass


def cut_in(made: Any, place: str, call: int) -> None:
    """Makes the `call`-th use of a part of the trainer fail, before or after it has done its work."""
    owner = made.folder if place == "event" else made
    part, calls = getattr(owner, place), 0

    def failing(*arguments: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == call and call % 2:
            raise Cut
        result = part(*arguments)
        if calls == call:
            raise Cut
        return result

    setattr(owner, place, failing)


def finish(folder: Path, cuts: list[tuple[str, int]], **settings: Any) -> int:
    """Starts the run again after each cut, then to its end. How many of the cuts it met."""
    met = 0
    for place, call in cuts:
        made = built(folder, **settings)
        cut_in(made, place, call)
        try:
            run(made)
        except Cut:
            met += 1
    run(built(folder, **settings))
    return met


def steps(folder: Path) -> list[tuple[str, int]]:
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [(event["split"], event["step"]) for event in map(json.loads, lines)]


def numbers(folder: Path) -> list[dict[str, Any]]:
    """The logged numbers without what a clock said."""
    events = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in e.items() if k not in ("images_per_second", "data_seconds")} for e in events]


@pytest.mark.parametrize("seed", range(6))
def test_a_run_cut_at_random_moments_is_the_whole_run(tmp_path: Path, whole: Path, seed: int) -> None:
    draw = random.Random(seed)
    places = ("_one_step", "_backward", "_save", "_evaluate_if_due", "_evaluating", "_report", "event", "_agree")
    cuts = [(draw.choice(places), draw.randint(1, 6)) for _ in range(6)]
    assert finish(tmp_path, cuts, workers=seed % 2) >= 3
    assert same(trained(tmp_path), trained(whole))
    assert numbers(tmp_path) == numbers(whole)
    best = [checkpoint.load(folder / "checkpoints" / checkpoint.BEST) for folder in (tmp_path, whole)]
    assert same(*best)
    assert not [p for p in tmp_path.rglob(".*.*.[0-9]*")]


def test_the_log_says_each_event_once_and_in_order(whole: Path) -> None:
    found = steps(whole)
    assert len(found) == len(set(found))
    assert [s for s, k in found if k == 5] == ["train", "val"]
    assert found == sorted(found, key=lambda pair: pair[1])


def test_a_run_goes_on_from_the_one_before_a_damaged_checkpoint(tmp_path: Path, whole: Path) -> None:
    made = built(tmp_path)
    cut_in(made, "_one_step", 14)
    with pytest.raises(Cut):
        run(made)
    last = tmp_path / "checkpoints" / checkpoint.LAST
    before = checkpoint.load(last)["step"]
    last.write_bytes(last.read_bytes()[:1000])
    made = built(tmp_path)
    assert 0 < made.step < before
    run(made)
    assert same(trained(tmp_path), trained(whole))
    assert numbers(tmp_path) == numbers(whole)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_saves_within_a_step(tmp_path: Path, whole: Path, number: int) -> None:
    made = built(tmp_path, checkpoint_every=100)
    step = made._one_step

    def one_step(batches: Any) -> None:
        if made.step == 7:
            os.kill(os.getpid(), number)
        step(batches)

    made._one_step = one_step
    handler = signal.getsignal(number)
    with pytest.raises(Preempted):
        run(made)
    assert signal.getsignal(number) is handler
    assert checkpoint.load(tmp_path / "checkpoints" / checkpoint.LAST)["step"] == 8
    assert (tmp_path / "log.txt").read_text().rstrip().endswith("everything is saved and the same command goes on")
    run(built(tmp_path, checkpoint_every=100))
    assert same(trained(tmp_path), trained(whole))


def test_a_signal_ends_an_evaluation_at_once(tmp_path: Path, whole: Path) -> None:
    made = built(tmp_path)
    between, calls = made._evaluating, []

    def evaluating() -> None:
        calls.append(1)
        if len(calls) == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        between()

    made._evaluating = evaluating
    with pytest.raises(Preempted):
        run(made)
    assert len(calls) == 2
    assert (made.step, made.evaluated) == (5, 0)
    run(built(tmp_path))
    assert same(trained(tmp_path), trained(whole))


def test_two_damaged_checkpoints_are_said(tmp_path: Path) -> None:
    run(built(tmp_path))
    for path in (tmp_path / "checkpoints").iterdir():
        path.write_bytes(b"x")
    with pytest.raises(UserError, match="no whole checkpoint is left"):
        built(tmp_path)


COMMAND = ["task.head=linear", "task.dropout=0.2", "task.mixup=0.4", "trainer.ema=0.9", "trainer.checkpoint_every=1", "gpus=0"]
Starts = Callable[..., subprocess.Popen]


@pytest.fixture(scope="module")
def commands(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Starts]:
    """A folder, and what starts the command for the run folder `name` in it; "whole" has run there uninterrupted."""
    root = tmp_path_factory.mktemp("commands")

    def begin(name: str, *overrides: str) -> subprocess.Popen:
        return start([*COMMAND, f"demo.root={root}", f"run_dir={root / name}", *overrides], root / f"{name}.txt")

    process = begin("whole")
    assert process.wait(300) == 0, (root / "whole.txt").read_text()
    return root, begin


def moments(folder: Path) -> list[Callable[[], bool]]:
    """Five moments of a run: in training, while saving (twice), in evaluation, and behind it."""

    def said(words: str) -> bool:
        log = folder / "log.txt"
        return log.exists() and words in log.read_text()

    def saving(step: int) -> bool:
        return said(f"step {step}/12") and any((folder / "checkpoints").glob(".last.pt.*"))

    return [
        lambda: said("step 1/12"),
        lambda: saving(3),
        lambda: said("step 5/12"),  # an epoch: it is saved, evaluated and saved
        lambda: said("epoch 2 val") or any((folder / "checkpoints").glob(".best.pt.*")),
        lambda: saving(11),
    ]


def killed(process: subprocess.Popen) -> None:
    os.killpg(process.pid, signal.SIGKILL)
    assert process.wait(30) == -signal.SIGKILL


def test_kill_9_at_any_moment(commands: tuple[Path, Starts]) -> None:
    root, begin = commands
    for place, moment in enumerate(moments(root / "killed")):
        process = begin("killed", f"loader.workers={place % 2}")
        assert until(moment, process), (root / "killed.txt").read_text()
        killed(process)
    process = begin("killed")
    assert process.wait(300) == 0, (root / "killed.txt").read_text()
    assert same(trained(root / "killed"), trained(root / "whole"))
    assert numbers(root / "killed") == numbers(root / "whole")
    assert (root / "killed" / "summary.json").exists()
    assert (root / "killed.txt").read_text().count("going on from step") >= 4


def test_sigterm_to_the_whole_job_saves_and_asks_for_a_new_start(commands: tuple[Path, Starts]) -> None:
    root, begin = commands
    process = begin("told", "loader.workers=1")
    log = root / "told" / "log.txt"
    assert until(lambda: log.exists() and "step 4/12" in log.read_text(), process), (root / "told.txt").read_text()
    os.killpg(process.pid, signal.SIGTERM)  # as scancel and torchrun do: the reading workers hear it too
    assert process.wait(60) == 75, (root / "told.txt").read_text()
    said = (root / "told.txt").read_text().splitlines()
    assert said[-1] == "stopped: told to stop; everything is saved and the same command goes on"
    assert "Traceback" not in "".join(said)
    again = begin("told", "loader.workers=1")
    assert until(lambda: "going on from step" in log.read_text(), again)
    os.killpg(again.pid, signal.SIGSTOP)
    second = begin("told")
    assert second.wait(60) == 2
    os.killpg(again.pid, signal.SIGCONT)
    said = (root / "told.txt").read_text().splitlines()
    assert [line for line in said if line.startswith(f"error: another process is training in {root / 'told'}; ")]
    assert again.wait(120) == 0, (root / "told.txt").read_text()
    assert same(trained(root / "told")["network"], trained(root / "whole")["network"])


def test_where_a_run_cannot_start_is_said_in_one_line(commands: tuple[Path, Starts]) -> None:
    """In a finished run's folder, in one of a run with other settings, and where nothing can be written."""
    root, begin = commands
    (root / "file").write_text("")
    before = {path: path.stat().st_mtime_ns for path in (root / "whole").rglob("*") if path.is_file()}
    finished, other = begin("whole"), begin("other", f"run_dir={root / 'whole'}", "optim.lr=0.7")
    nowhere = begin("nowhere", f"run_dir={root / 'file' / 'run'}")
    assert [process.wait(120) for process in (finished, other, nowhere)] == [0, 2, 2]
    said = {name: (root / f"{name}.txt").read_text().splitlines()[-1] for name in ("whole", "other", "nowhere")}
    assert "is finished: top1" in said["whole"]
    assert said["other"].startswith(f"error: {root / 'whole'} holds a run with other settings (optim.lr: 0.05")
    assert said["nowhere"] == f"error: run_dir={root / 'file' / 'run'} cannot be written: Not a directory"
    assert before == {path: path.stat().st_mtime_ns for path in (root / "whole").rglob("*") if path.is_file()}


def test_ctrl_c_ends_the_run_in_one_line(commands: tuple[Path, Starts]) -> None:
    root, begin = commands
    process = begin("interrupted", "loader.workers=1")
    log = root / "interrupted" / "log.txt"
    assert until(lambda: log.exists() and "step 2/12" in log.read_text(), process)
    os.killpg(process.pid, signal.SIGINT)
    assert process.wait(60) == 130, (root / "interrupted.txt").read_text()
    said = (root / "interrupted.txt").read_text()
    assert said.splitlines()[-1] == "stopped: interrupted; the same command goes on from the last checkpoint"
    assert "Traceback" not in said


def test_generators_come_back_as_they_were(tmp_path: Path) -> None:
    from tdaf.engine import seeds

    seeds.set_all(3)
    torch.randn(1)
    torch.save(seeds.state(torch.device("cpu")), tmp_path / "rng.pt")
    expected = torch.randn(5), random.random()
    seeds.restore(torch.load(tmp_path / "rng.pt", weights_only=True), torch.device("cpu"))
    assert same((torch.randn(5), random.random()), expected)
