"""Where a run's numbers and pictures go beside metrics.jsonl: TensorBoard, a table, Weights & Biases, MLflow.

A logger that fails is told of once and dropped: it never stops a training. What W&B and MLflow need to go on with the
same run is in loggers.json of the run folder.
"""

from __future__ import annotations

import csv
import importlib.util
import json
import os
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tdaf.errors import UserError, first_line
from tdaf.settings import flat

if TYPE_CHECKING:
    from torch import Tensor

PROJECT = "tdaf"
IDS = "loggers.json"
Numbers = Mapping[str, float]


def check(names: Sequence[str]) -> None:
    """Raises UserError for a name that is none, or whose package is not installed."""
    for name in names:
        if name not in KINDS:
            raise UserError(f"log={list(names)}: there is no {name}; give some of {', '.join(KINDS)}")
        if name != "csv" and importlib.util.find_spec(name) is None:
            raise UserError(f"log={list(names)}: {name} is not installed: pip install -e '.[{name}]'")


class Loggers:
    """All loggers of a run.

    Args:
        names: of `KINDS`.
        folder: the run's, whose last two parts are the run's name there.
        settings: the run's, plain data.
        step: that the run goes on from.
        tell: is given the sentence about a logger that failed.
    """

    def __init__(
        self, names: Sequence[str], folder: Path, settings: Mapping[str, Any], step: int, tell: Callable[[str], None]
    ) -> None:
        self._tell, self._open = tell, {}
        for name in names:
            self._try(name, lambda name=name: self._open.update({name: KINDS[name](folder, settings, step)}))

    def each(self, method: str, *arguments: Any) -> None:
        """Calls a method of `Logger` on all of them."""
        for name, logger in list(self._open.items()):
            self._try(name, lambda logger=logger: getattr(logger, method)(*arguments))

    def _try(self, name: str, call: Callable[[], Any]) -> None:
        try:
            call()
        except Exception as error:  # of a service or library that is none of ours
            self._open.pop(name, None)
            why = f"{type(error).__name__}: {first_line(error)}"
            self._tell(f"log: {name} failed and is left out from here on: {why}")


class Logger:
    """What a logger may do; by itself nothing."""

    def event(self, split: str, step: int, epoch: float, values: Numbers) -> None: ...

    def picture(self, name: str, image: Tensor, step: int) -> None:
        """image: uint8 RGB (3, H, W)."""

    def summary(self, summary: Mapping[str, Any]) -> None: ...

    def close(self, fault: bool) -> None: ...


