"""Parameter groups: which parameters decay, and at which multiple of the learning rate."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from tdaf.errors import UserError


def optimizer(
    network: nn.Module,
    factory: Callable[..., torch.optim.Optimizer],
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
    """The optimizer over the parameters that train, in groups.

    lr is meant for `base_batch` samples a step and scaled linearly to `batch` (Goyal et al., 2017); None: used as is.
    The three `*_weight_decay` switches say whether norm layers' parameters, biases and depthwise kernels decay;
    bias_lr multiplies the learning rate of biases (FCOS: 2). norm_biases: whether norm layers' biases are biases in
    this sense (FCOS goes by the name of a parameter alone: tianzhi0549/FCOS fcos_core/solver/build.py), or norm layers'.
    """
    if lr <= 0:
        raise UserError(f"optim.lr={lr}: give a learning rate above 0")
    if weight_decay < 0:
        raise UserError(f"optim.weight_decay={weight_decay}: give 0 or more")
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
    built = [{"params": p, "lr": r, "base_lr": r, "weight_decay": w} for (r, w), p in groups.items()]
    return factory(built, lr=rate)


def set_rate(optimizer: torch.optim.Optimizer, factor: float) -> float:
    """Sets every group to `factor` times its base learning rate; returns the first group's."""
    for group in optimizer.param_groups:
        group["lr"] = group["base_lr"] * factor
    return optimizer.param_groups[0]["lr"]


def describe(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """What the start of a run prints about its optimizer."""
    first = optimizer.param_groups[0]
    return {"optimizer": type(optimizer).__name__, "lr": first["base_lr"], "groups": len(optimizer.param_groups)}
