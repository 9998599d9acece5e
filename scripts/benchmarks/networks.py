"""The networks to measure, as train.py would build and place them."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace

import numpy as np
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn

from benchmarks.photographs import photograph
from benchmarks.settings import Settings
from tdaf.cli import build
from tdaf.cli.compose import Config, compose
from tdaf.engine.precision import Precision
from tdaf.task import Task

CLASSES = 1000


def configured(settings: Settings, flows: int, backbone: str | None = None) -> tuple[Config, Task]:
    """The resolved settings of a training run and its task, with names for classes but no images."""
    network = [f"backbone={backbone or settings.backbone}", f"anar={settings.anar}", f"flows={flows}"]
    config = compose(["task=imagenet", *network])
    task = build.make(config["task"], "task", data=SimpleNamespace(classes=[str(k) for k in range(CLASSES)]))
    return config, task


def network(settings: Settings, flows: int) -> nn.Module:
    """The classification network, always the same weights, on the CPU."""
    torch.manual_seed(0)
    return build.network(*configured(settings, flows))


def published(settings: Settings) -> nn.Module | None:
    """torchvision's own network of this backbone, where it has one."""
    weights = configured(settings, 1)[0]["weights"]
    if weights is None:
        return None
    return torchvision.models.get_model(weights.split(".")[0].removesuffix("_Weights").lower())


def images(settings: Settings, batch: int | None = None) -> Tensor:
    """Bytes (B, 3, size, size) on the device: eight drawn photographs, repeated."""
    batch, generator = batch or settings.batch, np.random.default_rng(0)
    drawn = np.stack([photograph(settings.size, settings.size, generator) for _ in range(min(8, batch))])
    x = torch.from_numpy(drawn).permute(0, 3, 1, 2).contiguous()
    return x.repeat(-(-batch // len(x)), 1, 1, 1)[:batch].to(settings.device)


def forward(network: nn.Module, x: Tensor, precision: Precision) -> Callable[[], Tensor]:
    """A call that evaluates the batch."""
    network.eval()

    @torch.no_grad()
    def call() -> Tensor:
        with precision.autocast():
            return network(x)

    return call


def training(network: nn.Module, x: Tensor, precision: Precision) -> Callable[[], None]:
    """A call that makes one step of SGD on the batch."""
    network.train()
    optimizer = torch.optim.SGD(network.parameters(), lr=1e-3, momentum=0.9, weight_decay=1e-4)
    label = torch.arange(len(x), device=x.device) % CLASSES

    def call() -> None:
        with precision.autocast():
            outputs = network(x)
        F.cross_entropy(outputs.float(), label).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return call


def placed(settings: Settings) -> tuple[Precision, Callable[[int], nn.Module]]:
    """Precision of the device, and a function from a number of flows to a network on it."""
    precision = Precision("auto", settings.device)
    return precision, lambda flows: precision.place(network(settings, flows))


def settled(network: nn.Module, x: Tensor, exactly: bool = False) -> nn.Module:
    """The network with running statistics as after three batches like this one; exactly: with this batch's own."""
    norms = [m for m in network.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    momenta = [norm.momentum for norm in norms]
    with torch.no_grad():
        for norm in norms:
            norm.momentum = 1.0 if exactly else norm.momentum
        for _ in range(1 if exactly else 3):
            network.train()(x)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    return network.eval()


def milliseconds(times: dict[str, float], batch: int) -> dict[str, str]:
    """Absolute figures of a row: milliseconds a call and images a second."""
    return {name: f"{1000 * s:.2f} ms, {batch / s:.0f} images/s" for name, s in times.items()}
