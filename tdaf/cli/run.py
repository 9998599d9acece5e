"""One training run: the objects that its resolved configuration describes, given to a Trainer; and a job's ranks."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from pathlib import Path

import torch

from tdaf.build import make
from tdaf.cli import build, rehearsal
from tdaf.cli.compose import Config, differences, from_folder, to_yaml
from tdaf.cli.ending import exit_code
from tdaf.engine import checkpoint, data, dist
from tdaf.engine.log import RunFolder
from tdaf.engine.settings import LoaderSettings
from tdaf.engine.trainer import Trainer
from tdaf.errors import RunError, UserError, first_line, refused_files
from tdaf.model.maps import flow_statistics
from tdaf.streams import lossy_streams

Job = Callable[[Config, torch.device], None]
LENGTH = ("trainer.epochs:", "trainer.max_steps:")


def train(config: Config, device: torch.device) -> None:
    """Trains, or goes on with, the run in `run_dir`; a finished one is only reported. recipe=check is a rehearsal."""
    done = dist.broadcast(dist.run_on_all_ranks(lambda: finished(config)))
    if done:
        if dist.rank() == 0:
            print(done, flush=True)
        return
    how = {
        "optimizer": build.optimizer(config),
        "schedule": make(config["schedule"], "schedule"),
        "loader": loader_settings(config),
        "seed": config["seed"],
        "device": device,
        "about": {"config": config},
        "name": config["name"],
    }
    task, network, notes = dist.run_on_all_ranks(lambda: _built(config))
    if config.get("recipe") == "check":
        return rehearsal.check(config, task, network, **how)
    trainer = Trainer(
        task,
        network,
        build.settings(config),
        run_dir=config["run_dir"],
        files={"config.yaml": to_yaml(config)},
        notes=notes,
        changed_data=config["data"].get("changed", False),
        **how,
    )
    dist.run_on_all_ranks(lambda: rehearsal.shapes(trainer))
    trainer.fit()


def launch(job: Job, config: Config) -> int:
    """Runs `job(config, device)` on as many ranks as `gpus` asks for, or as one rank of torchrun's.

    Returns an exit code, as `exit_code` has them. Raises UserError where there are not as many GPUs.
    """
    gpus = dist.count_gpus(config["gpus"])
    if dist.under_torchrun() or gpus <= 1:
        return run_rank(job, config, gpus)
    from tdaf.engine.spawn import spawn

    return spawn(run_rank, (job, config, gpus), gpus)


@lossy_streams()
def run_rank(job: Job, config: Config, gpus: int) -> int:
    """One rank of the job, on a GPU if `gpus` is not 0. Returns its exit code."""
    timeout = dist.collective_timeout(config["trainer"]["hang_timeout"], config["loader"]["timeout"])

    @dist.explain_peer_failure()
    def ranked() -> None:
        try:
            job(config, dist.join("cuda" if gpus else "cpu", timeout))
        except torch.cuda.OutOfMemoryError as error:
            raise RunError(f"out of GPU memory: {first_line(error)} ({_smaller(config)})") from error

    try:
        return exit_code(ranked, "interrupted; the same command goes on from the last checkpoint", dist.rank)
    finally:
        dist.leave()


def _smaller(config: Config) -> str:
    """What makes a run take less of a GPU's memory."""
    batch, parts = config["trainer"]["batch"], config["trainer"]["accumulate"]
    again = "" if config.get("tdaf", {}).get("rematerialise") else ", or tdaf.rematerialise=true (slower)"
    return f"try trainer.accumulate={2 * parts} (the same run), less than trainer.batch={batch}{again}"


start = functools.partial(launch, train)  # (config) -> exit code, on as many ranks as `gpus` says


def _built(config: Config) -> tuple:
    """The task, the network with its first weights, and what there is to say of these."""
    build.settings(config)
    task = build.task(config)
    data.seed_everything(data.mix_seed(config["seed"], "weights"))
    network = build.network(config, task)
    going_on = checkpoint.exists(Path(config["run_dir"]) / "checkpoints")
    report = None if going_on else build.load_pretrained(config, network)
    notes = _about_backbone(config, network)
    if report:
        notes += [f"begins with the weights of {config['pretrained']}", str(report)]
    return task, network, notes


def _about_backbone(config: Config, network: torch.nn.Module) -> list[str]:
    """What differs with the network and is not to be guessed: where its library's colours come from, and MFBN's use."""
    notes = []
    if source := config["backbone"].get("network"):
        task = config["task"]
        crop = task.get("val_transforms", {}).get(task.get("protocol"), {})
        taken = [f"{key} {crop[key]}" for key in ("size", "short_side", "interpolation") if key in crop]
        notes.append(f"pixels as {source} has them: mean {task['mean']}, std {task['std']}{', '.join(['', *taken])}")
    parts = {part for part, _ in flow_statistics(network)}
    if config["flows"] > 1 and not any(part.startswith("stage") for part in parts):
        notes.append("the backbone has no batch norm: Eq. 4 (MFBN) has nothing to keep apart by flow there")
    return notes


def loader_settings(config: Config) -> LoaderSettings:
    settings = {**config["loader"], "_target_": "tdaf.engine.settings.LoaderSettings"}
    return make(settings, "loader", max_bad=config["data"].get("max_bad", 0))


def finished(config: Config) -> str | None:
    """A sentence if this run is complete already. UserError if its folder belongs to a run with other settings."""
    folder = Path(config["run_dir"])
    with refused_files(f"run_dir={folder}"):
        if not (folder / "config.yaml").exists():
            return None
    before = from_folder(folder)
    changed = differences(before, config)
    done = RunFolder(folder).finished()
    if changed:
        if done and all(text.startswith(LENGTH) for text in changed):
            hint = f"to begin a longer one with its weights, give another run_dir and pretrained={folder}"
            raise UserError(f"{folder} holds a finished run of another length ({'; '.join(changed)}): {hint}")
        shown = "; ".join(changed[:3]) + ("; ..." if len(changed) > 3 else "")
        hint = "give another run_dir, or delete that folder"
        raise UserError(f"{folder} holds a run with other settings ({shown}): {hint}")
    if done and not config["data"].get("changed") and _root(before) != _root(config):
        _check_same_data(folder, config)
    return done


def _root(config: Config) -> str | None:
    root = config["data"].get("root")
    return os.path.abspath(root) if isinstance(root, str) else None


def _check_same_data(folder: Path, config: Config) -> None:
    """Raises UserError where a run's checkpoint is of other data than those that lie where the settings say now."""
    state, _ = checkpoint.load_last(folder / "checkpoints")
    if state is None:
        return
    task = build.task(config)
    samples = checkpoint.samples_of({split: task.dataset(split) for split in ("train", "val")})
    now = {"classes": list(task.classes), "samples": samples}
    checkpoint.check_unchanged(state.get("about", {}), now, f"the finished run in {folder}")
