"""One rank of an evaluation of a checkpoint."""

from __future__ import annotations

import functools
import json

import torch

from tdaf.cli import build
from tdaf.cli.compose import Config
from tdaf.cli.launch import launch
from tdaf.cli.run import loading, validation
from tdaf.cli.trained import Trained, read
from tdaf.engine import dist
from tdaf.engine.evaluate import evaluate
from tdaf.engine.log import RunFolder
from tdaf.engine.precision import Precision
from tdaf.model.fold import fold


def evaluate_checkpoint(path: str | None, overrides: list[str], folded: bool = False) -> int:
    """Evaluates on as many ranks as `gpus` says; prints the numbers and writes `evaluation-<protocol>.json` into the
    run folder, with the overrides. folded: with every batch norm folded into its convolution. Returns an exit code."""
    config = read(path, overrides).config  # a mistake is found before ranks are started
    return launch(functools.partial(_job, path, overrides, folded), config)


def evaluate_in_turn(path: str, several: list[list[str]]) -> int:
    """One evaluation after another, each with its own overrides. Returns the first exit code that is not 0."""
    return next((code for overrides in several if (code := evaluate_checkpoint(path, overrides))), 0)


def _job(path: str, overrides: list[str], folded: bool, config: Config, device: torch.device) -> None:
    trained, task, network, loader = dist.together(lambda: _built(path, overrides, folded, device))
    precision = Precision(config["trainer"]["precision"], device, config["trainer"]["channels_last"])
    files: dict[str, str] = {}
    found = evaluate(precision.place(network), task, loader, precision, keep=files.__setitem__)
    if dist.rank() != 0:
        return
    for name, text in files.items():
        if name.endswith(".md"):
            print(text)
    print(f"{trained.path}: {found}", flush=True)
    how = {"checkpoint": str(trained.path), "settings": overrides, "folded": folded}
    numbers = json.dumps({**how, **vars(found)}, indent=2) + "\n"
    folder = RunFolder(trained.folder)
    for name, text in {f"evaluation-{found.protocol}.json": numbers, **files}.items():
        folder.write(name if name not in files else f"evaluation-{found.protocol}/{name}", text)


def _built(path: str, overrides: list[str], folded: bool, device: torch.device) -> tuple:
    trained: Trained = read(path, overrides)
    task = build.task(trained.config)
    network = trained.network(task)
    dataset = task.dataset("val")
    batch = max(1, trained.config["trainer"]["batch"] // trained.config["trainer"]["accumulate"] // dist.world())
    loader = validation(dataset, batch, loading(trained.config, device))
    return trained, task, fold(network) if folded else network, loader
