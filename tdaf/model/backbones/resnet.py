"""ResNet and ResNeXt (He et al. 2016, Xie et al. 2017): torchvision's network cut after each of its four layers."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet

from tdaf.errors import UserError
from tdaf.model.attention.placement import place
from tdaf.model.inflate import inflate
from tdaf.model.init import initialise
from tdaf.model.staged import Staged


class Basic(BasicBlock):
    """torchvision's block with places for modules: `attention` at the end of its residual branch, `after` its last
    ReLU, and `top_down`, with which the branch's end is computed twice, the second time from an input that it modulates
    and with its norms. With `activate` False the last ReLU is left to the stage, and nothing comes after it."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.attention: nn.Module | None = None
        self.after: nn.Module | None = None
        self.top_down: nn.Module | None = None
        self.activate = True

    def forward(self, x: Tensor) -> Tensor:
        branch = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        if self.top_down is not None:
            again = self.relu(self.top_down.bn1(self.conv1(self.top_down(x, branch))))
            branch = self.top_down.bn2(self.conv2(again))
        return _join(self, x, branch)


class Deep(Bottleneck):
    """torchvision's bottleneck with the same changes."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.attention: nn.Module | None = None
        self.after: nn.Module | None = None
        self.top_down: nn.Module | None = None
        self.activate = True

    def forward(self, x: Tensor) -> Tensor:
        branch = self.relu(self.bn1(self.conv1(x)))
        bottom = self.relu(self.bn2(self.conv2(branch)))
        branch = self.bn3(self.conv3(bottom))
        if self.top_down is not None:
            branch = self.top_down.bn3(self.conv3(self.top_down(bottom, branch)))
        return _join(self, x, branch)


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
    attention: str = "none",
    dims: int = 2,
) -> Staged:
    """ResNet; with groups > 1 ResNeXt (32x4d: groups 32, width_per_group 4). width: planes of the first layer, 64 in
    every published network; the following layers have 2, 4 and 8 times as many.

    L = 4, the stem in stage 1; strides 4, 8, 16, 32. `stem`: "imagenet", 7x7 with stride 2 and a pool; "small" (inputs of
    about 64 pixels) and "cifar" (32), 3x3 with stride 2 or 1 and no pool, strides from 2 or 1 on.
    `attention`: a mechanism of tdaf/model/attention, where its publication places it.
    `dims=3`: all kernels cubes, stem stride (1, 2, 2), shortcut B (Hara et al. 2018, Table 1).
    Raises UserError for a setting that has no network.
    """
    _check(depth, groups, width_per_group, width, stem, dims)
    block, counts = _LAYERS[depth]
    network = _Wide(width, block, counts, num_classes=1, groups=groups, width_per_group=width_per_group)
    if stem != "imagenet":
        network.conv1 = nn.Conv2d(3, width, 3, stride=STEMS[stem], padding=1, bias=False)
    layers = [network.layer1, network.layer2, network.layer3, network.layer4]
    widths = [width * 2**i * block.expansion for i in range(4)]
    for layer in layers:
        layer[-1].activate = False
    parts: list[OrderedDict[str, nn.Module]] = [OrderedDict({f"layer{i}": layer}) for i, layer in enumerate(layers, 1)]
    first = OrderedDict(conv1=network.conv1, bn1=network.bn1, relu=network.relu, maxpool=network.maxpool)
    if stem != "imagenet":
        del first["maxpool"]
    parts[0] = OrderedDict(**first, **parts[0])
    attend = place(attention, parts, dims)
    stages = [nn.Sequential(OrderedDict(**part, relu_out=nn.ReLU(inplace=True))) for part in parts]
    staged = Staged(stages, widths, [STEMS[stem] * 2**i for i in range(4)], attend=attend)
    if dims == 3:
        inflate(staged, stem=network.conv1)
    return initialise(staged)


def _join(block: Basic | Deep, x: Tensor, branch: Tensor) -> Tensor:
    if block.attention is not None:
        branch = block.attention(branch)
    branch += x if block.downsample is None else block.downsample(x)
    if not block.activate:
        return branch
    out = block.relu(branch)
    return out if block.after is None else block.after(out)


def _check(depth: int, groups: int, width_per_group: int, width: int, stem: str, dims: int) -> None:
    if depth not in _LAYERS:
        raise UserError(f"depth={depth}: ResNet has the depths {', '.join(map(str, _LAYERS))}")
    if stem not in STEMS:
        raise UserError(f"stem={stem}: choose {', '.join(STEMS)}")
    if dims not in (2, 3):
        raise UserError(f"dims={dims}: choose 2 (images) or 3 (clips)")
    if groups < 1 or width_per_group < 1:
        raise UserError(f"groups={groups}, width_per_group={width_per_group}: both must be 1 or more")
    if width < 8 or width % 8:
        raise UserError(f"width={width}: give a multiple of 8")
    if depth < 50 and (groups, width_per_group) != (1, 64):
        raise UserError(f"depth={depth}: groups and width_per_group need bottlenecks, so a depth of 50 or more")
