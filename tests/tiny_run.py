"""A data set, a task and a trainer so small that a whole run takes a second, for tests of the engine."""

from __future__ import annotations

import functools
import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from tdaf.engine import checkpoint, dist, optim, seeds
from tdaf.engine.loader import Loader
from tdaf.engine.log import RunFolder
from tdaf.engine.order import EvaluationOrder, TrainingOrder
from tdaf.engine.schedule import Schedule, cosine
from tdaf.engine.settings import Settings
from tdaf.engine.trainer import Trainer
from tdaf.errors import UnreadableSample

ROOT = Path(__file__).parents[1]
CLASSES = 4


class Pictures:
    """Noise drawn from all three global generators on a colour that tells the class; `collate` mixes at random."""

    skipped = 0
    notes: dict[str, int] = {}
    groups = None

    def __init__(self, size: int, bad: tuple[int, ...] = (), noise: float = 1.0, mixed: bool = False) -> None:
        self.size, self.bad, self.noise, self.mixed = size, bad, noise, mixed

    def __len__(self) -> int:
        return self.size

    def name(self, index: int) -> str:
        return f"picture-{index}.jpg"

    def __getitem__(self, index: int) -> dict[str, Any]:
        if index in self.bad:
            raise UnreadableSample("it is no JPEG")
        label = index % CLASSES
        noise = torch.randn(3, 8, 8) + np.random.rand() + random.random()
        colour = torch.tensor([label & 1, label >> 1, 0.5]).view(3, 1, 1)
        return {"input": colour + self.noise * noise, "label": label}

    def collate(self, samples: list[dict[str, Any]]) -> dict[str, Any]:
        input = torch.stack([s["input"] for s in samples])
        if self.mixed:
            input = torch.lerp(input, input[torch.randperm(len(input))], float(np.random.beta(1, 1)))
        return {"input": input, "label": torch.tensor([s["label"] for s in samples])}


class Counting:
    protocol = "counting"

    def update(self, outputs: Tensor, batch: dict[str, Any]) -> list[tuple[int, bool]]:
        right = outputs.argmax(1) == batch["label"]
        return list(zip(batch["index"].tolist(), right.tolist(), strict=True))

    def compute(self, records: list[tuple[int, bool]]) -> dict[str, float]:
        return {"accuracy": sum(right for _, right in records) / len(records), "places": sum(i for i, _ in records)}

    def files(self, records: list[tuple[int, bool]]) -> dict[str, str]:
        return {}


class ColourTask:
    metric = "accuracy"

    def losses(self, outputs: Tensor, batch: dict[str, Any]) -> dict[str, Tensor]:
        assert outputs.dtype == torch.float32
        cross_entropy = nn.functional.cross_entropy(outputs, batch["label"])
        return {"cross_entropy": cross_entropy, "size": outputs.square().mean() * 0.01}

    def evaluator(self) -> Counting:
        return Counting()

    def visualize(self, outputs: Tensor, batch: dict[str, Any]) -> dict[str, list[Tensor]]:
        return {"prediction": list((batch["input"].clamp(0, 1) * 255).to(torch.uint8))}


def little(norm: bool = True, dropout: float = 0.2) -> nn.Module:
    """A convolutional network from (B, 3, 8, 8) to (B, CLASSES)."""
    layers = [nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.BatchNorm2d(8) if norm else nn.Identity(), nn.ReLU()]
    return nn.Sequential(*layers, nn.Dropout(dropout), nn.Flatten(), nn.Linear(8 * 16, CLASSES))


def trainer(
    folder: Path,
    *,
    train: Pictures | None = None,
    val: Pictures | None = None,
    network: Callable[[], nn.Module] = little,
    workers: int = 0,
    max_bad: int = 0,
    timeout: float = 60.0,
    lr: float = 0.05,
    decay: Callable[[], Callable[[float, float], float]] = cosine,
    factory: Callable[..., torch.optim.Optimizer] = functools.partial(torch.optim.SGD, momentum=0.9),
    **settings: Any,
) -> Trainer:
    """A trainer over `folder`, which goes on from the checkpoint in it, put together as tdaf/cli/run.py does."""
    usual = {"epochs": None, "max_steps": 12, "batch": 8, "log_every": 4, "pictures": 0, "checkpoint_every": 3}
    how = Settings(**{**usual, **settings})
    train, val = train or Pictures(44), val or Pictures(21)
    order = functools.partial(
        TrainingOrder, len(train), how.batch, seed=5, rank=dist.rank(), ranks=dist.world(), accumulate=how.accumulate
    )
    shared = functools.partial(EvaluationOrder, len(val), 4, rank=dist.rank(), ranks=dist.world())
    reading = {"seed": 5, "workers": workers, "max_bad": max_bad, "timeout": timeout}
    seeds.set_all(1)
    built = network()
    seeds.set_all(seeds.mix(1, dist.rank()))
    state, _ = checkpoint.load_last(folder / "checkpoints")
    made = Trainer(
        how,
        ColourTask(),
        built,
        make_optimizer=lambda network: optim.optimizer(network, factory, lr=lr, batch=how.batch),
        make_schedule=functools.partial(Schedule, decay(), warmup_steps=2),
        order=lambda start: order(start=start),
        loader=lambda order: Loader(train, order, **reading),
        validation=lambda: Loader(val, shared(), **reading),
        folder=RunFolder(folder, quiet=dist.rank() != 0),
        device=torch.device("cpu"),
        about={"config": {"name": "little"}},
    )
    if state:
        made.restore(state)
    made.folder.start(made.step, made.evaluated)
    return made


def run(made: Trainer) -> Trainer:
    with made.folder:
        made.fit()
    return made


def same(a: Any, b: Any) -> bool:
    """Whether two trees of plain data and tensors are equal, bit for bit."""
    if isinstance(a, Tensor):
        return isinstance(b, Tensor) and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return isinstance(b, dict) and a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


def trained(folder: Path) -> dict[str, Any]:
    """All of a run's last checkpoint that must not depend on how often the run was cut."""
    state = checkpoint.load(folder / "checkpoints" / checkpoint.LAST)
    kept = ("network", "ema", "optimizer", "schedule", "scaler", "rng", "step", "evaluated", "best", "last")
    return {k: state[k] for k in kept}


def numbers(folder: Path) -> list[dict[str, Any]]:
    """The logged numbers without what a clock said."""
    events = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in e.items() if k not in ("images_per_second", "data_seconds")} for e in events]


TINY = (
    "task=imagenet recipe=demo trainer.batch=8 trainer.max_steps=12 trainer.checkpoint_every=3 trainer.log_every=4 "
    "trainer.pictures=0 demo.train=40 demo.val=21 demo.size=32 task.train_transform.size=24 "
    "task.train_transform.short_side=[26,30] task.val_transforms.1crop.size=24 task.val_transforms.1crop.short_side=26 "
    "loader.workers=0"
).split()


def start(overrides: list[str], output: Path, program: tuple[str, ...] = ("train.py",)) -> subprocess.Popen:
    """The command line in a process group of its own, its output and errors going to the file `output`."""
    with open(output, "ab") as file:
        return subprocess.Popen(
            [sys.executable, *program, *TINY, *overrides],
            cwd=ROOT,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def until(happened: Callable[[], Any], process: subprocess.Popen | None = None, seconds: float = 120.0) -> bool:
    """Waits for `happened()`; False if the process ended, or the time was over, before it."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if happened():
            return True
        if process is not None and process.poll() is not None:
            return bool(happened())
        time.sleep(0.002)
    return False