class TensorBoard(Logger):
    """Event files in tensorboard/; what a killed run left of later steps is purged."""

    def __init__(self, folder: Path, settings: Mapping[str, Any], step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter  # takes a second to import

        self.board = SummaryWriter(str(folder / "tensorboard"), purge_step=step + 1)
        self.picture = self.board.add_image

    def event(self, split: str, step: int, epoch: float, values: Numbers) -> None:
        for name, value in values.items():
            self.board.add_scalar(f"{split}/{name}", value, step)

    def close(self, fault: bool) -> None:
        self.board.close()


class Table(Logger):
    """metrics.csv, a row a number, by the standard library's csv."""

    def __init__(self, folder: Path, settings: Mapping[str, Any], step: int) -> None:
        self.file = open(folder / "metrics.csv", "w", newline="", buffering=1)
        self.rows = csv.writer(self.file)
        self.rows.writerow(("step", "epoch", "split", "name", "value"))
        with suppress(FileNotFoundError):  # a run that goes on: what is kept of it
            for line in (folder / "metrics.jsonl").read_text().splitlines():
                values = json.loads(line)
                self.event(values.pop("split"), values.pop("step"), values.pop("epoch"), values)

    def event(self, split: str, step: int, epoch: float, values: Numbers) -> None:
        self.rows.writerows((step, round(epoch, 4), split, name, value) for name, value in values.items())

    def close(self, fault: bool) -> None:
        self.file.close()


class WandB(Logger):
    """Weights & Biases. WANDB_MODE=offline writes into the run folder what `wandb sync` sends later. Of a run that goes
    on, steps that are made again are the same, and W&B keeps the first."""

    def __init__(self, folder: Path, settings: Mapping[str, Any], step: int) -> None:
        import wandb

        own = _remembered(folder, "wandb", lambda: secrets.token_hex(4))
        where = {"project": os.environ.get("WANDB_PROJECT", PROJECT), "name": run_name(folder), "dir": str(folder)}
        quiet = wandb.Settings(console="off", silent=True)
        self.image = wandb.Image
        self.run = wandb.init(**where, id=own, resume="allow", config=dict(settings), settings=quiet)

    def event(self, split: str, step: int, epoch: float, values: Numbers) -> None:
        self.run.log(_named(split, epoch, values), step=step)

    def picture(self, name: str, image: Tensor, step: int) -> None:
        self.run.log({name: self.image(image.permute(1, 2, 0).numpy())}, step=step)

    def summary(self, summary: Mapping[str, Any]) -> None:
        self.run.summary.update({key: value for key, value in summary.items() if key != "config"})

    def close(self, fault: bool) -> None:
        self.run.finish(exit_code=int(fault))


class MLflow(Logger):
    """MLflow's tracking, where MLFLOW_TRACKING_URI says; without it into mlruns/ beside the run's own folder."""

    def __init__(self, folder: Path, settings: Mapping[str, Any], step: int) -> None:
        os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")  # which works without a server, and has to be allowed
        from mlflow import MlflowClient
        from mlflow.entities import Metric, Param

        uri = os.environ.get("MLFLOW_TRACKING_URI") or (folder.absolute().parent / "mlruns").as_uri()
        self.client, self.metric = MlflowClient(uri), Metric
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
        experiment = self.client.get_experiment_by_name(name)
        number = experiment.experiment_id if experiment else self.client.create_experiment(name)
        made: list[str] = []

        def new() -> str:
            made.append(self.client.create_run(number, run_name=run_name(folder)).info.run_id)
            return made[0]

        self.id = _remembered(folder, "mlflow", new)
        if not made:
            self.client.update_run(self.id, "RUNNING")
            return
        texts = [Param(key, str(value)[:500]) for key, value in flat(settings).items()]
        for start in range(0, len(texts), 100):  # as many as a request may have
            self.client.log_batch(self.id, params=texts[start : start + 100])

    def event(self, split: str, step: int, epoch: float, values: Numbers) -> None:
        now, rows = int(time.time() * 1000), _named(split, epoch, values).items()
        self.client.log_batch(self.id, [self.metric(name, float(value), now, step) for name, value in rows])

    def picture(self, name: str, image: Tensor, step: int) -> None:
        self.client.log_image(self.id, image.permute(1, 2, 0).numpy(), f"pictures/{name}-{step}.png")

    def summary(self, summary: Mapping[str, Any]) -> None:
        self.client.log_dict(self.id, dict(summary), "summary.json")

    def close(self, fault: bool) -> None:
        self.client.set_terminated(self.id, "FAILED" if fault else "FINISHED")


KINDS = {"tensorboard": TensorBoard, "csv": Table, "wandb": WandB, "mlflow": MLflow}


def run_name(folder: Path) -> str:
    """The run folder's own name, behind its task's, as in runs/imagenet/res50-..."""
    return "/".join(folder.absolute().parts[-2:])


def _named(split: str, epoch: float, values: Numbers) -> dict[str, float]:
    return {"epoch": epoch, **{f"{split}/{name}": value for name, value in values.items()}}


def _remembered(folder: Path, name: str, new: Callable[[], str]) -> str:
    """What loggers.json has under `name`; a new one is written there."""
    try:
        known = json.loads((folder / IDS).read_text())
    except (FileNotFoundError, ValueError):
        known = {}
    if name not in known:
        known[name] = new()
        (folder / IDS).write_text(json.dumps(known) + "\n")
    return known[name]
