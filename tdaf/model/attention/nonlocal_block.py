"""The non-local block (Wang, Girshick, Gupta and He 2018, "Non-local Neural Networks", arXiv 1711.07971)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

BLOCKS = {2: 2, 3: 3}  # how many come into layer2 and layer3, which the paper calls res3 and res4 (Sec. 5.1)


class NonLocal(nn.Module):
    """z_i = W y_i + x_i (Eq. 6), y_i a sum over all places j of g(x_j), weighted by how x_j answers x_i (Eq. 1):
    the softmax over j of theta(x_i) . phi(x_j) (Eq. 4, embedded Gaussian, the paper's default).

    (B, C, [T,] H, W) -> the same shape. theta, phi and g give C / 2 channels (Sec. 3.3). j runs over a map that a 2x2
    max pool has subsampled (Sec. 3.3), in space but not in time; it is pooled before phi and g, as that section's
    equation and the authors' code have it (facebookresearch/video-nonlocal-net, lib/models/nonlocal_helper.py), and
    sizes are rounded up. One batch norm, after W, starts at weight 0: the block starts as the identity (Sec. 4.1).
    From that code, not in the paper: logits are divided by sqrt(C / 2). Without biases, as in the equations; the code
    has them, of which theta's alone would have an effect.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        inner = channels // 2
        self.theta, self.phi, self.g = (nn.Conv2d(channels, inner, 1, bias=False) for _ in range(3))
        self.w = nn.Conv2d(inner, channels, 1, bias=False)
        self.norm = nn.BatchNorm2d(channels)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.zeros_(self.norm.weight)

    def forward(self, x: Tensor) -> Tensor:
        query, pooled = self.theta(x), self._pooled(x)
        key, value = self.phi(pooled).flatten(2), self.g(pooled).flatten(2)
        logits = torch.matmul(query.flatten(2).transpose(1, 2), key) * self.theta.out_channels**-0.5
        y = torch.matmul(value, logits.softmax(2).transpose(1, 2))
        return x + self.norm(self.w(y.reshape(query.shape)))

    def _pooled(self, x: Tensor) -> Tensor:
        # The layers know whether they have been inflated. Asking x would hide them from torch.fx, which folds norms.
        if len(self.theta.kernel_size) == 3:
            return F.max_pool3d(x, (1, 2, 2), ceil_mode=True)
        return F.max_pool2d(x, 2, ceil_mode=True)


def place(parts: Sequence[dict[str, nn.Module]]) -> None:
    """Five blocks, two in res3 and three in res4 (Sec. 5.1), each after a residual block's last ReLU.

    In ResNet-50 "every other residual block": after blocks 1 and 3 of res3's four and 1, 3 and 5 of res4's six, so the
    last stands right before the last residual block of its stage, which is where the paper has single ones. The
    authors' code has each of them one block later, the last ones behind their stage's end, where here the gate comes.
    ResNet-101 as that code: res4 after 7, 14 and 21 of 23. Other depths are spread alike (`spread`); ResNet-18 has room
    for one in each of the two stages. Basic blocks and ResNeXt's are our extension: the same places.

    To the publication's ResNet-101 for clips of 32 frames this adds what its Table 2e has, 1.2 times the parameters and
    1.2 times the FLOPs; TDAF's text has these 20% too. TDAF's Table 3b has 12.5% more FLOPs beside ResNet-50 and 9.9%
    beside ResNeXt-101. Five blocks, matrix products included, are 36% and 9.0% at 224 x 224 (ResNet-152: 12.8%); which
    number of blocks its 12.5% is of, it does not say.
    """
    for block in with_one(parts):
        block.after = NonLocal(channels(block))


def with_one(parts: Sequence[dict[str, nn.Module]]) -> list[nn.Module]:
    """The residual blocks of a ResNet that a non-local block comes after."""
    layers = {number: parts[number - 1][f"layer{number}"] for number in BLOCKS}
    return [layers[number][index] for number in BLOCKS for index in spread(len(layers[number]), BLOCKS[number])]


def spread(blocks: int, wanted: int) -> list[int]:
    """After which of a stage's blocks, counted from 0, `wanted` others come: evenly, and never after the last one."""
    wanted = min(wanted, blocks // 2)
    step = blocks // wanted
    shift = 2 if step * wanted == blocks else 1
    return [step * i - shift for i in range(1, wanted + 1)]


def channels(block: nn.Module) -> int:
    """Channels after a residual block."""
    return (block.conv3 if hasattr(block, "conv3") else block.conv2).out_channels
