"""Attention augmented convolution (Bello et al. 2019, arXiv 1904.09925)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from tdaf.errors import UserError

HEADS = 8
LEAST_KEYS = 20  # a head
BOTTLENECK = (0.2, 0.1)  # kappa and upsilon, kappa = 2 upsilon = 0.2
BASIC = (0.25, 0.25)
# Stages 2 to 4 of 224-pixel images: how often the attention's input is halved, and the side of the map it then reads.
STAGES = {1: (1, 14), 2: (0, 14), 3: (0, 7)}


class AugmentedConv(nn.Module):
    """Channels of a 3x3 convolution beside channels of self-attention over the whole map (Sec. 3.2).

    (B, in, H, W) -> (B, out, ceil(H / stride), ceil(W / stride)), in, out and stride those of `plain`, the convolution
    that this one replaces. `keys` and `values` are kappa and upsilon, the parts of `out` which are d_k and d_v; both
    are rounded to the nearest multiple of the 8 heads, and a head has at least 20 channels of keys, one of values.

    One 1x1 convolution makes queries, keys and values, a second one mixes the heads (Eq. 2), no biases: a batch norm
    follows. The attention's input is halved by 3x3 average pooling with stride 2, `halved` times, which bilinear
    interpolation undoes (the paper's Sec. 3.2), and once for a stride of `plain` (our choice: the code that the paper
    prints has no stride). `side`: the largest distance with an embedding of its own, plus 1; farther ones share the
    last one, as in Shaw et al. 2018 (our choice), so that maps of any size can be read. The embeddings start with
    standard deviation d^-1/2, d the keys of a head; the printed code's call gives that number to the mean.
    """

    def __init__(self, plain: nn.Conv2d, keys: float, values: float, halved: int, side: int) -> None:
        super().__init__()
        inputs, outputs, stride = plain.in_channels, plain.out_channels, plain.stride[0]
        depth = max(LEAST_KEYS, round(keys * outputs / HEADS))
        self.keys, self.values = HEADS * depth, HEADS * max(1, round(values * outputs / HEADS))
        self.conv = nn.Conv2d(inputs, outputs - self.values, 3, stride, padding=1, bias=False)
        self.qkv = nn.Conv2d(inputs, 2 * self.keys + self.values, 1, bias=False)
        self.mix = nn.Conv2d(self.values, self.values, 1, bias=False)
        self.rows = nn.Parameter(torch.empty(2 * side - 1, depth))
        self.columns = nn.Parameter(torch.empty(2 * side - 1, depth))
        self.halved, self.pools = halved, halved + (stride > 1)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        for table in (self.rows, self.columns):
            nn.init.normal_(table, std=table.shape[1] ** -0.5)

    def forward(self, x: Tensor) -> Tensor:
        local = self.conv(x)
        for _ in range(self.pools):
            x = F.avg_pool2d(x, 3, stride=2, padding=1, count_include_pad=False)
        q, k, v = self.qkv(x).split([self.keys, self.keys, self.values], dim=1)
        attended = self.mix(attention(q, k, v, self.rows, self.columns))
        if self.halved:
            attended = F.interpolate(attended, size=local.shape[2:], mode="bilinear")
        return torch.cat([local, attended], dim=1)


@fx.wrap
def attention(q: Tensor, k: Tensor, v: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Multi-head attention of every position to all (Eqs. 1, 3 and 4), the heads' outputs side by side (Eq. 2).

    q, k (B, heads d, H, W), v (B, values, H, W), rows and columns (2 R - 1, d): the embedding of the distance j - i
    between key j and query i at place j - i + R - 1, for all heads -> (B, values, H, W).
    """
    height, width = q.shape[2:]
    q, k, v = (t.unflatten(1, (HEADS, -1)).movedim(2, -1) for t in (q, k, v))  # (B, heads, H, W, d)
    q = q * q.shape[-1] ** -0.5
    content = q.flatten(2, 3) @ k.flatten(2, 3).mT
    vertical = torch.einsum("bhyxd,yjd->bhyxj", q, rows[_places(height, rows)])
    horizontal = torch.einsum("bhyxd,xjd->bhyxj", q, columns[_places(width, columns)])
    logits = content.view(*q.shape[:4], height, width) + vertical.unsqueeze(5) + horizontal.unsqueeze(4)
    out = logits.view(content.shape).softmax(-1) @ v.flatten(2, 3)
    return out.mT.reshape(q.shape[0], -1, height, width)


def augment(parts: Sequence[dict[str, nn.Module]]) -> None:
    """Augments one 3x3 of every residual block in the last three stages (Sec. 4.2): the only one of a bottleneck, with
    kappa = 2 upsilon = 0.2, and the first of a basic block, with kappa = upsilon = 0.25; in the stage of stride 8 the
    attention reads maps halved once more.

    Checked by the published parameters (in brackets ours): AA-ResNet-50 25.8M (25.78M), AA-ResNet-101 45.4M (45.35M),
    AA-ResNet-34 20.7M (20.75M), AA-ResNet-50 with kappa = upsilon = 0.25, 0.5, 0.75: 24.3M, 22.3M, 20.7M (24.30M,
    22.34M, 20.74M); kamenbliznashki/chexpert, models/attn_aug_conv.py, has the same placement. Published GFLOPs, 2 a
    multiply-add: AA-ResNet-50 8.3 for ResNet-50's 8.2 (8.36 for 8.18, products of attention included), AA-ResNet-34
    7.1 (7.19). Without the halving AA-ResNet-50 would have 9.4, so the published network halves there too. TDAF's Table
    3b has +1.3% for it, which is 8.3 by 8.2; 8.36 by 8.18 is +2.2%.
    Other ResNets by the same rule. Raises UserError for ResNeXt: heads over grouped channels are nowhere defined.
    """
    for stage, (halved, side) in STAGES.items():
        layer = next(module for name, module in parts[stage].items() if name.startswith("layer"))
        for block in layer:
            place, ratios = ("conv2", BOTTLENECK) if hasattr(block, "conv3") else ("conv1", BASIC)
            plain = getattr(block, place)
            if plain.groups > 1:
                raise UserError(
                    f"attention=aa: defined for plain convolutions, not for ResNeXt (groups={plain.groups})"
                )
            setattr(block, place, AugmentedConv(plain, *ratios, halved, side))


def _places(size: int, table: Tensor) -> Tensor:
    """(size, size): where in `table` the embedding of key j for query i is, by [i, j]."""
    farthest = len(table) // 2
    at = torch.arange(size, device=table.device)
    return (at - at.unsqueeze(1)).clamp(-farthest, farthest) + farthest
