"""A data set, a task and a trainer so small that a whole run takes a second, for tests of the engine."""

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

from tdaf.engine import checkpoint, data, optim
from tdaf.engine.schedule import Schedule, cosine
from tdaf.engine.settings import LoaderSettings, Settings
from tdaf.engine.trainer import Trainer
from tdaf.errors import UnreadableSample
from tdaf.task import Dataset

ROOT = Path(__file__).parents[1]
CLASSES = 4


class Pictures(Dataset):
    """Noise drawn from all three global generators on a colour that tells the class; `collate` mixes at random."""

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
        batch = super().collate(samples)
        if self.mixed:
            permuted = batch["input"][torch.randperm(len(samples))]
            batch["input"] = torch.lerp(batch["input"], permuted, float(np.random.beta(1, 1)))
        return batch


class Counting:
    protocol = "counting"

    def update(self, outputs: Tensor, batch: dict[str, Any]) -> list[tuple[int, bool]]:
        right = outputs.argmax(1) == batch["label"]
        return list(zip(batch["index"].tolist(), right.tolist(), strict=True))

    def compute(self, records: list[tuple[int, bool]]) -> tuple[dict[str, float], dict[str, str]]:
        right = [index for index, is_right in records if is_right]
        values = {"accuracy": len(right) / len(records), "places": sum(index for index, _ in records)}
        return values, {"right.txt": "\n".join(map(str, right))}


class ColourTask:
    """Of the first protocol alone."""

    metric = "accuracy"
    classes = ("black", "red", "green", "yellow")

    def __init__(self, train: Dataset | None = None, val: Dataset | None = None) -> None:
        self.splits = {"train": train or Pictures(44), "val": val or Pictures(21)}

    def dataset(self, split: str) -> Dataset:
        return self.splits[split]

    def losses(self, outputs: Tensor, batch: dict[str, Any]) -> dict[str, Tensor]:
        assert outputs.dtype == torch.float32
        cross_entropy = nn.functional.cross_entropy(outputs, batch["label"])
        return {"cross_entropy": cross_entropy, "size": outputs.square().mean() * 0.01}

    def evaluator(self) -> Counting:
        return Counting()


class DrawingTask(ColourTask):
    def visualize(self, outputs: Tensor, batch: dict[str, Any]) -> dict[str, list[Tensor]]:
        return {"prediction": list((batch["input"].clamp(0, 1) * 255).to(torch.uint8))}


def little(norm: bool = True, dropout: float = 0.2) -> nn.Module:
    """A convolutional network from (B, 3, 8, 8) to (B, CLASSES)."""
    layers = [nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.BatchNorm2d(8) if norm else nn.Identity(), nn.ReLU()]
    return nn.Sequential(*layers, nn.Dropout(dropout), nn.Flatten(), nn.Linear(8 * 16, CLASSES))


def trainer(
    folder: Path,
    *,
    task: ColourTask | None = None,
    train: Dataset | None = None,
    val: Dataset | None = None,
    network: Callable[[], nn.Module] = little,
    workers: int = 0,
    max_bad: int = 0,
    timeout: float = 60.0,
    lr: float = 0.05,
    decay: Callable[[], Callable[[float, float], float]] = cosine,
    factory: Callable[..., torch.optim.Optimizer] = optim.SGD,
    device: torch.device | str = "cpu",
    **settings: Any,
) -> Trainer:
    """A trainer of the tiny task over `folder`."""
    usual = {"epochs": None, "max_steps": 12, "batch": 8, "log_every": 4, "pictures": 0, "checkpoint_every": 3}
    how = Settings(**{**usual, **settings})
    data.seed_everything(1)
    return Trainer(
        task or ColourTask(train, val),
        network(),
        how,
        run_dir=folder,
        optimizer=functools.partial(optim.optimizer, factory=factory, lr=lr, batch=how.batch),
        schedule=functools.partial(Schedule, decay(), warmup_steps=2),
        loader=LoaderSettings(workers=workers, max_bad=max_bad, timeout=timeout),
        seed=5,
        device=device,
        about={"config": {"name": "little"}},
    )


def run(made: Trainer) -> Trainer:
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
    return {name: value for name, value in state.items() if name not in ("pace", "about")}


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
