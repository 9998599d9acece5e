"""Key points as heat maps and back, on whatever device the maps are (microsoft/human-pose-estimation.pytorch,
lib/dataset/JointsDataset.py generate_target, lib/core/inference.py, lib/core/function.py validate).

Heat-map coordinates are the input's divided by the stride, and whole numbers are the centres of its pixels, so a map of
w columns covers the input from -stride / 2 to (w - 1/2) stride.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from tasks.pose.crop import mirrored

REACH = 3  # deviations at which a Gaussian is cut off


def encode(
    points: Tensor, visible: Tensor, size: Sequence[int], stride: int = 4, sigma: float = 2.0
) -> tuple[Tensor, Tensor]:
    """points (B, J, 2), x y in pixels of the input, visible (B, J) -> targets (B, J, *size) and weights (B, J).

    A Gaussian with deviation `sigma` and height 1 around the pixel int(x / stride + 1/2), cut off at 3 sigma. Where
    visible is not above 0 the map and the weight are 0, and so they are where nothing of the Gaussian lies in the map.
    Nothing here waits for the device: the loader sends 3 J numbers a person instead of J maps.
    """
    reach = int(REACH * sigma)
    centre = (points.float() / stride + 0.5).trunc()
    (x, y), (height, width) = centre.unbind(-1), size
    # The publication counts a Gaussian that ends right before the first pixel as one that reaches the map.
    begun, ended = (x < width + reach) & (y < height + reach), centre.amin(-1) < -reach - 1
    weights = (visible > 0) & begun & ~ended
    down = _profile(y, height, sigma, reach) * weights[..., None]
    return down[..., :, None] * _profile(x, width, sigma, reach)[..., None, :], weights.to(down.dtype)


def _profile(centre: Tensor, length: int, sigma: float, reach: int) -> Tensor:
    distance = torch.arange(length, device=centre.device, dtype=centre.dtype) - centre[..., None]
    return torch.exp(-distance.square() / (2 * sigma**2)) * (distance.abs() <= reach)


def decode(maps: Tensor) -> tuple[Tensor, Tensor]:
    """maps (B, J, h, w) -> points (B, J, 2), x y in pixels of the heat map, and scores (B, J), the highest values.

    The highest pixel, moved by a quarter of a pixel towards the higher one of its two neighbours, on either axis, where
    it is at least two pixels away from the map's border. (0, 0) where no value is above 0.
    """
    height, width = maps.shape[-2:]
    flat = maps.flatten(2)
    scores, place = flat.max(-1)
    x, y = place % width, place // width
    inner = (x > 1) & (x < width - 1) & (y > 1) & (y < height - 1)

    def slope(step: int) -> Tensor:
        around = [flat.gather(2, (place + s).clamp(0, height * width - 1)[..., None])[..., 0] for s in (step, -step)]
        return torch.sign(around[0] - around[1]) * inner

    points = torch.stack([x + 0.25 * slope(1), y + 0.25 * slope(width)], -1)
    return points * (scores > 0)[..., None], scores


def flip_merged(maps: Tensor, pairs: Sequence[tuple[int, int]], shift: bool = True) -> Tensor:
    """The flip test: maps (B, 2, J, h, w) of each input and of its mirror image -> their mean (B, J, h, w).

    The mirrored maps are turned back and, with `shift`, moved one pixel to the right: pixels of a heat map lie on every
    stride-th pixel of the input counted from the left, in a mirrored input counted from the right.
    """
    return (maps[:, 0] + flipped(maps[:, 1], pairs, shift)) / 2


def flipped(maps: Tensor, pairs: Sequence[tuple[int, int]], shift: bool = False) -> Tensor:
    """Heat maps (B, J, h, w) of the mirrored person. shift: moved one pixel to the right, the first column kept."""
    maps = maps[:, mirrored(maps.shape[1], pairs)].flip(-1)
    if shift:
        maps[..., 1:] = maps[..., :-1].clone()
    return maps
