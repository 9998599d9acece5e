"""What tests/test_engine_ranks.py runs as ranks; apart from it, for each rank imports this file."""

from __future__ import annotations

import copy
import functools
import os
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as td
from tiny_run import Pictures, little, run, trainer
from torch import Tensor, nn

from tdaf.cli.launch import _rank
from tdaf.engine import dist, seeds
from tdaf.engine.preempt import Preempted
from tdaf.engine.syncbn import synchronise
from tdaf.errors import RunError, UserError

CONFIG = {"loader": {"timeout": 60}, "trainer": {"hang_timeout": 60}}
plain_sgd = functools.partial(torch.optim.SGD, momentum=0.0)
HOW = {"factory": plain_sgd, "lr": 1.0, "evaluate_every": 0, "sync_bn": True}


def still(norm: bool = True) -> nn.Module:
    """Without dropout, whose masks differ between one rank and two."""
    return little(norm, 0.0)


def one_step(folder: Path) -> dict[str, Tensor]:
    """The gradients of a whole batch: minus the weights' change at learning rate 1."""
    made = trainer(folder, network=still, max_steps=2, **HOW)
    before = copy.deepcopy(made.network)
    made.schedule.factor = lambda step: float(step == 0)
    run(made)
    pairs = zip(before.named_parameters(), made.network.parameters(), strict=True)
    return {**{name: old - new for (name, old), new in pairs}, **dict(made.network.named_buffers())}


def parts(folder: Path) -> dict[str, Tensor]:
    """Weights after three steps of two accumulated parts."""
    made = trainer(folder, network=lambda: still(False), max_steps=3, accumulate=2, **{**HOW, "lr": 0.1})
    return run(made).network.state_dict()


def norm_input(shape: tuple[int, ...]) -> Tensor:
    return torch.randn(8, 6, *shape, generator=torch.Generator().manual_seed(4)) * 3 + 100


def norm_output(shape: tuple[int, ...]) -> dict[str, Tensor]:
    """Forward, backward and statistics of batch norm over 5 + 3 samples on two ranks, or 8 on one."""
    kind = nn.BatchNorm2d if len(shape) == 2 else nn.BatchNorm3d
    norm = kind(6)
    torch.manual_seed(2)
    for parameter in norm.parameters():
        nn.init.uniform_(parameter, 0.5, 1.5)
    if dist.world() > 1:
        synchronise(norm, torch.device("cpu"))
    mine = slice(None) if dist.world() == 1 else (slice(5), slice(5, None))[dist.rank()]
    x = norm_input(shape)[mine].requires_grad_()
    weight = torch.randn(8, 6, *shape, generator=torch.Generator().manual_seed(5))[mine]
    for _ in range(2):
        y = norm(x)
    (y * weight).sum().backward()
    found = {"output": y.detach(), "input": x.grad, "weight": norm.weight.grad, "bias": norm.bias.grad}
    found = {**found, "mean": norm.running_mean.clone(), "variance": norm.running_var.clone()}
    return {**found, "short": norm((x / 100).bfloat16()).detach()}


def told(folder: Path, rank: int, step: int) -> None:
    """A run in which only `rank` hears SIGTERM, in step `step`."""
    made = trainer(folder, max_steps=12, checkpoint_every=50, ema=0.9, sync_bn=True)
    train = made._one_step

    def one_step(batches: Any) -> None:
        if dist.rank() == rank and made.step + 1 == step:
            os.kill(os.getpid(), signal.SIGTERM)
        train(batches)

    made._one_step = one_step
    try:
        run(made)
    except Preempted:
        assert step <= made.step <= step + 1, made.step
        return
    raise AssertionError("the run did not stop")


def everything(config: dict[str, Any], device: torch.device) -> None:
    """Does it all, to spare the starting of ranks, and ends with a mistake that only one rank finds."""
    folder = Path(config["folder"])
    found = {
        "gradients": one_step(folder / "gradients"),
        "parts": parts(folder / "parts"),
        "norm2": norm_output((3, 4)),
        "norm3": norm_output((2, 3, 2)),
    }
    evaluated = run(trainer(folder / "evaluated", max_steps=2, val=Pictures(21, bad=(4, 7)), max_bad=2))
    found["evaluated"] = dict(vars(evaluated.last))
    found["skipped"] = "nothing"
    try:
        run(trainer(folder / "skipped", max_steps=2, val=Pictures(21, bad=(4, 7)), max_bad=1))
    except RunError as error:
        found["skipped"] = str(error)
    run(trainer(folder / "whole", max_steps=12, checkpoint_every=50, ema=0.9, sync_bn=True))
    told(folder / "cut", 1, 3)
    told(folder / "cut", 0, 8)
    run(trainer(folder / "cut", max_steps=12, checkpoint_every=50, ema=0.9, sync_bn=True))
    try:
        mistaken(config, device)
    except UserError as error:
        found["mistake"] = str(error)
        raise
    finally:
        torch.save(found, folder / f"{dist.rank()}.pt")


def mistaken(config: dict[str, Any], device: torch.device) -> None:
    def make() -> None:
        if dist.rank() == 1:
            raise UserError("data.root=x: no such folder")
        trainer(Path(config["folder"]))

    dist.together(make)


def unreadable(config: dict[str, Any], device: torch.device) -> None:
    order = np.random.default_rng(seeds.mix(5, "order", 0)).permutation(44)
    bad = int(order[8 * 3 + 5])  # in the second rank's half of the fourth step
    run(dist.together(lambda: trainer(Path(config["folder"]), train=Pictures(44, bad=(bad,)))))


def killed(config: dict[str, Any], device: torch.device) -> None:
    if dist.rank() == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    td.barrier()


def ranks(job: Any, folder: Path) -> int:
    return dist.spawn(_rank, (job, {**CONFIG, "folder": str(folder)}, 0), 2)


def waiting(path: str) -> int:
    Path(path).write_text(str(os.getpid()))
    time.sleep(600)
    return 0
