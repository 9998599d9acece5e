"""The compact generalised non-local block (Yue et al. 2018, arXiv 1810.13125)."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from tdaf.model.attention.nonlocal_block import channels

GROUPS = 8


class CGNL(nn.Module):
    """A non-local block between all places and channels at once: theta, phi and g are vectors of all C' N values of a
    group of channels, and with the dot product as kernel y = theta (phi . g), the product of the two last a single
    number for each group and sample. Then a grouped 1x1 convolution and group norm, and the input is added.

    (B, C, [T,] H, W) -> the same shape; for clips N counts the places of all frames (Fig. 2). As the authors' ImageNet
    networks have it (KaiyuYue/cgnl-network.pytorch, model/resnet.py, SpatialCGNL): C / 2 channels inside, 8 groups, the
    product not scaled, no biases; convolutions start at N(0, 0.01), the norm at weight 0, so the block as the identity.
    The convolution and the norm have the same groups as the product, so of phi . g the norm leaves only the sign
    (but for its epsilon). That is the publication's block, not ours.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        inner = channels // 2
        self.theta, self.phi, self.g = (nn.Conv2d(channels, inner, 1, bias=False) for _ in range(3))
        self.z = nn.Conv2d(inner, channels, 1, groups=GROUPS, bias=False)
        self.norm = nn.GroupNorm(GROUPS, channels)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        for conv in (self.theta, self.phi, self.g, self.z):
            nn.init.normal_(conv.weight, 0, 0.01)
        nn.init.zeros_(self.norm.weight)

    def forward(self, x: Tensor) -> Tensor:
        theta = self.theta(x)
        # So long a sum needs more than half precision.
        phi, g = (conv(x).unflatten(1, (GROUPS, -1)).flatten(2).float() for conv in (self.phi, self.g))
        product = (phi * g).sum(2, keepdim=True).to(theta.dtype)
        y = theta.unflatten(1, (GROUPS, -1)).flatten(2) * product
        return x + self.norm(self.z(y.reshape(theta.shape)))


def place(parts: Sequence[dict[str, nn.Module]]) -> None:
    """One block, right before the last residual block of res4 (layer3): the authors' ResNet-50, -101 and -152 (README,
    model/resnet.py), with 1.6 million parameters, 6.4% of ResNet-50's, and 7.8% of its FLOPs. The same in every other
    depth, in ResNeXt and with basic blocks, which is our extension.

    TDAF's Table 3b prints no FLOPs for it. Its +1.2 and +1.1 are that README's gains of the variant with a Gaussian
    kernel (77.32 and 79.37 top-1); the one here has 77.69 and 79.53 there, +1.5 and +1.2. Its "> 20%" parameters are
    those of five blocks, two in res3 and three in res4 (22%), which README and code do not have for ImageNet.
    """
    block = parts[2]["layer3"][-2]
    block.after = CGNL(channels(block))
