"""The loader: which samples in which order, the same random numbers in any worker, and what happens to bad samples."""

import multiprocessing
import os
import random
import re
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_run import Pictures, run, same, trainer

from tdaf.engine import data, handover
from tdaf.engine.data import EvaluationOrder, Loader, TrainingOrder
from tdaf.engine.health import Preemption
from tdaf.errors import RunError


def taken(order: TrainingOrder, count: int) -> list[list[tuple[int, int]]]:
    return [keys for keys, _ in zip(order, range(count), strict=False)]


def batches(workers: int, start: int = 0, count: int = 7) -> list[dict[str, Any]]:
    order = TrainingOrder(22, 6, seed=3, start=start)
    loader = Loader(Pictures(22, mixed=True), order, seed=3, workers=workers)
    return [batch for batch, _ in zip(loader, range(count), strict=False)]


@pytest.fixture(scope="module")
def reference() -> list[dict[str, Any]]:
    return batches(0)


@pytest.mark.filterwarnings("ignore:This DataLoader")
@pytest.mark.parametrize("workers", [1, 3])
def test_workers_do_not_change_a_batch(workers: int, reference: list[dict[str, Any]]) -> None:
    assert same(batches(workers), reference)


def test_random_numbers_differ_between_samples_and_epochs(reference: list[dict[str, Any]]) -> None:
    flat = [row for batch in reference for row in batch["input"].flatten(1).tolist()]
    assert len({tuple(row) for row in flat}) == len(flat)
    places = [i for batch in reference for i in batch["index"].tolist()]
    assert len(set(places)) < len(places), "some sample was seen in two epochs"


def test_an_epoch_is_a_permutation_less_its_last_part() -> None:
    order = TrainingOrder(22, 6, seed=3)
    first, second = taken(order, 6)[:3], taken(order, 6)[3:]
    for epoch, part in enumerate((first, second)):
        keys = [key for batch in part for key in batch]
        assert {e for e, _ in keys} == {epoch}
        assert len({i for _, i in keys}) == 18
    assert first != [[(0, i) for _, i in batch] for batch in second]
    assert taken(TrainingOrder(22, 6, seed=4), 3) != first


