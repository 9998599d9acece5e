"""What a run says of itself at its start and its end."""

from __future__ import annotations

import copy
import json
import platform
import subprocess
from pathlib import Path
from typing import Any

import torch
import torchvision

import tdaf
from tdaf.cli.compose import Config
from tdaf import measure
from tdaf.engine import dist, optim
from tdaf.engine.trainer import Trainer
from tdaf.errors import UnreadableSample
from tdaf.task import Dataset


def introduce(config: Config, trainer: Trainer, training: Dataset, validation: Dataset) -> None:
    """The size of everything, and the effective batch and learning rate, before the waiting begins."""
    settings, rate, say = trainer.settings, optim.describe(trainer.optimizer), trainer.folder.say
    base = config["optim"].get("base_batch")
    scaled = f" = {config['optim']['lr']:g} x {settings.batch}/{base}" if base else ""
    skipped = training.skipped + validation.skipped
    say(
        f"{config['name']} in {trainer.folder.folder}: {len(training)} training, {len(validation)} validation samples"
        + (f", {skipped} on the skip list" if skipped else "")
    )
    for split, dataset in (("training", training), ("validation", validation)):
        for note, count in dataset.notes.items():
            say(f"{split} annotations: {count} {note}")
    parts = f"{_count(dist.world(), 'rank')} x {trainer.order(0).micro} x {_count(settings.accumulate, 'part')}"
    say(
        f"{measure.parameters(trainer.network).total / 1e6:.3f}M parameters; "
        f"{trainer.steps} steps of {settings.batch} samples ({parts}), {trainer.steps_per_epoch} an epoch; "
        f"{rate['optimizer']} lr {rate['lr']:g}{scaled}; {trainer.precision.kind} on {trainer.device}"
    )


def summarise(config: Config, trainer: Trainer) -> None:
    """Writes summary.json; its being there is what makes a run a finished one."""
    if dist.rank() != 0:
        return
    last, metric = trainer.last, trainer.task.metric
    summary = {
        "task": config["name"],
        "protocol": last.protocol,
        "metric": {"name": metric, "best": trainer.best["value"], "last": last.values[metric]},
        "metrics": last.values,
        "best": trainer.best,
        "samples": last.samples,
        "skipped": last.skipped,
        "skipped_in_training": len(trainer.training.bad),
        "params": measure.parameters(trainer.network).total,
        "gflops": _gflops(trainer),
        "images_per_second": trainer.steps * trainer.settings.batch / trainer.pace.training,
        "seconds": trainer.pace.everything,
        "device": torch.cuda.get_device_name(trainer.device) if trainer.device.type == "cuda" else "cpu",
        "ranks": dist.world(),
        "precision": trainer.precision.kind,
        "config": config,
        "versions": versions(),
        "git": commit(),
    }
    trainer.folder.write("summary.json", json.dumps(summary, indent=2) + "\n")
    best = f"best {trainer.best['value']:.4g} at epoch {trainer.best['epoch']:.4g}"
    path = trainer.folder.folder / "summary.json"
    trainer.folder.say(f"finished: {metric} {last.values[metric]:.4g} ({best}); {path}")


def versions() -> dict[str, Any]:
    return {
        "tdaf": tdaf.__version__,
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "python": platform.python_version(),
    }


def commit() -> str | None:
    """The commit of this source tree, with "+" behind it where files differ from it; None outside a checkout."""

    def git(*words: str) -> str:
        found = subprocess.run(["git", *words], cwd=Path(__file__).parent, capture_output=True, text=True, check=True)
        return found.stdout.strip()

    try:
        return git("rev-parse", "HEAD") + ("+" if git("status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def _gflops(trainer: Trainer) -> float:
    """Of one validation sample, in the paper's sense (10^9 multiply-adds), counted on the meta device."""
    dataset = trainer.validation().dataset
    sample = next(filter(None, (_read(dataset, index) for index in range(len(dataset)))))
    inputs = dataset.collate([sample])["input"]
    return measure.gflops(copy.deepcopy(trainer.network).to("meta"), inputs.to("meta")).total


def _read(dataset: Dataset, index: int) -> dict[str, Any] | None:
    """None for a sample that cannot be read; not all of them are such, or there would be no evaluation."""
    try:
        return dataset[index]
    except UnreadableSample:
        return None


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
