"""The program around a network: how soon train.py answers, and what the trainer adds to a step."""

from __future__ import annotations

import contextlib
import copy
import io
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from benchmarks.networks import TDAF, configured, labelled, sides
from benchmarks.timing import Settings, Times, interleaved, now, timed
from tdaf.build import make
from tdaf.cli import build
from tdaf.engine.precision import Precision
from tdaf.engine.settings import Settings as TrainerSettings
from tdaf.engine.trainer import Trainer
from tdaf.errors import RunError
from tdaf.task import Batch

ROOT = Path(__file__).parents[2]
IMPORT, BARE, OURS = "import torch", "bare PyTorch loop", "Trainer"
COMMANDS = {  # arguments of Python, and the exit code that is right
    IMPORT: (["-c", "import torch"], 0),
    "--help": (["train.py", "--help"], 0),
    "--cfg job": (["train.py", "--cfg", "job"], 0),
    "a misspelt key": (["train.py", "backbne=res50"], 2),
}
STEPS = 20  # of a block, and between two lines of the log: more often than by default


def startup(settings: Settings) -> dict[str, Times]:
    """Wall time of a whole process."""

    def run(arguments: list[str], code: int) -> None:
        done = subprocess.run([sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True)
        if done.returncode != code:
            command = " ".join(["python", *arguments])
            raise RunError(f"{command} ended with {done.returncode}, not {code}: {done.stderr[-200:]}")

    calls = {name: lambda command=command: run(*command) for name, command in COMMANDS.items()}
    return {"startup": interleaved(calls, settings.pairs or 15, torch.device("cpu"), warm=1)}


def trainer(settings: Settings) -> dict[str, Times]:
    """A step of Trainer.fit and of a loop of PyTorch alone, on the same network and batches; also on a network whose
    step is so short that what the trainer adds shows."""
    found = {"trainer": _trainer_times(replace(settings, backbone="tiny", batch=16, size=64))}
    return {**found, **({"trainer_large": _trainer_times(settings)} if settings.gpu else {})}


class _Enough(Exception):
    """Ends Trainer.fit when all rounds are timed."""


class Feed:
    """Stands for the trainer's loader. It is asked for a batch between two steps: there the bare loop runs and is
    timed. Each of the trainer's blocks holds one report of its losses."""

    bad: dict[int, tuple[str, str]] = {}

    def __init__(self, block: list[Batch], bare_step: Callable[[Batch], None], settings: Settings) -> None:
        self.block, self.bare_step, self.device = block, bare_step, settings.device
        self.rounds, self.times = settings.pairs or 40, Times([BARE, OURS])

    def stalled(self) -> list[str]:
        return []

    def __iter__(self) -> Iterator[Batch]:
        yield from self.block  # unmeasured: it makes the optimizer's state and opens the log
        self._bare_block()
        for _ in range(self.rounds):
            self.times.add(BARE, self._bare_block())
            start = now(self.device)
            yield from self.block
            self.times.add(OURS, (now(self.device) - start) / STEPS)
            self.times.add(self.times.again, self._bare_block())
        raise _Enough

    def _bare_block(self) -> float:
        batches = iter(self.block)
        return timed(lambda: self.bare_step(next(batches)), STEPS, self.device)


class Endless:
    """A split that is never read, however long it is."""

    skipped, notes, groups = 0, {}, None

    def __len__(self) -> int:
        return 10**6

    def name(self, index: int) -> str:
        return str(index)


def _trainer_times(settings: Settings) -> Times:
    network, (config, task) = sides(settings)[TDAF], configured(settings, settings.flows)
    batch = {name: value.cpu() for name, value in labelled(settings).items()}
    block = [{name: value.roll(k, 0).clone() for name, value in batch.items()} for k in range(STEPS)]
    if settings.gpu:
        block = [{name: value.pin_memory() for name, value in batch.items()} for batch in block]
    feed = Feed(block, _bare_step(copy.deepcopy(network), build.optimizer(config), settings), settings)
    task.dataset = lambda split: Endless()
    never = {"evaluate_every": 0, "checkpoint_every": 10**9, "log_every": STEPS, "pictures": 0}
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        trainer = Trainer(
            task,
            network,
            TrainerSettings(epochs=None, max_steps=10**9, batch=settings.batch, **never),
            run_dir=folder,
            optimizer=build.optimizer(config),
            schedule=make(config["schedule"], "schedule"),
            device=settings.device,
        )
        trainer.training_loader = lambda: feed
        with contextlib.suppress(_Enough):
            trainer.fit()
    return feed.times.of(settings.batch, "images", f"{settings.backbone}, batch {settings.batch} of {settings.size} px")


def _bare_step(network: nn.Module, make_optimizer: Callable, settings: Settings) -> Callable[[Batch], None]:
    """A step as one writes it down with PyTorch alone."""
    network = network.to(settings.device).to(memory_format=torch.channels_last).train()
    optimizer, bf16 = make_optimizer(network), Precision("auto", settings.device).kind == "bf16"

    def step(batch: Batch) -> None:
        x = batch["input"].to(settings.device, non_blocking=True)
        label = batch["label"].to(settings.device, non_blocking=True)
        with torch.autocast(settings.device.type, torch.bfloat16, enabled=bf16):
            outputs = network(x)
        F.cross_entropy(outputs.float(), label).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step
