"""The inputs of the flows (paper, Eq. 2): each flow reads half the size of what the next one reads."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from tdaf.errors import UserError

DOWNSAMPLE = ("area", "bilinear", "stride")


def check_downsample(downsample: str) -> str:
    """The setting itself. Raises UserError when it names no down-sampling."""
    if downsample not in DOWNSAMPLE:
        raise UserError(f"downsample={downsample}: must be one of {', '.join(DOWNSAMPLE)}")
    return downsample


def halve(x: Tensor, dims: int, downsample: str = "area") -> Tensor:
    """x (B, C, *size) -> (B, C, *ceil(size / 2)); all `dims` last axes are halved, time too in 3D.

    area: mean of cells of 2 pixels an axis; an odd last cell is the mean of what it has.
    bilinear: linear interpolation between pixel centres. stride: every second pixel, starting with the first.
    """
    if downsample == "stride":
        return x[..., ::2, ::2] if dims == 2 else x[..., ::2, ::2, ::2]
    if downsample == "area":
        pool = F.avg_pool2d if dims == 2 else F.avg_pool3d
        return pool(x, 2, stride=2, ceil_mode=True, count_include_pad=False)
    size = [(s + 1) // 2 for s in x.shape[2:]]
    return F.interpolate(x, size=size, mode="bilinear" if dims == 2 else "trilinear", align_corners=False)


def pyramid(x: Tensor, flows: int, dims: int, downsample: str = "area") -> list[Tensor]:
    """The inputs x_1 of flows 1..N, the smallest first; flow N reads x itself."""
    inputs = [x]
    for _ in range(flows - 1):
        inputs.append(halve(inputs[-1], dims, downsample))
    return inputs[::-1]
