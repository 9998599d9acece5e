"""A run that is cut, at any moment and as often as one likes, ends with the bits of one that was not."""

import os
import random
import signal
from pathlib import Path
from typing import Any

import pytest
from tiny_run import Pictures, numbers, run, same, trained, trainer

from tdaf.engine import checkpoint
from tdaf.engine.schedule import Plateau
from tdaf.errors import Preempted

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


@pytest.mark.parametrize("seed", range(6))
def test_a_run_cut_at_random_moments_is_the_whole_run(tmp_path: Path, whole: Path, seed: int) -> None:
    draw = random.Random(seed)
    places = ("_one_step", "_backward", "_save", "_evaluate_if_due", "_evaluating", "_report", "event", "_is_due")
    cuts = [(draw.choice(places), draw.randint(1, 6)) for _ in range(6)]
    assert finish(tmp_path, cuts, workers=seed % 2) >= 3
    assert same(trained(tmp_path), trained(whole))
    assert numbers(tmp_path) == numbers(whole)
    best = [checkpoint.load(folder / "checkpoints" / checkpoint.BEST) for folder in (tmp_path, whole)]
    assert same(*best)
    assert not [p for p in tmp_path.rglob(".*.*.[0-9]*")]


def test_a_run_goes_on_from_the_one_before_a_damaged_checkpoint(tmp_path: Path, whole: Path) -> None:
    made = built(tmp_path)
    cut_in(made, "_one_step", 14)
    with pytest.raises(Cut):
        run(made)
    last = tmp_path / "checkpoints" / checkpoint.LAST
    before = checkpoint.load(last)["step"]
    last.write_bytes(last.read_bytes()[:1000])
    starts: list[int] = []
    made = built(tmp_path)
    made.folder.start = lambda step, *more, start=made.folder.start: starts.append(step) or start(step, *more)
    write = made._write

    def write_once(ranks: list[dict[str, Any]]) -> None:
        write(ranks)
        raise Cut

    made._write = write_once
    with pytest.raises(Cut):
        run(made)
    assert 0 < starts[0] < before
    kept = checkpoint.load(last.with_name(checkpoint.PREVIOUS))["step"]
    assert kept == starts[0], "the damaged checkpoint took the place of the whole one"
    run(built(tmp_path))
    assert same(trained(tmp_path), trained(whole))
    assert numbers(tmp_path) == numbers(whole)


def test_what_a_plateau_remembers_is_kept(tmp_path: Path) -> None:
    # "places" never changes: every evaluation after the first is one without a better value
    plateau = {"decay": lambda: Plateau(value="places", patience=0)}
    run(built(tmp_path / "whole", **plateau))
    assert trained(tmp_path / "whole")["schedule"]["drops"] == 3
    cuts = [("_one_step", 7), ("_save", 2), ("_evaluate_if_due", 2)]
    assert finish(tmp_path / "cut", cuts, **plateau) == 3
    assert same(trained(tmp_path / "cut"), trained(tmp_path / "whole"))


def test_the_loss_scale_of_fp16_is_kept(tmp_path: Path) -> None:
    run(built(tmp_path / "whole", precision="fp16"))
    assert trained(tmp_path / "whole")["scaler"]["scale"] > 0
    assert finish(tmp_path / "cut", [("_one_step", 6), ("_backward", 9)], precision="fp16") == 2
    assert same(trained(tmp_path / "cut"), trained(tmp_path / "whole"))


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

    def evaluating(loader: Any) -> None:
        calls.append(1)
        if len(calls) == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        between(loader)

    made._evaluating = evaluating
    with pytest.raises(Preempted):
        run(made)
    assert len(calls) == 2
    assert (made.step, made.evaluated) == (5, 0)
    run(built(tmp_path))
    assert same(trained(tmp_path), trained(whole))
