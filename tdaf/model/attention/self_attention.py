"""Self-attention in the place of a ResNet's 3x3 convolutions, for images: attention augmented convolution (Bello et al.
2019, arXiv 1904.09925) and stand-alone self-attention (Ramachandran et al. 2019, arXiv 1906.05909).
"""

from __future__ import annotations

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from tdaf.errors import UserError
from tdaf.model.attention import residual_layer
from tdaf.model.staged import Staged

HEADS = 8
LEAST_KEYS = 20  # a head of an augmented convolution
EXTENT = 7  # k, the side of a local attention's neighbourhood
BLOCK = 4  # queries of 4x4 positions share one read of their 10x10 neighbourhoods; at most EXTENT // 2 + 1
NARROWEST = 8  # channels of a head: 64 / 8 in the first stage of the published networks


class AugmentedConv2d(nn.Module):
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
        attended = self.mix(global_attention(q, k, v, self.rows, self.columns))
        if self.halved:
            attended = F.interpolate(attended, size=local.shape[2:], mode="bilinear")
        return torch.cat([local, attended], dim=1)


@fx.wrap
def global_attention(q: Tensor, k: Tensor, v: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Multi-head attention of every position to all (Eqs. 1, 3 and 4), the heads' outputs side by side (Eq. 2).

    q, k (B, heads d, H, W), v (B, values, H, W), rows and columns (2 R - 1, d): the embedding of the distance j - i
    between key j and query i at place j - i + R - 1, for all heads -> (B, values, H, W).
    """
    height, width = q.shape[2:]
    q, k, v = (t.unflatten(1, (HEADS, -1)).movedim(2, -1) for t in (q, k, v))  # (B, heads, H, W, d)
    q = q * q.shape[-1] ** -0.5
    content = q.flatten(2, 3) @ k.flatten(2, 3).mT
    vertical = torch.einsum("bhyxd,yjd->bhyxj", q, rows[_distances(height, rows)])
    horizontal = torch.einsum("bhyxd,xjd->bhyxj", q, columns[_distances(width, columns)])
    logits = content.view(*q.shape[:4], height, width) + vertical.unsqueeze(5) + horizontal.unsqueeze(4)
    out = logits.view(content.shape).softmax(-1) @ v.flatten(2, 3)
    return out.mT.reshape(q.shape[0], -1, height, width)


class LocalAttention2d(nn.Module):
    """Every position attends to the 7x7 around it (Eqs. 2 and 3); takes the place of a 3x3 convolution.

    (B, inputs, H, W) -> (B, outputs, ceil(H / stride), ceil(W / stride)): stride 2 is a 2x2 average pool after the
    attention (Sec. 3.1). Queries, keys and values are 1x1 transforms of all channels, without bias: in the text of Sec.
    2.2 a head transforms its own share of the channels alone, but then ResNet-50 would have 14.7M parameters; the
    published 18.0M, and that section's comparison with a 3x3 convolution, are those of whole transforms. As in Eq. 2,
    logits are not divided by the square root of the depth. The embedding r of an offset is half row and half column
    embedding (Eq. 3), its own for every head. It starts with standard deviation d^-1/2, d the channels of a head, and
    places beyond the map are not attended to: our choices, the paper has none and the authors published no code.
    Heads: 8, fewer where a head would have less than 8 channels, which no published network has.
    """

    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__()
        at_most = max(1, min(HEADS, outputs // NARROWEST))
        self.heads = next(n for n in range(at_most, 0, -1) if outputs % (2 * n) == 0)
        self.qkv = nn.Conv2d(inputs, 3 * outputs, 1, bias=False)
        self.rows = nn.Parameter(torch.empty(self.heads, EXTENT, outputs // self.heads // 2))
        self.columns = nn.Parameter(torch.empty(self.heads, EXTENT, outputs // self.heads // 2))
        self.pool = nn.AvgPool2d(2, ceil_mode=True) if stride == 2 else nn.Identity()
        self.reset_parameters()

    def reset_parameters(self) -> None:
        for table in (self.rows, self.columns):
            nn.init.normal_(table, std=(2 * table.shape[2]) ** -0.5)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).chunk(3, dim=1)
        return self.pool(local_attention(q, k, v, self.rows, self.columns))


@fx.wrap
def local_attention(q: Tensor, k: Tensor, v: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Eq. 3 for all heads. q, k, v (B, C, H, W), rows and columns (heads, 7, C / heads / 2): the embeddings of the
    offsets -3..3 -> (B, C, H, W).

    Queries are taken in blocks of 4x4, whose neighbourhoods lie in one window of 10x10 (Vaswani et al. 2021, HaloNet,
    has this way of computing it). So 6.25 copies of keys and values exist and not 49; twice the logits are computed.
    """
    height, width = q.shape[2:]
    side = BLOCK + EXTENT - 1
    down, across = (height + BLOCK - 1) // BLOCK, (width + BLOCK - 1) // BLOCK
    margin = EXTENT // 2
    spare = (down * BLOCK - height, across * BLOCK - width)
    q = F.pad(q, (0, spare[1], 0, spare[0])).unflatten(3, (across, BLOCK)).unflatten(2, (down, BLOCK))
    q = q.unflatten(1, (len(rows), -1)).permute(0, 1, 3, 5, 4, 6, 2)  # (B, heads, down, across, BLOCK, BLOCK, d)
    around = (margin, margin + spare[1], margin, margin + spare[0])
    windows = (F.pad(t, around).unfold(2, side, BLOCK).unfold(3, side, BLOCK) for t in (k, v))
    # (B, heads, down, across, d, cells of a window)
    k, v = (t.unflatten(1, (len(rows), -1)).movedim(2, 4).flatten(5) for t in windows)
    offset = torch.arange(side, device=q.device) - torch.arange(BLOCK, device=q.device).unsqueeze(1)  # by [query, key]
    table = offset.clamp(0, EXTENT - 1)
    by_row, by_column = q.chunk(2, dim=-1)
    vertical = torch.einsum("bhmnyxd,hyjd->bhmnyxj", by_row, rows[:, table])
    horizontal = torch.einsum("bhmnyxd,hxjd->bhmnyxj", by_column, columns[:, table])
    unseen = float("-inf")
    vertical = vertical.masked_fill(_unseen(offset, height)[:, None, :, None], unseen)
    horizontal = horizontal.masked_fill(_unseen(offset, width)[:, None], unseen)
    logits = (q.flatten(4, 5) @ k).view(*q.shape[:-1], side, side) + vertical.unsqueeze(-1)
    logits += horizontal.unsqueeze(-2)
    out = v @ logits.flatten(6).flatten(4, 5).softmax(-1).mT  # (B, heads, down, across, d, queries of a block)
    out = out.unflatten(5, (BLOCK, BLOCK)).permute(0, 1, 4, 2, 5, 3, 6)
    return out.reshape(q.shape[0], -1, down * BLOCK, across * BLOCK)[:, :, :height, :width]


class AttentionAugmented:
    """Augments one 3x3 of every residual block in the last three stages (Bello et al., Sec. 4.2): the only one of a
    bottleneck and the first of a basic block; in the stage of stride 8 the attention reads maps halved once more.

    Checked by the published parameters (in brackets ours): AA-ResNet-50 25.8M (25.78M), AA-ResNet-101 45.4M (45.35M),
    AA-ResNet-34 20.7M (20.75M), AA-ResNet-50 with kappa = upsilon = 0.25, 0.5, 0.75: 24.3M, 22.3M, 20.7M (24.30M,
    22.34M, 20.74M); and GFLOPs, 2 a multiply-add: AA-ResNet-50 8.3 for ResNet-50's 8.2 (8.36 for 8.18, products of
    attention included; 9.4 without the halving), AA-ResNet-34 7.1 (7.19). TDAF's Table 3b has +1.3% for it, which is
    8.3 by 8.2; 8.36 by 8.18 is +2.2%. Other ResNets by the same rule.

    Args:
        keys, values: kappa and upsilon in bottlenecks; basic blocks have 0.25 and 0.25, as published.
    """

    # stage 2 to 4 of 224-pixel images: how often the attention's input is halved, and the side of the map it then reads
    STAGES = {2: (1, 14), 3: (0, 14), 4: (0, 7)}
    BASIC = (0.25, 0.25)

    def __init__(self, keys: float = 0.2, values: float = 0.1) -> None:
        self.bottleneck = (keys, values)

    def place(self, staged: Staged) -> None:
        for number, (halved, side) in self.STAGES.items():
            for block in residual_layer(staged, number, self):
                name, ratios = ("conv2", self.bottleneck) if hasattr(block, "conv3") else ("conv1", self.BASIC)
                plain = _plain(getattr(block, name), "attention augmented convolution")
                setattr(block, name, AugmentedConv2d(plain, *ratios, halved, side))


class StandAloneAttention:
    """Local attention in the place of every 3x3 of the residual blocks (Ramachandran et al., Sec. 3.1); the stem stays.

    This is "conv-stem + attention" in the paper's Table 1: 18.0M parameters and 7.0 GFLOPs (2 a multiply-add) for
    ResNet-50's 25.6M and 8.2. Here 18.0M and 7.3 for 8.18: windows have 100 logits a query where the definition has
    49, with which it would be 7.0. The paper's attention stem (18.0M, 7.2 GFLOPs) replaces the 7x7 stem; it is not
    here, as the paper does not say how many value transforms it mixes. TDAF's Table 3b prints +34.5% GFLOPs, of which
    the publication, with 12% to 15% less, has no trace.
    The published networks have bottlenecks; in basic blocks both 3x3 are replaced, by the same rule.
    """

    def place(self, staged: Staged) -> None:
        for number in range(1, len(staged.stages) + 1):
            for block in residual_layer(staged, number, self):
                for name in ("conv2",) if hasattr(block, "conv3") else ("conv1", "conv2"):
                    plain = _plain(getattr(block, name), "stand-alone self-attention")
                    setattr(block, name, LocalAttention2d(plain.in_channels, plain.out_channels, plain.stride[0]))


def _plain(conv: nn.Conv2d, mechanism: str) -> nn.Conv2d:
    if conv.groups > 1:
        # heads over grouped channels are nowhere defined
        raise UserError(f"attention: {mechanism} replaces plain convolutions, not ResNeXt's (groups={conv.groups})")
    return conv


def _distances(size: int, table: Tensor) -> Tensor:
    """(size, size): where in `table` the embedding of key j for query i is, by [i, j]."""
    farthest = len(table) // 2
    at = torch.arange(size, device=table.device)
    return (at - at.unsqueeze(1)).clamp(-farthest, farthest) + farthest


def _unseen(offset: Tensor, size: int) -> Tensor:
    """(blocks, BLOCK, side): on an axis of `size` places, whether a key is beyond a query's neighbourhood or the map.

    `offset` (BLOCK, side) counts from the first key of the query's neighbourhood.
    """
    first = torch.arange(-(EXTENT // 2), size - EXTENT // 2, BLOCK, device=offset.device)
    at = first.unsqueeze(1) + torch.arange(offset.shape[1], device=offset.device)
    return ((at < 0) | (at >= size)).unsqueeze(1) | (offset < 0) | (offset >= EXTENT)
