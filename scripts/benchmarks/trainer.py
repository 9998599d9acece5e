"""The trainer's loop against a bare one, on the same network and the same batches in memory."""

from __future__ import annotations

import contextlib
import copy
import io
import itertools
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace

import torch
import torch.nn.functional as F
from benchmarks.networks import configured, images, milliseconds
from benchmarks.settings import Settings
from benchmarks.timing import Result, Times
from torch import nn

from tdaf.cli import build
from tdaf.engine.precision import Precision
from tdaf.engine.settings import Settings as Training
from tdaf.engine.trainer import Trainer
from tdaf.task import Batch, Task

BARE, OURS = "bare loop", "Trainer"
ROUNDS = 40
STEPS = 20  # of a block, and between two lines of the log: more often than by default
SMALL = {"backbone": "tiny", "batch": 16, "size": 64}  # a short step, so that what the trainer adds shows


def training_loop(settings: Settings) -> dict[str, Result]:
    """A step of Trainer.fit / a step of a loop written down with PyTorch alone."""
    found = {"trainer": _measured(replace(settings, **SMALL))}
    if settings.gpu:
        found["trainer_large"] = _measured(settings)
    return found


class _Done(Exception):
    """Ends Trainer.fit when enough rounds were timed."""


class _Timed(Trainer):
    """A trainer whose batches come from memory."""

    feed: _Feed

    def training_loader(self) -> _Feed:
        return self.feed


class _Endless:
    """A task whose splits have no end and are never read."""

    skipped, notes, groups = 0, {}, None

    def __init__(self, task: Task, size: int) -> None:
        self.metric, self.classes, self.losses, self.size = task.metric, task.classes, task.losses, size

    def dataset(self, split: str) -> _Endless:
        return self

    def __len__(self) -> int:
        return self.size


class _Feed:
    """Stands for the loader. Trainer asks for a batch between two of its steps: there the bare loop runs and is timed.

    Each of the trainer's blocks holds one report of its losses.
    """

    bad: dict[int, tuple[str, str]] = {}

    def __init__(self, batches: list[Batch], bare: Callable[[Batch], None], rounds: int, device: torch.device):
        self.batches, self.bare, self.rounds, self.device = batches, bare, rounds, device
        self.times = Times([BARE, OURS])

    def stalled(self) -> list[str]:
        return []

    def __iter__(self) -> Iterator[Batch]:
        yield from self._block()  # unmeasured: it makes the optimizer's state and opens the log
        self._bare()
        for _ in range(self.rounds):
            self.times.add(BARE, self._bare())
            start = self._now()
            yield from self._block()
            self.times.add(OURS, (self._now() - start) / STEPS)
            self.times.add(self.times.again, self._bare())
        raise _Done

    def _block(self) -> Iterator[Batch]:
        yield from itertools.islice(itertools.cycle(self.batches), STEPS)

    def _bare(self) -> float:
        start = self._now()
        for batch in self._block():
            self.bare(batch)
        return (self._now() - start) / STEPS

    def _now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()


def _measured(settings: Settings) -> Result:
    config, task = configured(settings, settings.flows)
    config["trainer"]["batch"] = settings.batch
    torch.manual_seed(0)
    network = build.network(config, task)
    make_optimizer = build.optimizer(config)
    bare = _bare_step(copy.deepcopy(network), make_optimizer, settings)
    feed = _Feed(_batches(settings), bare, settings.rounds(ROUNDS), settings.device)
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        trainer = _Timed(
            _Endless(task, 10**6 * settings.batch),
            network,
            _endless(settings.batch),
            run_dir=folder,
            optimizer=make_optimizer,
            schedule=build.make(config["schedule"], "schedule"),
            device=settings.device,
        )
        trainer.feed = feed
        with contextlib.suppress(_Done):
            trainer.fit()
    name = f"{settings.backbone}, batch {settings.batch} of {settings.size} px"
    medians = {name: feed.times.median(name) for name in (OURS, BARE)}
    return feed.times.result(OURS, BARE, milliseconds(medians, settings.batch), note=name)


def _endless(batch: int) -> Training:
    return Training(
        epochs=None, max_steps=10**9, batch=batch, evaluate_every=0, checkpoint_every=10**9, log_every=STEPS
    )


def _bare_step(network: nn.Module, make_optimizer: Callable, settings: Settings) -> Callable[[Batch], None]:
    precision = Precision("auto", settings.device)
    network = network.to(settings.device).to(memory_format=torch.channels_last).train()
    optimizer = make_optimizer(network)

    def step(batch: Batch) -> None:
        x = batch["input"].to(settings.device, non_blocking=True)
        label = batch["label"].to(settings.device, non_blocking=True)
        with torch.autocast(settings.device.type, torch.bfloat16, enabled=precision.kind == "bf16"):
            outputs = network(x)
        F.cross_entropy(outputs.float(), label).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def _batches(settings: Settings) -> list[Batch]:
    """Eight batches as a loader gives them."""
    x = images(settings).cpu()
    label = torch.arange(len(x))
    batches = [{"input": x.roll(k, 0).clone(), "label": label.roll(k), "index": label} for k in range(8)]
    if settings.gpu:
        batches = [{name: value.pin_memory() for name, value in batch.items()} for batch in batches]
    return batches
