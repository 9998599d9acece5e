"""One rank of an evaluation of a checkpoint."""

from __future__ import annotations

import functools
import json

import torch

from tdaf.cli import build
from tdaf.cli.compose import Config
from tdaf.cli.launch import launch
from tdaf.cli.run import loader_settings
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
    trained, task, network = dist.run_on_all_ranks(lambda: _built(path, overrides, folded))
    how = config["trainer"]
    precision = Precision(how["precision"], device, how["channels_last"])
    result = evaluate(
        precision.place(network),
        task,
        batch=max(1, how["batch"] // how["accumulate"] // dist.world()),
        loader=loader_settings(config),
        precision=precision,
        seed=config["seed"],
    )
    if dist.rank() != 0:
        return
    for name, text in result.files.items():
        if name.endswith(".md"):
            print(text)
    print(f"{trained.path}: {result}", flush=True)
    about = {"checkpoint": str(trained.path), "settings": overrides, "folded": folded}
    folder = RunFolder(trained.folder)
    folder.write(f"evaluation-{result.protocol}.json", json.dumps({**about, **result.as_dict()}, indent=2) + "\n")
    for name, text in result.files.items():
        folder.write(f"evaluation-{result.protocol}/{name}", text)


def _built(path: str, overrides: list[str], folded: bool) -> tuple:
    trained: Trained = read(path, overrides)
    task = build.task(trained.config)
    network = trained.network(task)
    return trained, task, fold(network) if folded else network
