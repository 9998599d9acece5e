"""Which attention mechanisms there are, and where in a backbone each of them goes.

The paper's Table 3b treats a backbone with such a mechanism as a backbone of its own, to which TDAF is added.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import nn

from tdaf.errors import UserError
from tdaf.model.attention import a2, aa, abn, cgnl, nonlocal_block, resatt, sasa, tdam
from tdaf.model.attention.cbam import CBAM
from tdaf.model.attention.se import squeeze_excitation
from tdaf.model.staged import Attend

# ResNet's stages before their last ReLU: (stem,) layer1 .. layer4, by torchvision's names
Parts = Sequence[dict[str, nn.Module]]

BRANCH: dict[str, Callable[[int], nn.Module]] = {"se": squeeze_excitation, "cbam": CBAM}
RESNET: dict[str, Callable[[Parts], Attend | None]] = {
    "nonlocal": nonlocal_block.place,
    "a2": a2.place,
    "cgnl": cgnl.place,
    "aa": aa.augment,
    "sasa": sasa.attend,
    "abn": abn.place,
    "resatt": resatt.place,
    "tdam": tdam.place,
}
IMAGES = ("aa", "sasa", "abn")  # not defined for clips
NAMES = ("none", *BRANCH, *RESNET)  # tdaf/cli/compose.py has the same list, without torch


def branch(name: str, channels: int, backbone: str) -> nn.Module | None:
    """A mechanism that keeps a map's shape, for the end of a block's branch, of `channels`. None for "none".

    Built for images; `inflate` makes it one for clips. Raises UserError for one that is not defined for `backbone`.
    """
    if name == "none":
        return None
    if name not in BRANCH:
        raise UserError(f"attention={name}: not defined for {backbone}, which has {', '.join(['none', *BRANCH])}")
    return BRANCH[name](channels)


def place(name: str, parts: Parts, dims: int = 2) -> Attend | None:
    """Puts a mechanism into a ResNet: at the end of every residual branch, before the sum (SENet, Fig. 3; CBAM,
    Fig. 3), or where its own file says. What it gives is for Staged.attend: a mechanism that has to know the classes.
    Raises UserError for a name that is not known, for a ResNet without it, and with `dims` 3 for one that is defined
    for images alone."""
    if name not in NAMES:
        raise UserError(f"attention={name}: not defined for ResNet, which has {', '.join(NAMES)}")
    if dims == 3 and name in IMAGES:
        raise UserError(f"attention={name}: defined for images, not for clips (dims=3)")
    if name in RESNET:
        return RESNET[name](parts)
    if name in BRANCH:
        for stage in parts:
            for block in layer(stage):
                block.attention = BRANCH[name](width(stage))
    return None


def layer(stage: dict[str, nn.Module]) -> nn.Sequential:
    """The residual blocks of a stage."""
    return next(module for name, module in stage.items() if name.startswith("layer"))


def width(stage: dict[str, nn.Module]) -> int:
    """Channels after a stage."""
    last = layer(stage)[-1]
    return (last.bn3 if hasattr(last, "bn3") else last.bn2).num_features
