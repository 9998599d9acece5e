"""train.py and the scripts called in this process, on data of a few tiny pictures."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import train
from tdaf.cli.script import parse

ROOT = Path(__file__).parent.parent
# a run of two steps that takes a second; {demo} is where the demo data are drawn
TINY = (
    "task=imagenet recipe=demo gpus=0 loader.workers=0 trainer.batch=8 trainer.max_steps=2 trainer.pictures=0 "
    "demo.train=40 demo.val=21 demo.size=32 task.train_transform.size=24 task.train_transform.short_side=[26,30] "
    "task.val_transforms.1crop.size=24 task.val_transforms.1crop.short_side=26 "
    "task.val_transforms.10crop.size=24 task.val_transforms.10crop.short_side=26"
).split()


def tiny(demo: Path, *more: str) -> list[str]:
    """The tiny run with other settings behind it."""
    return [*TINY, f"demo.root={demo}", *more]


def pictures(root: Path, train: Iterable[str] = ("a", "b"), val: Iterable[str] = ("a", "b"), each: int = 4) -> Path:
    """An image folder with `each` tiny JPEGs a class."""
    rng = np.random.default_rng(0)
    for split, classes in (("train", train), ("val", val)):
        (root / split).mkdir(parents=True)
        for name in classes:
            (root / split / name).mkdir()
            for number in range(each):
                pixels = rng.integers(0, 256, (32 + number, 40, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(root / split / name / f"{number}.JPEG")
    return root


def call(monkeypatch: pytest.MonkeyPatch, arguments: list[str], main: object = train.main) -> int:
    """The exit code of a command given these arguments."""
    monkeypatch.setattr("sys.argv", ["command", *arguments])
    try:
        return main()
    except SystemExit as ended:
        return ended.code


def process(arguments: list[str], folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """A command in a process of its own, started in `folder`."""
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        capture_output=True,
        text=True,
        timeout=120,
    )


def script(function: Callable[..., int | None], arguments: list[str]) -> int:
    """A script's exit code with these arguments of the command line; what it raises is not caught."""
    words, settings = parse(arguments, function)
    return function(*words, **settings) or 0
