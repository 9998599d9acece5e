"""What shows on the meta device, where nothing is computed: mistakes, before anything waits for them."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from tdaf.cli import build
from tdaf.cli.compose import Config
from tdaf.cli.compose import first_line
from tdaf.engine import dist
from tdaf.errors import UnreadableSample, UserError
from tdaf.task import Dataset


def settings(config: Config) -> None:
    """Raises UserError for a run that cannot work, as far as that shows without samples and weights."""
    dist.count_gpus(config["gpus"])
    build.settings(config)
    build.optimizer(config)
    build.make(config["schedule"], "schedule", steps_per_epoch=1, steps=1)
    task = build.task(config)
    with torch.device("meta"):
        build.network(config, task)


@torch.no_grad()
def shapes(network: nn.Module, training: Dataset, validation: Dataset, batch: int) -> None:
    """Raises UserError where the network cannot take the shapes of the first samples, in training `batch` a step."""
    empty = copy.deepcopy(network).to("meta")
    for dataset, mode, size in ((training, True, batch), (validation, False, 1)):
        try:
            inputs = dataset.collate([dataset[0]])["input"]
        except UnreadableSample:
            continue  # the loader names it and counts it
        if not isinstance(inputs, Tensor):
            continue
        try:
            empty.train(mode)(inputs.to("meta").expand(size, *inputs.shape[1:]))
        except UserError:
            raise
        except (RuntimeError, ValueError) as error:
            shape = "x".join(map(str, inputs.shape[1:]))
            split = "training" if mode else "validation"
            hint = "look at their size, at dims and trainer.batch"
            reason = f"{first_line(error)}; {hint}"
            raise UserError(f"the network cannot take {split} samples of {shape}: {reason}") from error
