"""One rank of a training run: everything built from the resolved configuration, checked, then trained."""

from __future__ import annotations

import fcntl
import functools
import json
from pathlib import Path
from typing import IO, Any

import torch

from configs import build
from configs.compose import Config, differences, from_folder, to_yaml
from configs.launch import together
from configs.summary import introduce, summarise
from tdaf.engine import checkpoint, dist, seeds
from tdaf.engine.loader import EvaluationOrder, Loader, TrainingOrder, default_workers
from tdaf.engine.log import RunFolder
from tdaf.engine.trainer import Trainer
from tdaf.errors import RunError, UserError
from tdaf.task import Dataset


def train(config: Config, device: torch.device) -> None:
    """Trains, or goes on with, the run in `run_dir`; a finished one is only reported."""
    finished = together(lambda: _finished(config))
    if finished:
        if dist.rank() == 0:
            print(finished, flush=True)
        return
    trainer = together(lambda: _built(config, device))
    trainer.fit()
    summarise(config, trainer)


def loading(config: Config, device: torch.device) -> dict[str, Any]:
    """Loader's settings."""
    settings = dict(config["loader"])
    if settings["workers"] == "auto":
        settings["workers"] = default_workers(max(1, torch.cuda.device_count()) if dist.world() > 1 else 1)
    return {**settings, "seed": config["seed"], "max_bad": config["data"]["max_bad"], "pin": device.type == "cuda"}


def validation(dataset: Dataset, batch: int, settings: dict[str, Any]) -> Loader:
    """This rank's share of a split, in batches of `batch`."""
    return Loader(dataset, EvaluationOrder(len(dataset), batch, rank=dist.rank(), ranks=dist.world()), **settings)


def _finished(config: Config) -> str | None:
    """A sentence if this run is complete already. UserError if its folder belongs to a run with other settings."""
    folder = Path(config["run_dir"])
    if not (folder / "config.yaml").exists():
        return None
    changed = differences(from_folder(folder), config)
    if changed:
        raise UserError(
            f"{folder} holds a run with other settings ({'; '.join(changed[:3])}{'; ...' if len(changed) > 3 else ''}): "
            "give another run_dir, or delete that folder"
        )
    try:
        metric = json.loads((folder / "summary.json").read_text())["metric"]
    except (FileNotFoundError, ValueError, KeyError):
        return None
    numbers = f"{metric['name']} {metric['last']:.4g} (best {metric['best']:.4g})"
    return f"{folder} is finished: {numbers}; delete it to run it again"


def _built(config: Config, device: torch.device) -> Trainer:
    """All that a run needs, before a worker starts or the GPU is used. The run folder comes last: a mistake leaves none."""
    settings = build.make({"_target_": "tdaf.engine.settings.Settings", **config["trainer"]}, "trainer")
    task = build.task(config)
    splits = {name: task.dataset(name) for name in ("train", "val")}
    order = functools.partial(
        TrainingOrder,
        len(splits["train"]),
        settings.batch,
        seed=config["seed"],
        rank=dist.rank(),
        ranks=dist.world(),
        accumulate=settings.accumulate,
    )
    micro = order().micro
    seeds.set_all(seeds.mix(config["seed"], "weights"))
    network = build.network(config, task)
    report = build.load_pretrained(config, network)
    state, said = checkpoint.load_last(Path(config["run_dir"]) / "checkpoints")
    seeds.set_all(seeds.mix(config["seed"], "rank", dist.rank()))
    reading = loading(config, device)
    trainer = Trainer(
        settings,
        task,
        network,
        make_optimizer=build.optimizer(config),
        make_schedule=build.make(config["schedule"], "schedule"),
        order=lambda start: order(start=start),
        loader=lambda order: Loader(splits["train"], order, **reading),
        validation=lambda: validation(splits["val"], micro, reading),
        folder=_open(config, state),
        device=device,
        about={"config": config, "classes": list(task.classes)},
    )
    for line in filter(None, [said, str(report or "")]):
        trainer.folder.say(line)
    if state:
        trainer.restore(state)
        trainer.folder.say(f"going on from step {trainer.step} of {trainer.steps}")
    else:
        introduce(config, trainer, splits["train"], splits["val"])
    return trainer


_locks: list[IO[str]] = []  # a lock lasts as long as its file is open


def _open(config: Config, state: dict[str, Any] | None) -> RunFolder:
    """The run folder with the settings in it, locked against a second process."""
    path = Path(config["run_dir"])
    if dist.rank() != 0:
        return RunFolder(path, quiet=True)
    try:
        path.mkdir(parents=True, exist_ok=True)
        lock = open(path / ".lock", "w")
    except OSError as error:
        raise UserError(f"run_dir={path} cannot be written: {error.strerror}") from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        raise UserError(f"another process is training in {path}; wait for it, or give another run_dir") from None
    _locks.append(lock)
    step, evaluated = (state["step"], state["evaluated"]) if state else (0, 0)
    try:
        folder = RunFolder(path, step=step, evaluated=evaluated)
        folder.write("config.yaml", to_yaml(config))
    except RunError as error:
        raise UserError(str(error)) from error
    return folder
