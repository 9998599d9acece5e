"""The one contract between a backbone and everything else: a list of stages and what each gives; and how it starts."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence

from torch import Tensor, nn

from tdaf.errors import UserError

_CONVOLUTIONS = (nn.Conv2d, nn.Conv3d, nn.ConvTranspose2d, nn.ConvTranspose3d)


class Staged(nn.Module):
    """A network as stages h_1..h_L (paper, Sec. 3.1). The stem belongs to stage 1.

    Args:
        stages: L modules, each fed with the previous one's map. A stage that ends in its own `nn.ReLU`
            (`nn.Sequential(..., nn.ReLU())`) lets TDAF fuse that ReLU with the gate: one stored map a stage less.
        widths: channels after each stage.
        strides: input size / map size after each stage (in space).
        dims: 2 for images (B, C, H, W), 3 for clips (B, C, T, H, W).
        classifier: `classifier(width, classes) -> module` from the last map to (B, classes) where the network's
            publication has one of its own (VGG's three fully connected layers); None: pooling and one linear layer.
        appended: how many of the stages, counted from the last, a task has appended to the backbone's own.

    Raises:
        ValueError: the lists' lengths differ.
    """

    def __init__(
        self,
        stages: Iterable[nn.Module],
        widths: list[int],
        strides: list[int],
        dims: int = 2,
        classifier: Callable[[int, int], nn.Module] | None = None,
        appended: int = 0,
    ) -> None:
        super().__init__()
        self.stages = nn.ModuleList(stages)
        self.widths = list(widths)
        self.strides = list(strides)
        self.dims = dims
        self.classifier = classifier
        self.appended = appended
        _check_lengths(self.stages, widths, strides)

    def append(self, stages: Iterable[nn.Module], widths: list[int], strides: list[int]) -> Staged:
        """A network of these same stages followed by more; it has no `classifier`, which is one for the old last map.

        Args:
            stages, widths, strides: of what is appended, as in the constructor: a map the size of half the input has
                stride 2.

        Raises:
            ValueError: the lists' lengths differ.
        """
        more = list(stages)
        _check_lengths(more, widths, strides)
        return Staged(
            [*self.stages, *more],
            [*self.widths, *widths],
            [*self.strides, *strides],
            self.dims,
            appended=self.appended + len(more),
        )

    def forward(self, x: Tensor) -> list[Tensor]:
        """x (B, C, [T,] H, W) -> the L maps, the last one last."""
        maps = []
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        return maps


def _check_lengths(stages: Sequence[nn.Module], widths: list[int], strides: list[int]) -> None:
    if not len(stages) == len(widths) == len(strides):
        raise ValueError(
            f"a staged network needs one width and one stride a stage, "
            f"got {len(stages)} stages, {len(widths)} widths, {len(strides)} strides"
        )


def gated_stages(gated: str | Sequence[int], seen: int, stages: int, appended: int) -> list[int]:
    """The 1-based stages that the setting `gated` names. seen: how many the flow before the last has, of all stages."""
    everywhere, appended = list(range(1, seen + 1)), appended - (stages - seen)
    last = "the last stage has no gate" if seen < stages else "no other has a gate"
    if gated == "all":
        return everywhere
    if gated == "appended":
        if appended < 1:
            found = "only one appended stage, the last, which has no gate" if appended == 0 else "no appended stages"
            raise UserError(f"gated=appended: this network has {found}; give all or a list of stages")
        return everywhere[-appended:]
    if isinstance(gated, str) or not all(stage in everywhere for stage in gated):
        names = "all, appended" if appended > 0 else "all"
        raise UserError(f"gated={gated}: must be {names} or a list of stages between 1 and {seen}; {last}")
    return sorted(set(gated))


def initialise(module: nn.Module) -> nn.Module:
    """The module itself, with every parameter drawn again (paper, Sec. 4: Kaiming initialisation).

    Convolutions and deconvolutions: normal, standard deviation sqrt(2 / fan_out), fan_out = output channels x kernel
    cells with groups not counted (He et al. 2015; torchvision's ResNet and MobileNet v2 count alike), bias 0. Batch
    norm: weight 1, bias 0, fresh statistics. Linear layers: N(0, 0.01), bias 0 (torchvision's VGG; sqrt(2 / fan_out)
    would be 0.45 for ten classes, which starts with saturated logits). A module with a `reset_parameters` of its own
    has the last word over its parts.
    """
    for part in reversed(list(module.modules())):
        if isinstance(part, _CONVOLUTIONS):
            nn.init.normal_(part.weight, 0, math.sqrt(2 / (part.out_channels * math.prod(part.kernel_size))))
        elif isinstance(part, nn.Linear):
            nn.init.normal_(part.weight, 0, 0.01)
        elif hasattr(part, "reset_parameters"):
            part.reset_parameters()
            continue
        else:
            continue
        if part.bias is not None:
            nn.init.zeros_(part.bias)
    return module


def with_children(old: nn.Module, new: nn.Module) -> nn.Module:
    """`new`, which takes the place of `old`, with what stood under old's name: an activation that is called by it."""
    for name, child in old.named_children():
        new.add_module(name, child)
    return new
