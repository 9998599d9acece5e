"""ResNet and ResNeXt (He et al. 2016, Xie et al. 2017): torchvision's network cut after each of its four layers."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet

from tdaf.errors import UserError
from tdaf.model import attention as mechanisms
from tdaf.model.attention import Attention
from tdaf.model.inflate import inflate
from tdaf.model.staged import Staged, initialise


class _Block:
    """torchvision's residual blocks with places for modules: `attention` at the end of the residual branch, `after` the
    block's last ReLU. With `activate` False that ReLU is left to the stage, and nothing comes after it."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.attention: nn.Module | None = None
        self.after: nn.Module | None = None
        self.activate = True

    def forward(self, x: Tensor) -> Tensor:
        branch = self.branch(x)
        if self.attention is not None:
            branch = self.attention(branch)
        branch += x if self.downsample is None else self.downsample(x)
        if not self.activate:
            return branch
        out = self.relu(branch)
        return out if self.after is None else self.after(out)


class Basic(_Block, BasicBlock):
    """Two 3x3 convolutions."""

    def branch(self, x: Tensor) -> Tensor:
        return self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))


class Deep(_Block, Bottleneck):
    """A bottleneck of 1x1, 3x3, 1x1."""

    def branch(self, x: Tensor) -> Tensor:
        return self.bn3(self.conv3(self.reduced(x)))

    def reduced(self, x: Tensor) -> Tensor:
        """What the last convolution reads."""
        return self.relu(self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x))))))


class _Wide(ResNet):
    """torchvision's network with `width` planes in its first layer, where torchvision has 64."""

    def __init__(self, width: int, *args: Any, **kwargs: Any) -> None:
        self.width = width
        super().__init__(*args, **kwargs)
        if width != 64:
            self.conv1, self.bn1 = nn.Conv2d(3, width, 7, 2, padding=3, bias=False), nn.BatchNorm2d(width)

    def _make_layer(self, block: type[Basic | Deep], planes: int, *args: Any, **kwargs: Any) -> nn.Sequential:
        if planes == 64:
            self.inplanes = self.width
        return super()._make_layer(block, planes * self.width // 64, *args, **kwargs)


STEMS = {"imagenet": 4, "small": 2, "cifar": 1}  # to the stride of stage 1
_LAYERS: dict[int, tuple[type[Basic | Deep], list[int]]] = {
    18: (Basic, [2, 2, 2, 2]),
    34: (Basic, [3, 4, 6, 3]),
    50: (Deep, [3, 4, 6, 3]),
    101: (Deep, [3, 4, 23, 3]),
    152: (Deep, [3, 8, 36, 3]),
}


def resnet(
    depth: int = 50,
    groups: int = 1,
    width_per_group: int = 64,
    width: int = 64,
    stem: str = "imagenet",
    attention: Attention | str | None = None,
    dims: int = 2,
) -> Staged:
    """ResNet; with groups > 1 ResNeXt (32x4d: groups 32, width_per_group 4). L = 4, the stem in stage 1.

    Args:
        depth: 18, 34, 50, 101 or 152.
        width: planes of the first layer, 64 in every published network; the others have 2, 4 and 8 times as many. 8 or
            more; a multiple of 8 with attention, whose mechanisms divide channels.
        stem: "imagenet", 7x7 with stride 2 and a pool, strides 4, 8, 16, 32; "small" (inputs of about 64 pixels) and
            "cifar" (32), 3x3 with stride 2 or 1 and no pool, strides from 2 or 1 on.
        attention: None or "none"; or a mechanism, as in tdaf/model/attention: `channels -> module` for the end of every
            residual branch, before the sum (SENet, Fig. 3; CBAM, Fig. 3), or an object that places itself.
        dims: 3: all kernels cubes, stem stride (1, 2, 2), shortcut B (Hara et al. 2018, Table 1).

    Raises:
        UserError: a setting that has no network.
    """
    attention = mechanisms.resolve(attention)
    _check(depth, groups, width_per_group, width, stem, dims, attention is not None)
    block, counts = _LAYERS[depth]
    network = _Wide(width, block, counts, num_classes=1, groups=groups, width_per_group=width_per_group)
    if stem != "imagenet":
        network.conv1 = nn.Conv2d(3, width, 3, stride=STEMS[stem], padding=1, bias=False)
    widths = [width * 2**i * block.expansion for i in range(4)]
    stages = []
    for number in range(1, 5):
        layer = network.get_submodule(f"layer{number}")
        layer[-1].activate = False
        stages.append(OrderedDict({f"layer{number}": layer, "relu_out": nn.ReLU(inplace=True)}))
        if attention is not None and not mechanisms.is_placement(attention):
            for part in layer:
                part.attention = attention(widths[number - 1])
    first = OrderedDict(conv1=network.conv1, bn1=network.bn1, relu=network.relu)
    if stem == "imagenet":
        first["maxpool"] = network.maxpool
    stages[0] = OrderedDict(**first, **stages[0])
    staged = Staged(map(nn.Sequential, stages), widths, [STEMS[stem] * 2**i for i in range(4)])
    if mechanisms.is_placement(attention):
        attention.place(staged)
    if dims == 3:
        inflate(staged, stem=network.conv1)
    return initialise(staged)


def _check(
    depth: int, groups: int, width_per_group: int, width: int, stem: str, dims: int, attention: bool = False
) -> None:
    if depth not in _LAYERS:
        raise UserError(f"depth={depth}: ResNet has the depths {', '.join(map(str, _LAYERS))}")
    if stem not in STEMS:
        raise UserError(f"stem={stem}: choose {', '.join(STEMS)}")
    if dims not in (2, 3):
        raise UserError(f"dims={dims}: choose 2 (images) or 3 (clips)")
    if groups < 1 or width_per_group < 1:
        raise UserError(f"groups={groups}, width_per_group={width_per_group}: both must be 1 or more")
    if width < 8 or (attention and width % 8):
        raise UserError(f"width={width}: give {'a multiple of 8, as there is attention' if attention else '8 or more'}")
    if depth < 50 and (groups, width_per_group) != (1, 64):
        raise UserError(f"depth={depth}: groups and width_per_group need bottlenecks, so a depth of 50 or more")
