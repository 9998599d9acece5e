"""Attention mechanisms of other publications, which the paper's Table 3b adds TDAF to or compares it with.

A backbone takes one as `attention`, of two kinds. One that keeps a map's shape is made from its number of channels,
`attention(channels) -> module`, and the backbone places it (`se_cbam.py`). Another one is a `Placement`, an object that
changes the backbone's stages itself. Nothing here imports a mechanism: a backbone knows none of them by name.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from torch import nn

from tdaf.errors import UserError
from tdaf.model.staged import Staged


class Placement(Protocol):
    """A mechanism that is not for the end of a branch."""

    def place(self, staged: Staged) -> None:
        """Changes the stages of a 2D network before they are initialised and, for clips, inflated.

        Raises UserError for a network that the mechanism is not defined for.
        """


Attention = Callable[[int], nn.Module] | Placement


def resolve(attention: Attention | str | None) -> Attention | None:
    """The mechanism itself; None for "none" too. Raises UserError for what is no mechanism."""
    if attention is None or attention == "none":
        return None
    if callable(attention) or is_placement(attention):
        return attention
    raise UserError(f"attention={attention}: give none, channels -> module, or an object with place(staged)")


def is_placement(attention: Any) -> bool:
    return hasattr(attention, "place") and not isinstance(attention, type)


def name_of(attention: Attention) -> str:
    """What a message calls the mechanism."""
    function = getattr(attention, "func", attention)  # of a functools.partial
    return getattr(function, "__name__", type(function).__name__)


def residual_layer(staged: Staged, number: int, mechanism: object) -> nn.Sequential:
    """The residual blocks of stage `number` (1-based), which are called layer<number> in a ResNet of torchvision's.

    Raises UserError where there are none.
    """
    found = getattr(staged.stages[number - 1], f"layer{number}", None)
    if found is None:
        raise UserError(f"attention: {name_of(mechanism)} goes into the residual blocks of a ResNet, which this is not")
    return found


def block_width(block: nn.Module) -> int:
    """Channels after a residual block."""
    return (block.conv3 if hasattr(block, "conv3") else block.conv2).out_channels
