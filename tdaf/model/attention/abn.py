"""The attention branch network (Fukui et al. 2019, arXiv 1812.10025). Its task is tasks/classification/abn.py."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from tdaf.errors import UserError
from tdaf.model.staged import Staged, initialise


class AttentionBranch2d(nn.Module):
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
        """The stage's input (B, C, H, W) -> mask (B, 1, H, W), class scores (B, K, 1, 1)."""
        maps = self.relu(self.maps_norm(self.maps(self.norm(self.layers(x)))))
        # A linear layer and a mean commute: on the mean it costs as good as nothing.
        return self.mask_norm(self.mask(maps)).sigmoid(), self.scores(maps.mean((2, 3), keepdim=True))


class PerceptionBranch2d(nn.Module):
    """A network's last stage, which sees its input x as x * (1 + M(x)) (Fukui et al. 2019, Eq. 2), M the mask of its
    `attention`, which `name_classes` makes; the stage's own layers keep their names.

    x (B, C, H, W) -> the K class scores of the branch, each the same at every place, before the channels of the stage's
    map: so a stage remains a function of one map to one map, whoever runs it.
    """

    def __init__(self, stage: nn.Sequential) -> None:
        super().__init__()
        self.register_module("attention", None)
        for name, layer in stage.named_children():
            self.add_module(name, layer)

    def name_classes(self, channels: int, classes: int) -> None:
        """Makes the branch, drawn anew, for a stage whose own map has `channels`.

        The branch's layers are the stage's with stride 1 and no pool, so a basic block, a group and VGG's three
        convolutions have one as well. (The publication's VGG is not in the authors' repository; this one is ours.)
        """
        children = [child for name, child in self.named_children() if name != "relu_out"]
        layers = copy.deepcopy(nn.Sequential(*children))
        _keep_size(layers)
        self.attention = initialise(AttentionBranch2d(layers, channels, classes))

    def forward(self, x: Tensor) -> Tensor:
        if self.attention is None:
            raise UserError(
                "attention: an attention branch names the classes of an image, so it needs a task that has some: "
                "tasks.classification.abn.AttentionBranchClassification"
            )
        attention, *layers = self.children()
        mask, scores = attention(x)
        x = x * (1 + mask)
        for layer in layers:
            x = layer(x)
        return torch.cat([scores.to(x.dtype).expand(-1, -1, *x.shape[2:]), x], dim=1)


class AttentionBranch:
    """The attention branch comes before a ResNet's layer4 or a VGG's fifth stage."""

    def place(self, staged: Staged) -> None:
        staged.stages[-1] = PerceptionBranch2d(staged.stages[-1])


def _keep_size(layers: nn.Module) -> None:
    for name, module in layers.named_children():
        if isinstance(module, nn.MaxPool2d):
            setattr(layers, name, nn.Identity())
        elif isinstance(module, nn.Conv2d):
            module.stride = (1, 1)
        elif hasattr(module, "activate"):
            module.activate = True
        _keep_size(module)
