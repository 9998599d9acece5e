"""What a row's network counts, from its composed settings alone: no data, no weights, the meta device."""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import init
from torch.nn.modules.batchnorm import _NormBase
from torch.overrides import TorchFunctionMode

from tdaf.cli import build
from tdaf.cli.compose import Config
from tdaf.cli.overrides import first_line
from tdaf import measure
from tdaf.errors import UserError
from tdaf.model.anar import ANAR
from tdaf.model.freeze import FixedBatchNorm2d, FrozenBatchNorm2d

OF_NETWORK = ("backbone", "tdaf", "task", "pretrained", "eta")  # the settings that build.network reads
DRAWN = (init.kaiming_normal_, init.kaiming_uniform_, init.normal_, init.uniform_, init.constant_)
DRAWN += (Tensor.normal_, Tensor.uniform_, Tensor.fill_, Tensor.zero_)
NORMS = (_NormBase, FixedBatchNorm2d, FrozenBatchNorm2d)
THROUGHPUT = 30.0  # 10^12 multiply-adds a second that a GPU sustains in training: assumed, not measured


class Counts(NamedTuple):
    """Numbers of parameters (gates: those of the ANARs), and 10^9 multiply-adds of one input in evaluation."""

    params: int
    gates: int
    gflops: float
    gflops_flows: float
    gflops_gates: float
    gflops_rest: float


class _Undrawn(TorchFunctionMode):
    """First weights are not drawn: the meta device has none, and drawing none takes most of the time."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        named = kwargs or {}
        if func in DRAWN:
            return args[0] if args else named["tensor"]
        return func(*args, **named)


def counts(config: Config, size: Sequence[int], classes: int) -> Counts:
    """size: of one input, (3, H, W) or (3, T, H, W). Raises UserError for a network that cannot be built or does not
    take the input."""
    kept = json.dumps({key: config[key] for key in OF_NETWORK}, sort_keys=True)
    return _counts(kept, tuple(size), classes)


@functools.lru_cache(maxsize=None)  # rows of several tables are the same network
def _counts(config: str, size: tuple[int, ...], classes: int) -> Counts:
    settings = json.loads(config)
    names = [str(number) for number in range(classes)]
    with torch.device("meta"), _Undrawn():
        task = build.make(settings["task"], "task", data=SimpleNamespace(classes=names))
        network = build.network(settings, task).to("meta")
    for module in network.modules():
        if isinstance(module, NORMS):
            module.forward = _same  # counts nothing, and takes three quarters of the time
    try:
        flops = measure.gflops(network, torch.empty(1, *size, dtype=torch.uint8, device="meta"))
    except (RuntimeError, ValueError) as error:
        shape = "x".join(map(str, size))
        raise UserError(f"the network cannot take an input of {shape}: {first_line(error)}") from error
    gates = {id(p): p.numel() for module in network.modules() if isinstance(module, ANAR) for p in module.parameters()}
    return Counts(measure.parameters(network).total, sum(gates.values()), *flops)


def _same(x: Tensor) -> Tensor:
    return x


def seen(config: Config, samples: int) -> float:
    """Training samples over the whole schedule; samples: of one epoch."""
    trainer = config["trainer"]
    steps = [math.inf if trainer["max_steps"] is None else trainer["max_steps"] * trainer["batch"]]
    steps += [] if trainer["epochs"] is None else [trainer["epochs"] * samples]
    return min(steps)


def hours(gflops: float, samples: float, throughput: float = THROUGHPUT) -> float:
    """GPU-hours: forward, and twice as much backward."""
    return 3 * gflops * samples / (throughput * 1e3) / 3600
