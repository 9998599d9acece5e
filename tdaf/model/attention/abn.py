"""The attention branch network (Fukui et al. 2019, arXiv 1812.10025)."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from tdaf.model.init import initialise
from tdaf.model.staged import Attend


class AttentionBranch(nn.Module):
    """The branch that names the classes and so learns where to look: maps of the K classes from a copy of the last
    stage, at the size of its input; from these, their mean as class scores, and a mask in 0..1 of one channel.

    As in the authors' models/imagenet/resnet.py (machine-perception-robotics-group/attention_branch_network), where
    the mean is taken after one more 1x1 convolution, and batch norm comes before the maps, after them and before the
    mask's sigmoid. `layers`: the copy, whose result has `channels`.
    """

    def __init__(self, layers: nn.Module, channels: int, classes: int) -> None:
        super().__init__()
        self.layers = layers
        self.norm = nn.BatchNorm2d(channels)
        self.maps = nn.Conv2d(channels, classes, 1, bias=False)
        self.maps_norm = nn.BatchNorm2d(classes)
        self.relu = nn.ReLU(inplace=True)
        self.scores = nn.Conv2d(classes, classes, 1, bias=False)
        self.mask = nn.Conv2d(classes, 1, 3, padding=1, bias=False)
        self.mask_norm = nn.BatchNorm2d(1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The stage's input (B, C, H, W) -> mask (B, 1, H, W), class maps (B, K, H, W)."""
        maps = self.relu(self.maps_norm(self.maps(self.norm(self.layers(x)))))
        return self.mask_norm(self.mask(maps)).sigmoid(), maps


class PerceptionBranch(nn.Module):
    """A network's last stage, which sees its input x as x * (1 + M(x)) (Fukui et al. 2019, Eq. 2), M the mask of its
    `attention`; the stage's own layers keep their names.

    x (B, C, H, W) -> the stage's map; in training the K class scores come before its channels, each the same at every
    place, so that a stage remains a function of one map to one map, whoever runs it.
    """

    def __init__(self, attention: AttentionBranch, stage: nn.Sequential) -> None:
        super().__init__()
        self.attention = attention
        for name, layer in stage.named_children():
            self.add_module(name, layer)

    def forward(self, x: Tensor) -> Tensor:
        attention, *layers = self.children()
        mask, maps = attention(x)
        x = x * (1 + mask)
        for layer in layers:
            x = layer(x)
        if not self.training:
            return x
        scores = attention.scores(maps).mean((2, 3), keepdim=True)
        return torch.cat([scores.to(x.dtype).expand(-1, -1, *x.shape[2:]), x], dim=1)


def place(parts: Sequence[dict[str, nn.Module]]) -> Attend:
    """The attention branch comes before layer4, once the number of classes is known."""
    return attend


def attend(stage: nn.Sequential, width: int, classes: int) -> PerceptionBranch:
    """The last stage, of `width` channels, with its attention branch for that many classes; the branch is drawn anew.

    The branch's layers are the stage's own with stride 1 and no pool, so a basic block, a group and VGG's three
    convolutions have one as well. (The publication's VGG is not in the authors' repository; this one is ours.)
    """
    layers = copy.deepcopy(nn.Sequential(*[layer for name, layer in stage.named_children() if name != "relu_out"]))
    _keep_size(layers)
    return PerceptionBranch(initialise(AttentionBranch(layers, width, classes)), stage)


def _keep_size(layers: nn.Module) -> None:
    for name, module in layers.named_children():
        if isinstance(module, nn.MaxPool2d):
            setattr(layers, name, nn.Identity())
        elif isinstance(module, nn.Conv2d):
            module.stride = (1, 1)
        elif hasattr(module, "activate"):
            module.activate = True
        _keep_size(module)
