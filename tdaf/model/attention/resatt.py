"""Residual attention (Wang et al. 2017, "Residual Attention Network for Image Classification", arXiv 1704.06904)."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from torch import Tensor, nn
from torch.nn import functional as F

from tdaf.model.attention import residual_layer
from tdaf.model.staged import Staged

LEVELS = (3, 2, 1)  # times that the mask of a module in stage 1, 2 and 3 is halved (Sec. 3.2, Fig. 2)
R = 1  # residual units between two poolings of the mask (Sec. 3.3)


@dataclass(frozen=True)
class Widths:
    """A residual unit: channels outside; inside, for a bottleneck with `groups`; None for a unit of two 3x3."""

    outside: int
    inside: int | None
    groups: int


class Unit(nn.Module):
    """A pre-activation residual unit: every convolution comes after batch norm and ReLU.

    The first unit of a stage, given its `inputs`, has an input that is activated already, for the branch and for the
    shortcut, which is a 1x1 convolution where channels or size change.
    """

    def __init__(self, widths: Widths, inputs: int | None = None, stride: int = 1) -> None:
        super().__init__()
        first = widths.outside if inputs is None else inputs
        changes = first != widths.outside or stride != 1
        self.shortcut = nn.Conv2d(first, widths.outside, 1, stride, bias=False) if changes else nn.Identity()
        layers = _activation(first) if inputs is None else []
        for conv in _convolutions(widths, first, stride):
            layers += [conv, *_activation(conv.out_channels)]
        self.branch = nn.Sequential(*layers[:-2])

    def forward(self, x: Tensor) -> Tensor:
        return self.shortcut(x) + self.branch(x)


class Hourglass(nn.Module):
    """The mask before its last layers (Sec. 3.2, Fig. 2): halved, a unit, the same `levels` - 1 times more beside a
    unit that skips it, a unit, and resized to the input, whatever its size; two units at the bottom.

    The pool is 3x3 with stride 2 and padding 1, as ResNet's first one here; the authors' has no padding but rounds up,
    so the sizes are equal. Bilinear, corners not aligned (trilinear for clips).
    """

    def __init__(self, unit: Callable[[], Unit], levels: int) -> None:
        super().__init__()
        self.pool = nn.MaxPool2d(3, 2, padding=1)
        self.down, self.up = (nn.Sequential(*[unit() for _ in range(R)]) for _ in range(2))
        self.skip = unit() if levels > 1 else None
        self.inner = Hourglass(unit, levels - 1) if levels > 1 else None

    def forward(self, x: Tensor) -> Tensor:
        y = self.down(self.pool(x))
        if self.inner is not None:
            y = self.skip(y) + self.inner(y)
        mode = "bilinear" if x.ndim == 4 else "trilinear"
        return F.interpolate(self.up(y), size=x.shape[2:], mode=mode, align_corners=False)


class Residual(nn.Module):
    """An attention module: H = (1 + M) * T (Eq. 3), M in 0..1 the mask and T the trunk; (B, C, [T,] H, W) -> the same.

    `p` units before the two part and `p` after they meet, `t` in the trunk (Fig. 2). The mask ends in two 1x1
    convolutions and a sigmoid over every channel and place (Eq. 4, mixed attention).
    """

    def __init__(self, unit: Callable[[], Unit], channels: int, levels: int, p: int, t: int) -> None:
        super().__init__()
        self.before, self.after = (nn.Sequential(*[unit() for _ in range(p)]) for _ in range(2))
        self.trunk = nn.Sequential(*[unit() for _ in range(t)])
        self.mask = Hourglass(unit, levels)
        linear = [nn.Conv2d(channels, channels, 1, bias=False) for _ in range(2)]
        self.linear = nn.Sequential(*_activation(channels), linear[0], *_activation(channels), linear[1])

    def forward(self, x: Tensor) -> Tensor:
        x = self.before(x)
        mask = self.linear(self.mask(x)).sigmoid()
        return self.after((1 + mask) * self.trunk(x))


class ResidualAttention:
    """Builds the publication's network in place of ResNet's blocks, of which it keeps the widths, groups and strides.

    ResNet-50 becomes Attention-56 (Table 2; fwang91/residual-attention-network, imagenet_model/
    Attention-56-deploy.prototxt): stages 1, 2 and 3 are a unit, then a module with p = 1, t = 2, five units of trunk in
    all, where ResNet-50 has 3, 4 and 6; stage 4 is three units. ResNet-101 and -152 become Attention-92, with 1, 2 and
    3 modules. With ResNeXt's groups these are AttentionNeXt. Ours, for basic blocks: ResNet-34 as ResNet-50; ResNet-18
    with p = 0, t = 1, which leaves its trunk of two units a stage as it is.

    A stage ends in the batch norm (and ReLU) with which the next one would begin, so stages cut the network as it is.
    """

    def place(self, staged: Staged) -> None:
        layers = [residual_layer(staged, number, self) for number in range(1, len(staged.stages) + 1)]
        modules = (1, 2, 3) if len(layers[2]) > 6 else (1, 1, 1)
        p, t = (0, 1) if len(layers[2]) == 2 else (1, 2)
        for number, (stage, blocks) in enumerate(zip(staged.stages, layers, strict=True), start=1):
            parts = OrderedDict(stage.named_children())
            name, relu = f"layer{number}", parts.pop("relu_out")
            del parts[name]
            if "maxpool" in parts:
                parts["bn_pool"], parts["relu_pool"] = _activation(parts["bn1"].num_features)
            widths, inputs, stride = _read(blocks[0])
            made: list[nn.Module] = [Unit(widths, inputs, stride)]
            if number <= len(LEVELS):
                unit = partial(Unit, widths)
                for _ in range(modules[number - 1]):
                    made.append(Residual(unit, widths.outside, LEVELS[number - 1], p, t))
            else:
                made += [Unit(widths) for _ in range(len(blocks) - 1)]
            parts |= {name: nn.Sequential(*made), "bn_out": nn.BatchNorm2d(widths.outside), "relu_out": relu}
            staged.stages[number - 1] = nn.Sequential(parts)


def _read(block: nn.Module) -> tuple[Widths, int, int]:
    """A block of torchvision's as widths, input channels, stride."""
    if hasattr(block, "conv3"):
        widths, strided = Widths(block.conv3.out_channels, block.conv2.out_channels, block.conv2.groups), block.conv2
    else:
        widths, strided = Widths(block.conv2.out_channels, None, 1), block.conv1
    return widths, block.conv1.in_channels, strided.stride[0]


def _convolutions(widths: Widths, inputs: int, stride: int) -> list[nn.Conv2d]:
    outside, inside = widths.outside, widths.inside
    if inside is None:
        shapes = [(inputs, outside, 3, stride, 1), (outside, outside, 3, 1, 1)]
    else:
        shapes = [(inputs, inside, 1, 1, 1), (inside, inside, 3, stride, widths.groups), (inside, outside, 1, 1, 1)]
    return [nn.Conv2d(i, o, k, s, padding=k // 2, groups=g, bias=False) for i, o, k, s, g in shapes]


def _activation(channels: int) -> list[nn.Module]:
    return [nn.BatchNorm2d(channels), nn.ReLU(inplace=True)]
