"""What tests/test_engine_ranks.py runs as ranks; apart from it, for each rank imports this file."""

import copy
import functools
import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as td
from tiny_run import ColourTask, Pictures, little, run, trainer
from torch import Tensor, nn

from tdaf.cli.run import run_rank
from tdaf.engine import data, dist
from tdaf.engine.spawn import spawn
from tdaf.errors import Preempted, RunError, UserError

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
        dist.synchronise(norm, torch.device("cpu"))
    mine = slice(None) if dist.world() == 1 else (slice(5), slice(5, None))[dist.rank()]
    x = norm_input(shape)[mine].requires_grad_()
    weight = torch.randn(8, 6, *shape, generator=torch.Generator().manual_seed(5))[mine]
    for _ in range(2):
        y = norm(x)
    (y * weight).sum().backward()
    found = {"output": y.detach(), "input": x.grad, "weight": norm.weight.grad, "bias": norm.bias.grad}
    found = {**found, "mean": norm.running_mean.clone(), "variance": norm.running_var.clone()}
    return {**found, "short": norm((x / 100).bfloat16()).detach()}


CUT = {"max_steps": 12, "checkpoint_every": 50, "ema": 0.9}  # each rank's batch norm has statistics of its own


# another mode: synchronised statistics, two parts a step, evaluations in between, no average
PARTS = {"max_steps": 12, "checkpoint_every": 5, "accumulate": 2, "sync_bn": True, "evaluate_every": 1, "clip": 1.0}


def told(folder: Path, rank: int, step: int, how: dict[str, Any] = CUT) -> None:
    """A run in which only `rank` hears SIGTERM, in step `step`."""
    made = trainer(folder, **how)
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
    found["evaluated"] = evaluated.last.as_dict()
    found["skipped"] = fault_of(folder / "skipped", max_steps=2, val=Pictures(21, bad=(4, 7)), max_bad=1)
    found["losses"] = fault_of(folder / "losses", task=Differing())
    run(trainer(folder / "whole", **CUT))
    told(folder / "half", 1, 3)
    told(folder / "cut", 1, 3)
    told(folder / "cut", 0, 8)
    run(trainer(folder / "whole-parts", **PARTS))
    for heard_by, step in ((0, 1), (1, 4), (0, 7), (1, 10)):  # an epoch has 5 steps, and ends with an evaluation
        told(folder / "cut-parts", heard_by, step, PARTS)
    run(trainer(folder / "cut-parts", **PARTS))
    new_group, limits = td.new_group, []
    td.new_group = lambda **options: limits.append(options["timeout"].total_seconds()) or new_group(**options)
    run(trainer(folder / "cut", hang_timeout=1000.0, timeout=7.0, **CUT))
    found["limits"] = limits
    try:
        trainer(folder / "mistake", task=Mistaken())
    except UserError as error:
        found["mistake"] = str(error)
        raise
    finally:
        torch.save(found, folder / f"{dist.rank()}.pt")


def fault_of(folder: Path, **settings: Any) -> str:
    try:
        run(trainer(folder, **settings))
    except RunError as error:
        return str(error)
    return "nothing"


class Differing(ColourTask):
    """The second rank calls a loss by another name."""

    def losses(self, outputs: Tensor, batch: dict[str, Any]) -> dict[str, Tensor]:
        losses = super().losses(outputs, batch)
        return {"other" if name == "size" and dist.rank() else name: loss for name, loss in losses.items()}


class Mistaken(ColourTask):
    def dataset(self, split: str) -> Pictures:
        if dist.rank() == 1:
            raise UserError("root=x: no such folder")
        return super().dataset(split)


def unreadable(config: dict[str, Any], device: torch.device) -> None:
    order = np.random.default_rng(data.mix_seed(5, "order", 0)).permutation(44)
    bad = int(order[8 * 3 + 5])  # in the second rank's half of the fourth step
    run(trainer(Path(config["folder"]), train=Pictures(44, bad=(bad,))))


def killed(config: dict[str, Any], device: torch.device) -> None:
    if dist.rank() == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    td.barrier()


def dies_in_a_step(config: dict[str, Any], device: torch.device) -> None:
    """In its fifth, after a checkpoint of the third."""
    made = trainer(Path(config["folder"]))
    train = made._one_step

    def one_step(batches: Any) -> None:
        if dist.rank() == 1 and made.step == 4:
            os.kill(os.getpid(), signal.SIGKILL)
        train(batches)

    made._one_step = one_step
    run(made)


def dies_at_the_end(config: dict[str, Any], device: torch.device) -> None:
    """When all is saved."""
    run(trainer(Path(config["folder"])))
    if dist.rank() == 1:
        os.kill(os.getpid(), signal.SIGKILL)


def four(config: dict[str, Any], device: torch.device) -> None:
    """Gradients, an evaluation of shares of 6 and 5, and a signal that one rank hears."""
    folder = Path(config["folder"])
    found = {"gradients": one_step(folder / "gradients")}
    found["evaluated"] = run(trainer(folder / "evaluated", max_steps=2, val=Pictures(21, bad=(4,)), max_bad=1)).last
    how = {**CUT, "deterministic": True}
    run(trainer(folder / "whole", **how))
    told(folder / "cut", 2, 5, how)
    run(trainer(folder / "cut", **how))
    torch.save({**found, "evaluated": found["evaluated"].as_dict()}, folder / f"{dist.rank()}.pt")


def ranks(job: Any, folder: Path, count: int = 2) -> int:
    return spawn(run_rank, (job, {**CONFIG, "folder": str(folder)}, 0), count)
