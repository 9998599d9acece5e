"""A trained network again, from a checkpoint or a run folder: what evaluate, predict and other scripts start from."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn

from tdaf.cli import build
from tdaf.cli.compose import Config, overridden
from tdaf.engine import checkpoint
from tdaf.errors import UserError
from tdaf.task import Task


@dataclass
class Trained:
    """path: the checkpoint's file. config: its run's settings with the overrides. about: what was stored with them."""

    path: Path
    config: Config
    about: dict[str, Any]
    state: dict[str, Any]

    @property
    def folder(self) -> Path:
        """The run folder, or the checkpoint's own where it lies alone."""
        return self.path.parent.parent if self.path.parent.name == "checkpoints" else self.path.parent

    def task(self) -> Task:
        """The run's task with the names of its classes and without its data: enough to predict with."""
        return build.make(self.config["task"], "task", data=SimpleNamespace(classes=self.about["classes"]))

    def network(self, task: Task) -> nn.Module:
        """The network with its weights, in eval mode on the CPU. Raises UserError where they do not fit."""
        trained, here = len(self.about["classes"]), len(task.classes)
        if trained != here:
            raise UserError(f"{self.path} was trained for {trained} classes, and the data have {here}")
        config = {**self.config, "pretrained": None}
        network = build.network(config, task)
        try:
            network.load_state_dict(self.weights())
        except RuntimeError as error:
            first = next((line.strip() for line in str(error).splitlines()[1:]), str(error))
            raise UserError(f"{self.path} is not of this network: {first[:200]}") from error
        return network.eval()

    def weights(self) -> dict[str, torch.Tensor]:
        """The weights that are evaluated: the averaged ones where the run keeps them."""
        averaged = self.state.get("ema")
        if averaged is None:
            return self.state["network"]
        return {k.removeprefix("module."): v for k, v in averaged.items() if k.startswith("module.")}


def read(path: str | None, overrides: list[str]) -> Trained:
    """path: a checkpoint, or a run folder, whose best checkpoint is taken. UserError if it is neither."""
    if not path:
        raise UserError("give checkpoint=RUN_FOLDER or checkpoint=RUN_FOLDER/checkpoints/best.pt")
    place = Path(path)
    if place.is_dir():
        place = place / "checkpoints" / checkpoint.BEST
    state = checkpoint.load(place)
    about = state.get("about")
    if not isinstance(about, dict) or "config" not in about:
        raise UserError(f"{place} was not written by train.py: it does not say its settings")
    return Trained(place, overridden(about["config"], overrides), about, state)
