"""The top-down attention module (Jaiswal, Fernando and Tan 2022, "TDAM", arXiv 2111.13470)."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from tdaf.model.attention import block_width, residual_layer
from tdaf.model.backbones.resnet import Basic, Deep
from tdaf.model.staged import Staged

REDUCTION = 16
# of ResNet-101 and ResNet-152, by the number of blocks in layer3: which of them have the module
_SOME = {23: (0, 1, 2, 8, 13, 18, 22), 36: (0, 1, 2, 8, 13, 18, 22, 25, 28, 31, 32, 33, 34, 35)}


class TopDown(nn.Module):
    """The searchlight by which the end of a residual branch (top) modulates what it was computed from (bottom).

    The technique "joint": both maps are pooled to one value a channel and reduced to top / 16, with ReLU; from the two
    side by side one layer gives s, a value for each channel of the bottom. Then, all without bias,
        channels: b = b * sigmoid(s);  places: b = b * sigmoid(sum over channels of s * b).
    `norms`: batch norms, by name and channels, of the layers that run again: the second of two computation steps has
    the first one's convolutions and statistics and affine values of its own.

    From the authors' code (shantanuj/TDAM_Top_down_attention_module, modules_and_models/modules.py and
    timm_td_resnet.py), whose published networks all have "joint" and two steps. Their timm code starts every branch's
    last norm at weight 0; here it starts at 1, as in every other network, as from 0 the top map is 0 and stays unread.
    """

    def __init__(self, bottom: int, top: int, norms: Mapping[str, int]) -> None:
        super().__init__()
        hidden = max(1, top // REDUCTION)
        self.reduce_top = nn.Conv2d(top, hidden, 1, bias=False)
        self.reduce_bottom = nn.Conv2d(bottom, hidden, 1, bias=False)
        self.expand = nn.Conv2d(2 * hidden, bottom, 1, bias=False)
        for name, channels in norms.items():
            self.add_module(name, nn.BatchNorm2d(channels))

    def forward(self, bottom: Tensor, top: Tensor) -> Tensor:
        """bottom (B, C, [T,] H, W), top (B, D, [T',] H', W') -> the bottom modulated."""
        # The layers know whether they have been inflated. Asking x would hide them from torch.fx, which folds norms.
        places = tuple(range(2, 2 + len(self.expand.kernel_size)))
        above, below = (x.mean(places, keepdim=True) for x in (top, bottom))
        above, below = self.reduce_top(above), self.reduce_bottom(below)
        searchlight = self.expand(torch.cat([above.relu(), below.relu()], dim=1))
        bottom = bottom * searchlight.sigmoid()
        return bottom * (bottom * searchlight).sum(1, keepdim=True).sigmoid()


class TopDownBasic(Basic):
    """A basic block whose two convolutions run again (feedback distance m = 2), on the modulated input."""

    def branch(self, x: Tensor) -> Tensor:
        again = self.relu(self.top_down.bn1(self.conv1(self.top_down(x, super().branch(x)))))
        return self.top_down.bn2(self.conv2(again))


class TopDownDeep(Deep):
    """A bottleneck whose last convolution runs again (m = 1), on its modulated input."""

    def branch(self, x: Tensor) -> Tensor:
        bottom = self.reduced(x)
        return self.top_down.bn3(self.conv3(self.top_down(bottom, self.bn3(self.conv3(bottom)))))


class TopDownAttention:
    """Every block of layer3 and layer4, two steps: a bottleneck's last convolution runs again or a basic block's two,
    as the authors' networks have it for ResNet-50 and for ResNet-18 and -34.

    In ResNet-101 and -152 a choice of layer3's blocks (the repository's td_train_and_evaluate.py). ResNeXt is our
    extension: the same as the ResNet of its depth.
    """

    def place(self, staged: Staged) -> None:
        for number in (3, 4):
            blocks = residual_layer(staged, number, self)
            for index, block in enumerate(blocks):
                if index in _SOME.get(len(blocks), range(len(blocks))):
                    _look_again(block)


def _look_again(block: Basic | Deep) -> None:
    """The same block, of the class whose branch runs twice."""
    channels = block_width(block)
    if isinstance(block, Deep):
        block.top_down = TopDown(block.conv3.in_channels, channels, {"bn3": channels})
        block.__class__ = TopDownDeep
    else:
        block.top_down = TopDown(block.conv1.in_channels, channels, {"bn1": channels, "bn2": channels})
        block.__class__ = TopDownBasic
