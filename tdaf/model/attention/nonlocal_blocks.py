"""Blocks that let every place of a map see all others, put between a ResNet's residual blocks; each starts as identity.

The non-local block (Wang, Girshick, Gupta and He 2018, arXiv 1711.07971), double attention (Chen et al. 2018,
"A^2-Nets", arXiv 1810.11579) and the compact generalised non-local block (Yue et al. 2018, arXiv 1810.13125).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tdaf.model.attention import block_width, residual_layer
from tdaf.model.staged import Staged


class NonLocal(nn.Module):
    """z_i = W y_i + x_i (Eq. 6), y_i a sum over all places j of g(x_j), weighted by how x_j answers x_i (Eq. 1):
    the softmax over j of theta(x_i) . phi(x_j) (Eq. 4, embedded Gaussian, the paper's default).

    (B, C, [T,] H, W) -> the same shape. theta, phi and g give C / 2 channels. j runs over a map that a 2x2 max pool has
    subsampled before phi and g, in space but not in time (Sec. 3.3), sizes rounded up. One batch norm, after W, starts
    at weight 0 (Sec. 4.1). Logits are divided by sqrt(C / 2), as in the authors' code alone
    (facebookresearch/video-nonlocal-net, lib/models/nonlocal_helper.py). No biases, as in the equations.
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


class DoubleAttention(nn.Module):
    """Gathers n descriptors of the whole map, then gives every place a mix of them (Eq. 6):
    Z = [phi(X) softmax(theta(X))^T] softmax(rho(X)).
    The first softmax is over places (Eq. 4), the second over descriptors (Eq. 5).

    (B, C, [T,] H, W) -> the same shape: Z has m = C / `reduction` channels, which a last convolution expands to C, and
    X is added (Sec. 3.3). The product in brackets comes first. No biases, as in the equations; one batch norm, after
    the expansion, which starts at weight 0, as in the non-local block that the paper compares with.

    Half the channels, as the non-local block has, is our choice: 45% fewer parameters than ResNet-152, 29% more than
    ResNet-50 (TDAF's text: 10%), 63% more FLOPs with matrix products, 50% without. The quarter of the paper's ablations
    on clips (Sec. 4.2) would give 51% and 28%; its ImageNet network has "over 40%" fewer parameters than ResNet-152 and
    by TDAF's Table 3b 58.5% more FLOPs than ResNet-50 (6.5 GFLOPs). No source at hand gives the width there.
    """

    def __init__(self, channels: int, reduction: int = 2) -> None:
        super().__init__()
        inner = channels // reduction
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


class CGNL(nn.Module):
    """A non-local block between all places and channels at once: theta, phi and g are vectors of all C' N values of a
    group of channels, and with the dot product as kernel y = theta (phi . g), the product of the two last a single
    number for each group and sample. Then a grouped 1x1 convolution and group norm, and the input is added.

    (B, C, [T,] H, W) -> the same shape; for clips N counts the places of all frames (Fig. 2). As the authors' ImageNet
    networks have it (KaiyuYue/cgnl-network.pytorch, model/resnet.py, SpatialCGNL): C / 2 channels inside, 8 groups, the
    product not scaled, no biases; convolutions start at N(0, 0.01), the norm at weight 0.
    The convolution and the norm have the same groups as the product, so of phi . g the norm leaves only the sign
    (but for its epsilon). That is the publication's block, not ours.
    """

    GROUPS = 8

    def __init__(self, channels: int) -> None:
        super().__init__()
        inner = channels // 2
        self.theta, self.phi, self.g = (nn.Conv2d(channels, inner, 1, bias=False) for _ in range(3))
        self.z = nn.Conv2d(inner, channels, 1, groups=self.GROUPS, bias=False)
        self.norm = nn.GroupNorm(self.GROUPS, channels)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        for conv in (self.theta, self.phi, self.g, self.z):
            nn.init.normal_(conv.weight, 0, 0.01)
        nn.init.zeros_(self.norm.weight)

    def forward(self, x: Tensor) -> Tensor:
        theta = self.theta(x)
        # So long a sum needs more than half precision.
        phi, g = (conv(x).unflatten(1, (self.GROUPS, -1)).flatten(2).float() for conv in (self.phi, self.g))
        product = (phi * g).sum(2, keepdim=True).to(theta.dtype)
        y = theta.unflatten(1, (self.GROUPS, -1)).flatten(2) * product
        return x + self.norm(self.z(y.reshape(theta.shape)))


class FiveNonLocal:
    """Five blocks, two in res3 and three in res4 (Wang et al., Sec. 5.1), each after a residual block's last ReLU.

    In ResNet-50 "every other residual block": after blocks 1 and 3 of res3's four and 1, 3 and 5 of res4's six. The
    authors' code has each of them one block later, the last ones behind their stage's end, where here the gate comes.
    ResNet-101 as that code: res4 after 7, 14 and 21 of 23. Other depths are spread alike; ResNet-18 has room for one in
    each of the two stages. Basic blocks and ResNeXt's are our extension: the same places.

    To the publication's ResNet-101 for clips of 32 frames this adds what its Table 2e has, 1.2 times the parameters and
    1.2 times the FLOPs; TDAF's text has these 20% too. TDAF's Table 3b has 12.5% more FLOPs beside ResNet-50 and 9.9%
    beside ResNeXt-101. Five blocks, matrix products included, are 36% and 9.0% at 224 x 224 (ResNet-152: 12.8%); which
    number of blocks its 12.5% is of, it does not say.
    """

    BLOCKS = {2: 2, 3: 3}  # how many come into layer2 and layer3, which the papers call res3 and res4
    block: type[nn.Module] = NonLocal

    def place(self, staged: Staged) -> None:
        for number, wanted in self.BLOCKS.items():
            layer = residual_layer(staged, number, self)
            for index in _spread(len(layer), wanted):
                layer[index].after = self.block(block_width(layer[index]))


class FiveDoubleAttention(FiveNonLocal):
    """Five blocks (Chen et al., Sec. 4.4, ResNet-50). Which five is not in a source at hand; ours are where the five
    non-local ones are that they are compared with: two in res3, three in res4, other depths as there."""

    block = DoubleAttention


class OneCGNL:
    """One block, right before the last residual block of res4 (layer3): the authors' ResNet-50, -101 and -152 (README,
    model/resnet.py), with 1.6 million parameters, 6.4% of ResNet-50's, and 7.8% of its FLOPs. The same in every other
    depth, in ResNeXt and with basic blocks, which is our extension.

    TDAF's Table 3b prints no FLOPs for it. Its +1.2 and +1.1 are that README's gains of the variant with a Gaussian
    kernel (77.32 and 79.37 top-1); the one here has 77.69 and 79.53 there, +1.5 and +1.2. Its "> 20%" parameters are
    those of five blocks, two in res3 and three in res4 (22%), which README and code do not have for ImageNet.
    """

    def place(self, staged: Staged) -> None:
        block = residual_layer(staged, 3, self)[-2]
        block.after = CGNL(block_width(block))


def _spread(blocks: int, wanted: int) -> list[int]:
    """After which of a stage's blocks, counted from 0, `wanted` others come: evenly, and never after the last one."""
    wanted = min(wanted, blocks // 2)
    step = blocks // wanted
    shift = 2 if step * wanted == blocks else 1
    return [step * i - shift for i in range(1, wanted + 1)]
