"""What the masks are drawn of: a trained network, and samples of files or of the run's validation split."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tdaf.cli import build, prediction, trained
from tdaf.engine.precision import Precision
from tdaf.errors import UserError
from tdaf.media.suffixes import is_video
from tdaf.model.flows import TDAF
from tdaf.model.maps import attention_maps, mask_eta
from tdaf.task import Dataset, Task

MOST = 8  # samples of one picture that are drawn, such as its persons


@dataclass(frozen=True)
class Model:
    """network: with its weights, on the device of `precision`. dims: 2 for images, 3 for clips."""

    run: trained.Trained
    task: Task
    network: nn.Module
    precision: Precision
    dims: int

    def masks(self, x: Tensor) -> dict[tuple[int, int], Tensor]:
        """`attention_maps` of inputs from the CPU."""
        with self.precision.autocast():
            return attention_maps(self.network, x.to(self.precision.device))


@dataclass(frozen=True)
class Shot:
    """One picture to draw. title: over it. target: its file, below `out`, without an ending. indices: its samples, in
    their order. moments: so many, evenly over all frames of the samples; None: each sample, a clip's own moments.
    fps: of the inputs when all are drawn; None for what is no video."""

    title: str
    target: Path
    indices: Sequence[int]
    moments: int | None = None
    fps: Fraction | None = None


@dataclass(frozen=True)
class Shots:
    """faults: files of which there is no sample, or not all, with the reason."""

    dataset: Dataset
    shots: list[Shot]
    faults: dict[str, str] = field(default_factory=dict)


def opened(checkpoint: str | None, overrides: list[str]) -> Model:
    """The network of a checkpoint or run folder. Raises UserError, one line, where it has no masks."""
    run = trained.read(checkpoint, overrides)
    task = run.task()
    network = run.network(task)
    if mask_eta(network) is None:
        raise UserError(f"{run.path} has no attention maps: {_reason(run.config)}")
    device = torch.device("cuda" if torch.cuda.is_available() and run.config["gpus"] != 0 else "cpu")
    precision = Precision("auto", device, run.config["trainer"]["channels_last"])
    dims = next(module.dims for module in network.modules() if isinstance(module, TDAF))
    return Model(run, task, precision.place(network), precision, dims)


def of_files(model: Model, paths: list[Path], base: Path, options: dict[str, str], moments: int) -> Shots:
    """A picture a file. options: of the task's own, as typed."""
    inputs = model.task.predict_dataset(paths, **prediction.taken(model.task, options))
    pictures, shots = inputs.pictures, []

    def file(index: int) -> Path:
        return pictures.file(inputs.shown(index)[0])

    for path, group in groupby(range(len(inputs)), file):
        indices, name = list(group), path.relative_to(base)
        if is_video(path):
            shots.append(Shot(str(name), name, indices, moments, pictures.fps(path)))
        else:
            rest = len(indices) - MOST
            title = str(name) + (f" (the first {MOST} of {len(indices)})" if rest > 0 else "")
            shots.append(Shot(title, name, indices[:MOST]))
    return Shots(inputs, shots, {str(path): why for path, why in pictures.faults.items()})


def of_validation(model: Model, count: int, options: dict[str, str]) -> Shots:
    """A picture a sample, `count` of them evenly over the split."""
    if options:
        name, value = next(iter(options.items()))
        raise UserError(f"{name}={value}: this goes with input=...; of validation samples there is no such setting")
    dataset = build.task(model.run.config).dataset("val")
    shots = [Shot(f"val: {dataset.name(index)}", Path(f"val-{index:05}"), [index]) for index in evenly(dataset, count)]
    return Shots(dataset, shots)


def evenly(dataset: Dataset, count: int) -> list[int]:
    """At most `count` places, evenly over the data set."""
    count = min(count, len(dataset))
    return [place * len(dataset) // count for place in range(count)]


def _reason(config: dict[str, Any]) -> str:
    if config["flows"] == 1:
        return "flows=1 is the plain network, which looks once"
    if config["tdaf"]["_target_"].endswith("MultiScale"):
        return "tdaf=multiscale runs its flows without gates"
    return "no stage has a gate (see tdaf.gated)"
