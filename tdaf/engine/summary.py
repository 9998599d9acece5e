"""What a run says of itself at its start and its end."""

from __future__ import annotations

import copy
import platform
from typing import Any

import torch
import torchvision
from torch import nn

import tdaf
from tdaf import measure
from tdaf.engine import dist, optim
from tdaf.engine.precision import to_device
from tdaf.errors import UnreadableSample
from tdaf.task import Dataset

Trainer = Any  # tdaf.engine.trainer's, which imports this module


def introduce(trainer: Trainer) -> None:
    """Says the size of everything, and the effective batch and learning rate, before the waiting begins."""
    settings, say = trainer.settings, trainer.folder.say
    splits = {"training": trainer.train_set, "validation": trainer.val_set}
    skipped = sum(dataset.skipped for dataset in splits.values())
    say(
        f"{trainer.name} in {trainer.folder.folder}: "
        + ", ".join(f"{len(dataset)} {split}" for split, dataset in splits.items())
        + f" samples{f', {skipped} on the skip list' if skipped else ''}"
    )
    for split, dataset in splits.items():
        for note, count in dataset.notes.items():
            say(f"{split} annotations: {count} {note}")
    parts = f"{_count(dist.world(), 'rank')} x {trainer.micro_batch} x {_count(settings.accumulate, 'part')}"
    say(
        f"{measure.parameters(trainer.network).total / 1e6:.3f}M parameters; "
        f"{trainer.steps} steps of {settings.batch} samples ({parts}), {trainer.steps_per_epoch} an epoch; "
        f"{optim.describe(trainer.optimizer)}; {trainer.precision.kind} on {trainer.device}{trainer.precision.note}"
    )
    if settings.pictures and dist.rank() == 0 and hasattr(trainer.task, "draw_targets"):
        from tdaf.engine.visualize import targets

        indices = range(min(settings.pictures, len(trainer.train_set)))
        for place, picture in enumerate(targets(trainer.task, trainer.train_set, indices, trainer.seed)):
            trainer.folder.picture(f"target/{place}", picture, 0)


def summarise(trainer: Trainer) -> None:
    """Writes summary.json; its being there is what makes a run a finished one."""
    if dist.rank() != 0:
        return
    from tdaf.env import commit

    last, best, metric = trainer.last, trainer.best, trainer.task.metric
    summary = {
        "task": trainer.name,
        "protocol": last.protocol,
        "metric": {"name": metric, "best": best["value"], "last": last.values[metric]},
        "metrics": last.values,
        "best": best,
        "samples": last.samples,
        "skipped": last.skipped,
        "skipped_in_training": len(trainer.training.bad),
        "params": measure.parameters(trainer.network).total,
        "gflops": gflops(trainer.network, trainer.val_set, trainer.device),
        "images_per_second": trainer.step * trainer.settings.batch / trainer.throughput.training,
        "seconds": trainer.throughput.total,
        "device": torch.cuda.get_device_name(trainer.device) if trainer.device.type == "cuda" else "cpu",
        "ranks": dist.world(),
        "precision": trainer.precision.kind,
        "config": trainer.about.get("config"),
        "versions": versions(),
        "git": commit(),
    }
    trainer.folder.summarise(summary)
    numbers = f"{metric} {last.values[metric]:.4g} (best {best['value']:.4g} at epoch {best['epoch']:.4g})"
    trainer.folder.say(f"finished: {numbers}; {trainer.folder.folder / 'summary.json'}")


def versions() -> dict[str, str]:
    own = {"tdaf": tdaf.__version__, "python": platform.python_version()}
    return {**own, "torch": torch.__version__, "torchvision": torchvision.__version__}


def gflops(network: nn.Module, dataset: Dataset, device: torch.device) -> float:
    """Of one sample, in the paper's sense (10^9 multiply-adds), counted on the meta device where the network can run
    there; one that reads a value runs for it."""
    for index in range(len(dataset)):  # not all are unreadable, or there would have been no evaluation
        try:
            inputs = dataset.collate([dataset[index]])["input"]
            break
        except UnreadableSample:
            continue
    try:
        return measure.gflops(copy.deepcopy(network).to("meta"), to_device(inputs, "meta")).total
    except RuntimeError:
        return measure.gflops(copy.deepcopy(network), to_device(inputs, device)).total


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
