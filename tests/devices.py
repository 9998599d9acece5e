"""Devices that need no GPU: a fake cuda:0, whose tensors have no values, and a second device that computes as the CPU.

Both refuse an operation on tensors of two devices (a number, which has no axis, may come from the CPU) and, where told
so, whatever makes the host wait: a value that is read, a copy that does not go on by itself.
"""

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from tdaf.cli import build, run
from tdaf.cli.compose import Config, compose
from tdaf.engine.trained import build_network
from tdaf.engine.trainer import Trainer
from tdaf.task import Task

aten = torch.ops.aten
COPIES = (aten._to_copy.default, aten.copy_.default)
# each task's demo at a size that is drawn in a moment; {} is where
TINY = {
    "imagenet": "demo.train=16 demo.val=10 demo.size=64 task.mixup=0.2 task.cutmix=1 task.label_smoothing=0.1 "
    "task.train_transform.size=64 task.train_transform.short_side=[66,72] task.val_transforms.1crop.size=64 "
    "task.val_transforms.1crop.short_side=66",
    "cifar10": "demo.train=20 demo.val=10",
    "coco_fcos": "demo.train=8 demo.val=6",
    "coco_pose": "demo.train=6 demo.val=3",
    "kinetics": "demo.train=8 demo.val=6",
}


FAULTS = ("left behind", "read", "mask", "to the host", "from the host", "nothing")


class HostWaits(RuntimeError):
    """An operation for which the host waits."""


def tiny(task: str, folder: Path, *more: str) -> Config:
    """The settings of a run of a few steps of 4 samples on the demo's data, drawn below `folder`."""
    usual = [f"demo.root={folder}", "gpus=0", "loader.workers=0", "trainer.batch=4", "trainer.pictures=0"]
    return compose([f"task={task}", "recipe=demo", *TINY[task].split(), *usual, *more])


class Cut(Exception):
    """Ends a run between two checkpoints."""


def watched_run(
    config: Config, device: torch.device, around: Callable[[Callable[[], None]], None], cut_at: int | None = None
) -> Trainer:
    """A run as train.py has it. Each step, with its batches read already, is called by `around`; before step `cut_at`
    the run ends."""
    made: list[Trainer] = []
    fit = Trainer.fit

    def watched_fit(trainer: Trainer) -> Any:
        made.append(trainer)
        train = trainer._one_step

        def one_step(batches: Any) -> None:
            if trainer.step + 1 == cut_at:
                raise Cut
            read = [next(batches) for _ in range(trainer.settings.accumulate)]
            around(lambda: train(iter(read)))

        trainer._one_step = one_step
        return fit(trainer)

    with mock.patch.object(Trainer, "fit", watched_fit), suppress(Cut):
        run.train(config, device)
    return made[0]


def copy_that_waits(func: Any, args: tuple, kwargs: dict) -> bool:
    """Whether a copy between devices is one that the host waits for, as CUDA's to pageable memory are."""
    to, source = (args[0], args[1]) if func is aten.copy_.default else (kwargs.get("device"), args[0])
    there = to.device if isinstance(to, Tensor) else torch.device(to if to is not None else source.device)
    non_blocking = kwargs.get("non_blocking", len(args) > 2 and args[2])
    return (
        there.type != source.device.type
        and "meta" not in (there.type, source.device.type)
        and not (non_blocking and there.type != "cpu")
    )


class Faulty(nn.Module):
    """A network that does what a GPU refuses, or waits for: one of FAULTS."""

    def __init__(self, fault: str) -> None:
        super().__init__()
        self.fault, self.there = fault, torch.ones(4)

    def forward(self, x: Tensor) -> Tensor:
        match self.fault:
            case "left behind":
                return x + self.there
            case "read":
                return x * float(x.sum())
            case "mask":
                return x[x > 0]
            case "to the host":
                return x + x.cpu().to(x.device, non_blocking=True)
            case "from the host":
                return x + torch.ones(4).to(x.device)
        return x + torch.ones(4).to(x.device, non_blocking=True) + torch.tensor(1.0)


# --- cuda:0 without values


class _NoWaiting(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        if func in COPIES and copy_that_waits(func, args, kwargs or {}):
            raise HostWaits(f"{func}: a copy that the host waits for")
        return func(*args, **(kwargs or {}))


@contextmanager
def fake_gpu() -> Iterator[FakeTensorMode]:
    """Tensors made in here have a device, a type and a shape, and none has values; cuda:0 is one of the devices."""
    gpu = mock.patch.object(torch.cuda.amp.common, "amp_definitely_not_available", lambda: False)
    bf16 = mock.patch.object(torch.cuda, "is_bf16_supported", lambda **kwargs: True)
    with gpu, bf16, FakeTensorMode() as fake:
        yield fake


def no_waiting() -> TorchDispatchMode:
    """Inside of `fake_gpu`: HostWaits for a copy that does not go on by itself. (A value that is read, or a shape that
    depends on one, raises by itself.)"""
    return _NoWaiting()


def on_fake_gpu(network: nn.Module) -> nn.Module:
    """A network of the meta device with parameters and buffers on cuda:0; what is neither stays where it is."""
    twins: dict[int, Tensor] = {}

    def twin(tensor: Tensor) -> Tensor:
        if id(tensor) not in twins:
            there = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="cuda:0")
            twins[id(tensor)] = nn.Parameter(there, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else there
        return twins[id(tensor)]

    for module in network.modules():
        for own in (module._parameters, module._buffers):
            own.update({name: twin(value) for name, value in own.items() if value is not None})
    return network


def network_of(config: Config, task: Task) -> nn.Module:
    """On the meta device."""
    with torch.device("meta"):
        return build_network(config, task).to("meta")


@functools.cache
def read(task: str, folder: Path) -> SimpleNamespace:
    """The tiny task, and a batch of its training set and its validation set each."""
    torch.manual_seed(0)
    made = build.task(tiny(task, folder))
    splits = {split: made.dataset(split) for split in ("train", "val")}
    batches = {split: {**data.collate([data[0], data[1]]), "index": torch.arange(2)} for split, data in splits.items()}
    return SimpleNamespace(task=made, **batches)
