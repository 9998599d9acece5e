"""What a GPU would refuse, found without one: tensors of two devices in an operation, values that the host reads."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from devices import FAULTS, TINY, Faulty, HostWaits, fake_gpu, network_of, no_waiting, on_fake_gpu, read, tiny
from torch import Tensor, nn
from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException
from torch.utils._pytree import tree_map_only

from tdaf.cli import build
from tdaf.cli.compose import group_options
from tdaf.engine.precision import Precision, float32

CUDA = torch.device("cuda:0")
READS = (DataDependentOutputException, DynamicOutputShapeException)
NETWORKS = ("flows=1", "flows=2", "flows=3", "flows=4", "flows=3 tdaf=multiscale", "flows=3 tdaf.rematerialise=true")
MORE = (
    "anar=2", "anar=5", "anar=7 tdaf.norm=shared tdaf.downsample=bilinear", "backbone=res50", "backbone=vgg11",
    "backbone=mobile", *(f"attention={name}" for name in group_options("attention")),
)  # fmt: skip
THREE_D = [name for name in group_options("attention") if name not in ("none", "aa", "abn", "sasa")]  # others: images


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("demo")


@contextmanager
def on_gpu(task: str, settings: str, folder: Path, split: str, kind: str = "bf16") -> Iterator[tuple[Any, Any, Any]]:
    """The task, and on the fake GPU the outputs for a batch of the split, in its mode, and the batch itself."""
    config, found = tiny(task, folder, *settings.split()), read(task, folder)
    own = build.task(config)
    network, batch = network_of(config, own).train(split == "train"), getattr(found, split)
    with fake_gpu() as fake:
        precision = Precision(kind, CUDA)
        network = on_fake_gpu(network)
        batch = tree_map_only(Tensor, fake.from_tensor, batch)
        with no_waiting():
            moved = precision.move(batch)
            with torch.set_grad_enabled(split == "train"), precision.autocast():
                outputs = network(moved["input"])
        yield own, float32(outputs), moved


def step(task: str, settings: str, folder: Path) -> None:
    """Forward pass and losses of a training batch; fails if the host reads a value or waits."""
    with on_gpu(task, settings, folder, "train") as (own, outputs, batch), no_waiting():
        losses = own.losses(outputs, batch)
    assert losses and all(loss.device == CUDA and loss.shape == () for loss in losses.values())


@pytest.mark.parametrize("task", TINY)
@pytest.mark.parametrize("settings", NETWORKS)
def test_a_step_reads_nothing_and_stays_on_its_device(task: str, settings: str, folder: Path) -> None:
    step(task, settings, folder)


@pytest.mark.parametrize("settings", MORE)
def test_so_does_every_mechanism_and_backbone(settings: str, folder: Path) -> None:
    step("imagenet", f"flows=2 {settings}", folder)


@pytest.mark.parametrize("mechanism", THREE_D)
def test_so_does_every_mechanism_on_clips(mechanism: str, folder: Path) -> None:
    step("kinetics", f"flows=2 attention={mechanism}", folder)


def test_fp16_reads_whether_a_gradient_overflowed() -> None:
    """The one value that a step waits for: torch's GradScaler asks the device whether to make the step."""
    with fake_gpu():
        weight = nn.Parameter(torch.empty(3, 3, device=CUDA))
        precision, made = Precision("fp16", CUDA), torch.optim.SGD([weight], lr=1.0)
        with no_waiting():
            assert precision.scaler.scale(torch.empty((), device=CUDA)).device == CUDA
            weight.grad = torch.empty_like(weight)
            precision.scaler.unscale_(made)
            with pytest.raises(READS):
                precision.scaler.step(made)


@pytest.mark.parametrize("fault", FAULTS)
def test_the_checks_see_what_they_should(fault: str) -> None:
    network = Faulty(fault)
    with fake_gpu(), no_waiting():
        x = torch.empty(4, device=CUDA)
        if fault == "nothing":
            assert network(x).device == CUDA
            return
        with pytest.raises((RuntimeError, AssertionError, *READS)) as caught:
            network(x)
    assert isinstance(caught.value, HostWaits) == (fault in ("to the host", "from the host"))
