"""One rank of a training run: everything built from the resolved configuration, checked, then trained."""

from __future__ import annotations

import fcntl
import functools
import json
from pathlib import Path
from typing import IO, Any

import torch

from tdaf.cli import build, rehearsal
from tdaf.cli.compose import Config, differences, from_folder, to_yaml
from tdaf.cli.launch import launch
from tdaf.build import checked
from tdaf.cli.summary import introduce, summarise
from tdaf.engine import checkpoint, dist, seeds
from tdaf.engine.loader import Loader, default_workers
from tdaf.engine.log import RunFolder
from tdaf.engine.order import EvaluationOrder, TrainingOrder
from tdaf.engine.trainer import Trainer
from tdaf.errors import RunError, UserError
from tdaf.task import Dataset


def start(config: Config) -> int:
    """Trains on as many ranks as `gpus` says. Returns an exit code."""
    return launch(train, config)


def train(config: Config, device: torch.device) -> None:
    """Trains, or goes on with, the run in `run_dir`; a finished one is only reported."""
    done = dist.broadcast(dist.together(lambda: finished(config)))
    if done:
        if dist.rank() == 0:
            print(done, flush=True)
        return
    trainer = dist.together(lambda: _built(config, device))
    steps = dist.broadcast(dist.gather(trainer.step))
    dist.together(lambda: _check_shared(config, steps))
    with trainer.folder:
        trainer.fit()
        summarise(config, trainer)


def loading(config: Config, device: torch.device) -> dict[str, Any]:
    """Loader's settings."""
    given = ("dataset", "order", "seed", "max_bad", "pin")
    settings = checked(Loader, {**config["loader"], "workers": 0}, "loader", given)
    settings["workers"] = config["loader"]["workers"]
    if settings["workers"] == "auto":
        settings["workers"] = default_workers(max(1, torch.cuda.device_count()) if dist.world() > 1 else 1)
    return {**settings, "seed": config["seed"], "max_bad": config["data"]["max_bad"], "pin": device.type == "cuda"}


def validation(dataset: Dataset, batch: int, settings: dict[str, Any]) -> Loader:
    """This rank's share of a split, in batches of `batch`."""
    return Loader(dataset, EvaluationOrder(len(dataset), batch, rank=dist.rank(), ranks=dist.world()), **settings)


def finished(config: Config) -> str | None:
    """A sentence if this run is complete already. UserError if its folder belongs to a run with other settings."""
    folder = Path(config["run_dir"])
    try:
        if not (folder / "config.yaml").exists():
            return None
    except OSError as error:
        raise UserError(f"run_dir={folder} cannot be used: {error.strerror}") from error
    changed = differences(from_folder(folder), config)
    if changed:
        shown = "; ".join(changed[:3]) + ("; ..." if len(changed) > 3 else "")
        hint = "give another run_dir, or delete that folder"
        raise UserError(f"{folder} holds a run with other settings ({shown}): {hint}")
    try:
        metric = json.loads((folder / "summary.json").read_text())["metric"]
    except (FileNotFoundError, ValueError, KeyError):
        return None
    numbers = f"{metric['name']} {metric['last']:.4g} (best {metric['best']:.4g})"
    return f"{folder} is finished: {numbers}; delete it to run it again"


def _built(config: Config, device: torch.device) -> Trainer:
    """All that a run needs, before a worker starts or the GPU is used. The folder comes last: mistakes leave none."""
    settings = build.settings(config)
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
        groups=splits["train"].groups,
    )
    micro = order().micro
    seeds.set_all(seeds.mix(config["seed"], "weights"))
    network = build.network(config, task)
    rehearsal.shapes(network, splits["train"], splits["val"], micro)
    folder = RunFolder(Path(config["run_dir"]), quiet=dist.rank() != 0)
    if folder.folder.exists():
        _lock(folder)
    state, said = checkpoint.load_last(folder.checkpoints)
    report = None if state else build.load_pretrained(config, network)
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
        folder=folder,
        device=device,
        about={"config": config, "classes": list(task.classes)},
    )
    if state:
        trainer.restore(state)
    _open(config, trainer)
    for line in filter(None, [said, str(report or "")]):
        folder.say(line)
    if state:
        folder.say(f"going on from step {trainer.step} of {trainer.steps}")
    else:
        introduce(config, trainer, splits["train"], splits["val"])
    return trainer


def _check_shared(config: Config, steps: list[int]) -> None:
    if len(set(steps)) > 1:
        raise UserError(
            f"the ranks found checkpoints of different steps {sorted(set(steps))} in run_dir={config['run_dir']}: "
            "it must lie on a disk that all machines share"
        )


def _open(config: Config, trainer: Trainer) -> None:
    """Makes the run folder, with the settings in it, or opens it to go on from the trainer's step."""
    _lock(trainer.folder)
    try:
        trainer.folder.start(trainer.step, trainer.evaluated)
        trainer.folder.write("config.yaml", to_yaml(config))
    except RunError as error:
        raise UserError(str(error)) from error


_locks: dict[Path, IO[str]] = {}  # a lock lasts as long as its file is open


def _lock(folder: RunFolder) -> None:
    """Keeps a second process out of the run folder."""
    path = folder.folder.absolute()
    if folder.quiet or path in _locks:
        return
    try:
        path.mkdir(parents=True, exist_ok=True)
        file = open(path / ".lock", "w")
    except OSError as error:
        raise UserError(f"run_dir={folder.folder} cannot be written: {error.strerror}") from error
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # flock's would live on in the loader workers of a killed run
    except OSError:
        raise UserError(f"another process is training in {folder.folder}; wait, or give another run_dir") from None
    _locks[path] = file
