"""Stand-alone self-attention (Ramachandran et al. 2019, arXiv 1906.05909); TDAF's Table 3b calls it SAST."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from tdaf.errors import UserError

HEADS = 8
EXTENT = 7  # k, the side of the neighbourhood
BLOCK = 4  # queries of 4x4 positions share one read of their 10x10 neighbourhoods; at most EXTENT // 2 + 1
NARROWEST = 8  # channels of a head: 64 / 8 in the first stage of the published networks


class LocalAttention(nn.Module):
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
    down, across = -(-height // BLOCK), -(-width // BLOCK)
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
    return out.reshape(len(q), -1, down * BLOCK, across * BLOCK)[:, :, :height, :width]


def attend(parts: Sequence[dict[str, nn.Module]]) -> None:
    """Puts local attention in the place of every 3x3 of the residual blocks (Sec. 3.1); the stem stays a convolution.

    This is "conv-stem + attention" in the paper's Table 1: 18.0M parameters and 7.0 GFLOPs (2 a multiply-add) for
    ResNet-50's 25.6M and 8.2. Here 18.0M and 7.3 for 8.18: windows have 100 logits a query where the definition has
    49, with which it would be 7.0. The paper's attention stem (18.0M, 7.2 GFLOPs) replaces the 7x7 stem; it is not
    here, as the paper does not say how many value transforms it mixes. TDAF's Table 3b prints +34.5% GFLOPs, of which
    the publication, with 12% to 15% less, has no trace.
    The published networks have bottlenecks; in basic blocks both 3x3 are replaced, by the same rule.
    Raises UserError for ResNeXt: local attention over grouped channels is not defined there.
    """
    for stage in parts:
        layer = next(module for name, module in stage.items() if name.startswith("layer"))
        for block in layer:
            for name in ("conv2",) if hasattr(block, "conv3") else ("conv1", "conv2"):
                plain = getattr(block, name)
                if plain.groups > 1:
                    raise UserError(
                        f"attention=sasa: defined for plain convolutions, not for ResNeXt (groups={plain.groups})"
                    )
                setattr(block, name, LocalAttention(plain.in_channels, plain.out_channels, plain.stride[0]))


def _unseen(offset: Tensor, size: int) -> Tensor:
    """(blocks, BLOCK, side): on an axis of `size` places, whether a key is beyond a query's neighbourhood or the map.

    `offset` (BLOCK, side) counts from the first key of the query's neighbourhood.
    """
    first = torch.arange(-(EXTENT // 2), size - EXTENT // 2, BLOCK, device=offset.device)
    at = first.unsqueeze(1) + torch.arange(offset.shape[1], device=offset.device)
    return ((at < 0) | (at >= size)).unsqueeze(1) | (offset < 0) | (offset >= EXTENT)
