"""The optimizer's parameter groups, its learning rate, and the exponential moving average of the weights."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from tdaf.errors import UserError
from tdaf.ranges import check_ranges

SGD = functools.partial(torch.optim.SGD, momentum=0.9)


def optimizer(
    network: nn.Module,
    factory: Callable[..., torch.optim.Optimizer] = SGD,
    *,
    lr: float,
    weight_decay: float = 0.0,
    base_batch: int | None = None,
    batch: int,
    norm_weight_decay: bool = True,
    bias_weight_decay: bool = True,
    depthwise_weight_decay: bool = True,
    bias_lr: float = 1.0,
    norm_biases: bool = False,
) -> torch.optim.Optimizer:
    """The optimizer over the parameters that train, in groups by learning rate and weight decay.

    Args:
        network: whose parameters.
        factory: makes the optimizer from the groups and `lr`.
        lr: learning rate for `base_batch` samples a step, scaled linearly to `batch` (Goyal et al., 2017).
        weight_decay: of every parameter that decays.
        base_batch: None: `lr` is used as it is.
        batch: samples a step.
        norm_weight_decay, bias_weight_decay, depthwise_weight_decay: whether norm layers' parameters, biases and
            depthwise kernels decay.
        bias_lr: multiplies the learning rate of biases (FCOS: 2).
        norm_biases: whether norm layers' biases are biases in this sense (FCOS goes by the name of a parameter alone:
            tianzhi0549/FCOS fcos_core/solver/build.py), or norm layers'.

    Raises:
        UserError: a setting out of range, or a network of which nothing trains.
    """
    check_ranges({"lr": lr, "weight_decay": weight_decay})
    rate = lr * batch / base_batch if base_batch else lr
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    seen: set[int] = set()
    for module in network.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if not parameter.requires_grad or id(parameter) in seen:
                continue
            seen.add(id(parameter))
            norm = isinstance(module, (nn.GroupNorm, nn.LayerNorm)) or hasattr(module, "running_mean")
            bias = name == "bias" and (norm_biases or not norm)
            norm = norm and not bias
            depthwise = getattr(module, "groups", 1) > 1 and module.groups == getattr(module, "in_channels", 0)
            decays = (
                (norm_weight_decay or not norm)
                and (bias_weight_decay or not bias)
                and (depthwise_weight_decay or not (depthwise and name == "weight"))
            )
            key = (rate * (bias_lr if bias else 1.0), weight_decay if decays else 0.0)
            groups.setdefault(key, []).append(parameter)
    if not groups:
        raise UserError("no parameter of this network trains: everything is frozen")
    built = factory([{"params": p, "lr": r, "base_lr": r, "weight_decay": w} for (r, w), p in groups.items()], lr=rate)
    built.scaling = f" = {lr:g} x {batch}/{base_batch}" if base_batch else ""
    return built


def set_rate(optimizer: torch.optim.Optimizer, factor: float) -> float:
    """Sets every group to `factor` times its base learning rate; returns the first group's."""
    for group in optimizer.param_groups:
        group["lr"] = group["base_lr"] * factor
    return optimizer.param_groups[0]["lr"]


def describe(optimizer: torch.optim.Optimizer) -> str:
    """As "SGD lr 0.0125 = 0.1 x 32/256"."""
    rate = optimizer.param_groups[0]["base_lr"]
    return f"{type(optimizer).__name__} lr {rate:g}{getattr(optimizer, 'scaling', '')}"


class Average:
    """The exponential moving average of a network's parameters and floating-point buffers, of every flow its own.

    Integer buffers are copied. Update t, counted from 0, keeps min(decay, (1 + t) / (10 + t)) of the average, so that a
    short run is not left at its first weights (as tensorflow's ExponentialMovingAverage with num_updates); the first
    one copies everything. Nothing waits for the device.

    Args:
        network: copied into `module`, whose parameters do not train.
        decay: how much of the average an update keeps in the end.
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        self.module = copy.deepcopy(network).requires_grad_(False)
        self.decay, self.updates = decay, 0

    @torch.no_grad()
    def update(self, network: nn.Module) -> None:
        averaged: dict[bool, list[Tensor]] = {True: [], False: []}
        live: dict[bool, list[Tensor]] = {True: [], False: []}
        for ours, theirs in zip(_tensors(self.module), _tensors(network), strict=True):
            averaged[ours.is_floating_point() and self.updates > 0].append(ours)
            live[ours.is_floating_point() and self.updates > 0].append(theirs.detach())
        if averaged[True]:
            kept = min(self.decay, (1 + self.updates) / (10 + self.updates))
            torch._foreach_lerp_(averaged[True], live[True], 1 - kept)
        if averaged[False]:
            torch._foreach_copy_(averaged[False], live[False])
        self.updates += 1

    def state_dict(self) -> dict[str, Tensor]:
        """In the names of torch.optim.swa_utils.AveragedModel."""
        weights = {f"module.{name}": value for name, value in self.module.state_dict().items()}
        return {"n_averaged": torch.tensor(self.updates), **weights}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.updates = int(state["n_averaged"])
        self.module.load_state_dict({k.removeprefix("module."): v for k, v in state.items() if k != "n_averaged"})


def _tensors(network: nn.Module) -> list[Tensor]:
    return [*network.parameters(), *network.buffers()]