@pytest.mark.parametrize("accumulate", [1, 2])
def test_ranks_and_parts_together_are_one_ranks_batch(accumulate: int) -> None:
    whole = taken(TrainingOrder(50, 12, seed=1, start=2), 5)
    shares = [
        taken(TrainingOrder(50, 12, seed=1, start=2, rank=r, ranks=2, accumulate=accumulate), 5 * accumulate)
        for r in range(2)
    ]
    for step, batch in enumerate(whole):
        parts = [share[step * accumulate + p] for share in shares for p in range(accumulate)]
        assert [key for part in parts for key in part] == batch
        assert {len(part) for part in parts} == {6 // accumulate}


@pytest.mark.parametrize("ranks", [1, 2, 3])
@pytest.mark.parametrize("size", [1, 2, 21, 22, 24])
def test_evaluation_gives_each_sample_to_one_rank(size: int, ranks: int) -> None:
    shares = [list(EvaluationOrder(size, 4, rank=r, ranks=ranks)) for r in range(ranks)]
    assert sorted(i for share in shares for batch in share for _, i in batch) == list(range(size))
    assert all(len(share) == len(EvaluationOrder(size, 4, rank=r, ranks=ranks)) for r, share in enumerate(shares))


@pytest.mark.parametrize("workers", [0, 1])
def test_reading_leaves_the_global_generators_alone(workers: int) -> None:
    def drawn() -> tuple[float, float, float]:
        return torch.rand(1).item(), float(np.random.rand()), random.random()

    for seed in (torch.manual_seed, np.random.seed, random.seed):
        seed(9)
    expected = drawn()
    for seed in (torch.manual_seed, np.random.seed, random.seed):
        seed(9)
    assert len(list(Loader(Pictures(9), EvaluationOrder(9, 2), seed=0, workers=workers))) == 5
    assert drawn() == expected


@pytest.mark.parametrize("workers", [0, 1])
def test_unreadable_samples_are_named_counted_and_skipped(workers: int, capfd: pytest.CaptureFixture[str]) -> None:
    loader = Loader(Pictures(9, bad=(2, 3, 7)), EvaluationOrder(9, 2), seed=0, workers=workers, max_bad=3)
    for _ in range(2):  # the second time around nothing is counted again
        read = list(loader)
        assert [batch["index"].tolist() for batch in read] == [[0, 1], [], [4, 5], [6], [8]]
    assert loader.bad == {i: (f"picture-{i}.jpg", "it is no JPEG") for i in (2, 3, 7)}
    said = capfd.readouterr().err.splitlines()
    assert [line for line in said if "skipped" in line] == [
        f"skipped: cannot read picture-{i}.jpg: it is no JPEG ({n} unreadable, max_bad=3)"
        for n, i in enumerate((2, 3, 7), 1)
    ]


class Stacked(Pictures):
    def collate(self, samples: list[dict[str, Any]]) -> dict[str, Any]:
        number = torch.tensor([int(sample["input"].sum() * 1000) for sample in samples])
        bytes_ = [torch.full((3, 5), int(value) % 256, dtype=torch.uint8) for value in number]
        return {"input": handover.stack(bytes_), "number": number}


def test_a_workers_memory_is_used_again_only_when_nothing_is_in_it_any_more() -> None:
    loader = Loader(Stacked(40), EvaluationOrder(40, 2), seed=0, workers=1, prefetch=1)
    kept = []
    for number, batch in enumerate(loader):
        if number % 4 == 1:  # more in the end than there are pieces
            kept.append((batch["input"][1:, 0], batch["number"]))
        assert torch.equal(batch["input"][:, 2, 4], (batch.pop("number") % 256).to(torch.uint8))
        del batch
    assert len(kept) == 5 and all(view[0, 0] == number[1] % 256 for view, number in kept)
    # the first that is kept finds a piece for certain, later ones where the worker is not ahead
    assert handover.TAKEN in loader._reader.pieces
    kept.clear()
    assert loader._reader.pieces.tolist() == [[handover.FREE] * 3]


class Clips(Pictures):
    """Three samples of each file."""

    def name(self, index: int) -> str:
        return f"video-{index // 3}.mp4"


def test_samples_of_one_file_count_once(capfd: pytest.CaptureFixture[str]) -> None:
    loader = Loader(Clips(9, bad=(3, 4, 5)), EvaluationOrder(9, 2), seed=0, max_bad=1)
    assert sum(len(batch["index"]) for batch in loader) == 6 and set(loader.bad) == {3, 4, 5}
    assert capfd.readouterr().err.count("skipped:") == 1
    with pytest.raises(RunError, match=r"video-2\.mp4: .* \(2 unreadable, max_bad=1\)"):
        list(Loader(Clips(9, bad=(3, 4, 8)), EvaluationOrder(9, 2), seed=0, max_bad=1))


def test_a_skipped_sample_does_not_change_the_others() -> None:
    whole, part = (
        next(iter(Loader(Pictures(4, bad=bad), EvaluationOrder(4, 4), seed=0, max_bad=1)))["input"]
        for bad in ((), (1,))
    )
    assert torch.equal(whole[[0, 2, 3]], part)


class Stalling(Pictures):
    def __getitem__(self, index: int) -> dict[str, Any]:
        if index == 5:
            time.sleep(600)
        return super().__getitem__(index)


def test_a_stalled_read_is_named() -> None:
    loader = Loader(Stalling(9), EvaluationOrder(9, 2), seed=0, workers=1, timeout=1)
    with pytest.raises(RunError, match=r"no batch within timeout=1 s; being read: picture-5\.jpg"):
        list(loader)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # of DataLoader, which lacks its workers
def test_a_worker_that_is_ended_while_it_starts_hears_that(monkeypatch: pytest.MonkeyPatch) -> None:
    """As where Ctrl-C comes between the fork and the worker's own handling of signals: DataLoader ends it at once."""
    settle, workers = data._settle, []

    def late(worker: int) -> None:
        time.sleep(0.5)
        settle(worker)

    def interrupt(*_: object) -> None:
        workers.extend(multiprocessing.active_children())
        raise KeyboardInterrupt

    monkeypatch.setattr(data, "_settle", late)
    monkeypatch.setattr(torch.utils.data._utils.signal_handling, "_set_worker_pids", interrupt)
    with Preemption(), pytest.raises(KeyboardInterrupt):
        next(iter(Loader(Pictures(9), EvaluationOrder(9, 2), seed=0, workers=1)))
    workers[-1].join(10)
    assert workers[-1].exitcode == 0


class Dying(Pictures):
    def __getitem__(self, index: int) -> dict[str, Any]:
        if index == 5:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().__getitem__(index)


def test_a_killed_worker_is_said_in_one_line(tmp_path: Path) -> None:
    said = r"^a loader worker died .*being read: picture-5\.jpg; try fewer workers$"
    # torch raises from a signal handler at any instruction of the main thread, a lost one now and then among them
    for attempt in range(3):
        with pytest.raises((RunError, RuntimeError)) as caught:
            run(trainer(tmp_path / str(attempt), train=Dying(44), workers=1))
        if isinstance(caught.value, RunError) and re.search(said, str(caught.value)):
            return
    pytest.fail(f"three times not the line that names the file; last: {caught.value!r}")


@pytest.mark.parametrize("error", [EOFError, ConnectionResetError, FileNotFoundError])
def test_a_worker_that_dies_while_its_batch_is_fetched_is_said(error: type, monkeypatch: pytest.MonkeyPatch) -> None:
    def gone(loader: Loader) -> Iterator[None]:
        yield from ()
        raise error

    monkeypatch.setattr(Loader, "_started", gone)
    for workers, kind, said in ((1, RunError, "a loader worker died"), (0, error, None)):
        with pytest.raises(kind, match=said):
            list(Loader(Pictures(9), EvaluationOrder(9, 2), seed=0, workers=workers))


class Signalled(Pictures):
    """Ends nothing: a signal that somebody else sends to this worker."""

    def __getitem__(self, index: int) -> dict[str, Any]:
        if index == 1:
            for number in (signal.SIGTERM, signal.SIGUSR1):
                os.kill(os.getpid(), number)
            time.sleep(0.05)
        return super().__getitem__(index)


def test_a_worker_outlives_the_signals_to_the_whole_job() -> None:
    assert len(list(Loader(Signalled(9), EvaluationOrder(9, 2), seed=0, workers=1))) == 5


def test_no_worker_is_left_behind_after_a_fault() -> None:
    def children() -> set[str]:
        return set(Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children").read_text().split())

    before = children()
    try:
        list(Loader(Pictures(9, bad=(2,)), EvaluationOrder(9, 2), seed=0, workers=2))
    except RunError:
        pass
    assert children() == before


def test_a_fault_of_the_data_set_itself_keeps_its_own_traceback() -> None:
    class Broken(Pictures):
        def __getitem__(self, index: int) -> dict[str, Any]:
            raise KeyError("a bug")

    with pytest.raises(KeyError, match="a bug"):
        list(Loader(Broken(9), EvaluationOrder(9, 2), seed=0))


@pytest.mark.parametrize("ranks", [1, 2])
def test_batches_are_of_one_group_but_for_what_is_left(ranks: int) -> None:
    groups = [int(i % 3 == 0) for i in range(50)]  # 17 of group 1, 33 of group 0
    orders = [TrainingOrder(50, 8, seed=1, rank=r, ranks=ranks, groups=groups) for r in range(ranks)]
    shares = [taken(order, 6) for order in orders]
    batches = [[i for share in shares for _, i in share[step]] for step in range(6)]
    kinds = [{groups[i] for i in batch} for batch in batches]
    assert sorted(map(len, kinds)) == [1, 1, 1, 1, 1, 1]  # 4 batches of group 0, 2 of group 1, and 1 of each is left
    assert len({i for batch in batches for i in batch}) == 48
    assert [next(iter(kind)) for kind in kinds] != sorted(next(iter(kind)) for kind in kinds)
    mixed = taken(TrainingOrder(50, 10, seed=1, groups=groups), 5)
    assert sorted(len({groups[i] for _, i in batch}) for batch in mixed) == [1, 1, 1, 1, 2]
    assert {i for batch in mixed for _, i in batch} == set(range(50))
