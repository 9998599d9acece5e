"""The double attention block (Chen, Kalantidis, Li, Yan and Feng 2018, "A^2-Nets", arXiv 1810.11579)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from tdaf.model.attention.nonlocal_block import channels, with_one

REDUCTION = 2  # input channels / channels of phi, theta and rho; see `place`


class DoubleAttention(nn.Module):
    """Gathers n descriptors of the whole map, then gives every place a mix of them (Eq. 6):
    Z = [phi(X) softmax(theta(X))^T] softmax(rho(X)).
    The first softmax is over places (Eq. 4), the second over descriptors (Eq. 5).

    (B, C, [T,] H, W) -> the same shape: Z has m = C / 2 channels, which a last convolution expands to C, and X is added
    (Sec. 3.3). The product in brackets comes first, m x n numbers whatever the map's size. Without biases, as in the
    equations. Where the paper leaves it open we do as in the non-local block that it compares with: one batch norm,
    after the expansion, which starts at weight 0, so that the block starts as the identity.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        inner = channels // REDUCTION
        self.phi, self.theta, self.rho = (nn.Conv2d(channels, inner, 1, bias=False) for _ in range(3))
        self.expand = nn.Conv2d(inner, channels, 1, bias=False)
        self.norm = nn.BatchNorm2d(channels)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.zeros_(self.norm.weight)

    def forward(self, x: Tensor) -> Tensor:
        features = self.phi(x)
        attention, vectors = self.theta(x).flatten(2).softmax(2), self.rho(x).flatten(2).softmax(1)
        gathered = torch.matmul(features.flatten(2), attention.transpose(1, 2))
        z = torch.matmul(gathered, vectors)
        return x + self.norm(self.expand(z.reshape(features.shape)))


def place(parts: Sequence[dict[str, nn.Module]]) -> None:
    """Five blocks (Sec. 4.4, ResNet-50). Which five is not in a source at hand; ours are where the five non-local ones
    are that they are compared with: two in res3, three in res4, other depths as there. Basic blocks and ResNeXt's are
    our extension.

    The paper's ablations on clips (Sec. 4.2) give phi, theta and rho a quarter of the input's channels. That cannot be
    its ImageNet network, which by its abstract has "over 40%" fewer parameters than ResNet-152 and by TDAF's Table 3b
    58.5% more FLOPs than ResNet-50 (6.5 GFLOPs): five such blocks would be 51% and 28%. No source at hand gives the
    width there. Half the channels, as the non-local block has, is our choice: 45% fewer parameters than ResNet-152, 29%
    more than ResNet-50 (TDAF's text: 10%), and 63% more FLOPs, matrix products included, 50% without them.
    """
    for block in with_one(parts):
        block.after = DoubleAttention(channels(block))
