"""SimplePose (Xiao et al. 2018): deconvolutions on top of any backbone, one heat map a key point, its targets and loss,
and key points from heat maps. Follows microsoft/human-pose-estimation.pytorch (lib/models/pose_resnet.py,
lib/dataset/JointsDataset.py, lib/core/loss.py, inference.py and function.py).

Heat-map coordinates are the input's divided by the stride, and whole numbers are the centres of its pixels, so a map of
w columns covers the input from -stride / 2 to (w - 1/2) stride.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from tdaf.errors import UserError
from tdaf.model.staged import Staged

FIRST_WEIGHTS = 0.001  # their deviation
CUT_OFF = 3  # deviations at which a Gaussian of a target ends


class PoseNetwork(nn.Module):
    """Normalise, body, 1x1 convolution: (B, 3, H, W) -> heat maps (B, J, H / stride, W / stride), one a key point;
    (B, V, 3, H, W), V views a sample -> (B, V, J, H / stride, W / stride).

    Keys of the state dict: `body.stages...`, `head...`.

    Args:
        body: ends in deconvolutions (see `deconvolved`), with TDAF around all of it or not. H and W are to be multiples
            of the backbone's last stride, else the maps are larger than said.
        key_points: J.
        normalise: from bytes to floats.
    """

    def __init__(self, body: Staged, key_points: int, normalise: nn.Module) -> None:
        super().__init__()
        self.normalise, self.body = normalise, body
        self.head = nn.Conv2d(body.widths[-1], key_points, 1)
        nn.init.normal_(self.head.weight, 0, FIRST_WEIGHTS)
        nn.init.zeros_(self.head.bias)

    @property
    def stride(self) -> int:
        """Pixels of the input to one of a heat map."""
        return self.body.strides[-1]

    def forward(self, x: Tensor) -> Tensor:
        views = x.shape[:-3]
        maps = self.head(self.body(self.normalise(x.flatten(0, len(views) - 1)))[-1])
        return maps.unflatten(0, views)


class KeyPoints(nn.Module):
    """The network with `decode`, as one file for others. Protocol: `PredictionTask.deployed` in tdaf/task.py."""

    dynamic, raw = False, "heatmaps"

    def __init__(self, network: PoseNetwork) -> None:
        super().__init__()
        self.network = network

    def forward(self, input: Tensor) -> dict[str, Tensor]:
        """uint8 RGB (B, 3, H, W), a person each -> "keypoints" (B, J, 3), x and y in pixels of the input and score, and
        "heatmaps" (B, J, H / stride, W / stride)."""
        maps = self.network(input)
        return {"keypoints": self._keypoints(maps), "heatmaps": maps}

    def _keypoints(self, maps: Tensor) -> Tensor:
        points, scores = decode(maps)
        return torch.cat([points * self.network.stride, scores[..., None]], -1)

    def differences(self, expected: dict[str, Tensor], found: dict[str, Tensor]) -> dict[str, float]:
        """Key points are held against those of the file's own heat maps: of two places that are equally likely either
        may be the highest, which is no difference."""
        apart = {"heatmaps": expected["heatmaps"] - found["heatmaps"]}
        apart["keypoints"] = self._keypoints(found["heatmaps"]) - found["keypoints"]
        return {
            name: (values.abs().max() / max(1, expected[name].abs().max())).item() for name, values in apart.items()
        }


def deconvolved(backbone: Staged, widths: list[int]) -> Staged:
    """The backbone followed by a stage for each of `widths`: a 4x4 deconvolution which doubles the size, batch norm,
    ReLU.

    Weights start from N(0, 0.001) as published, not from what the paper has for new layers (its Sec. 4.3 keeps the
    training of its baseline).

    Raises:
        UserError: widths that are none, or more than the backbone's stride can be halved.
    """
    if not widths or any(isinstance(w, bool) or not isinstance(w, int) or w < 1 for w in widths):
        raise UserError(f"deconvolutions={widths}: give the channels of each deconvolution, as [256,256,256]")
    if backbone.dims != 2:
        raise UserError("dims=3: key points are found in images; use dims=2")
    stride = backbone.strides[-1]
    most = (stride & -stride).bit_length() - 1  # how often it halves to a whole one
    if len(widths) > most:
        raise UserError(
            f"deconvolutions={widths}: each doubles the size of the map, so after this backbone, of stride {stride}, "
            f"there can be {most}"
        )
    stages = [_deconvolution(a, b) for a, b in zip([backbone.widths[-1], *widths], widths, strict=False)]
    return backbone.append(stages, widths, [stride >> k for k in range(1, len(widths) + 1)])


def _deconvolution(channels: int, width: int) -> nn.Sequential:
    deconv = nn.ConvTranspose2d(channels, width, 4, stride=2, padding=1, bias=False)
    nn.init.normal_(deconv.weight, 0, FIRST_WEIGHTS)
    return nn.Sequential(OrderedDict(deconv=deconv, norm=nn.BatchNorm2d(width), relu=nn.ReLU(inplace=True)))


def heatmap_loss(maps: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
    """Half the squared error, the mean over persons, key points and pixels; weights multiply error, not square.

    maps, targets (B, J, h, w), weights (B, J) -> a scalar in float32. Key points of weight 0 count in the mean, as in
    JointsMSELoss with target weights.
    """
    error = (maps.float() - targets) * weights[..., None, None]
    return error.square().mean() / 2


def encode(
    points: Tensor, visible: Tensor, size: Sequence[int], stride: int = 4, sigma: float = 2.0
) -> tuple[Tensor, Tensor]:
    """points (B, J, 2), x y in pixels of the input, visible (B, J) -> targets (B, J, *size) and weights (B, J).

    A Gaussian with deviation `sigma` and height 1 around the pixel int(x / stride + 1/2), cut off at 3 sigma. Where
    visible is not above 0 the map and the weight are 0, and so they are where nothing of the Gaussian lies in the map.
    Nothing here waits for the device: the loader sends 3 J numbers a person instead of J maps.
    """
    radius = int(CUT_OFF * sigma)
    centre = (points.float() / stride + 0.5).trunc()
    (x, y), (height, width) = centre.unbind(-1), size
    # The publication counts a Gaussian that ends right before the first pixel as one that reaches the map.
    begun, ended = (x < width + radius) & (y < height + radius), centre.amin(-1) < -radius - 1
    weights = (visible > 0) & begun & ~ended
    down = _profile(y, height, sigma, radius) * weights[..., None]
    return down[..., :, None] * _profile(x, width, sigma, radius)[..., None, :], weights.to(down.dtype)


def _profile(centre: Tensor, length: int, sigma: float, radius: int) -> Tensor:
    distance = torch.arange(length, device=centre.device, dtype=centre.dtype) - centre[..., None]
    return torch.exp(-distance.square() / (2 * sigma**2)) * (distance.abs() <= radius)


def decode(maps: Tensor) -> tuple[Tensor, Tensor]:
    """maps (B, J, h, w) -> points (B, J, 2), x y in pixels of the heat map, and scores (B, J), the highest values.

    The highest pixel, moved by a quarter of a pixel towards the higher one of its two neighbours, on either axis, where
    it is at least two pixels away from the map's border. (0, 0) where no value is above 0.
    """
    height, width = maps.shape[-2:]
    flat = maps.flatten(2)
    scores, index = flat.max(-1)
    x, y = index % width, index // width
    inner = (x > 1) & (x < width - 1) & (y > 1) & (y < height - 1)

    def slope(step: int) -> Tensor:
        around = [flat.gather(2, (index + s).clamp(0, height * width - 1)[..., None])[..., 0] for s in (step, -step)]
        return torch.sign(around[0] - around[1]) * inner

    points = torch.stack([x + 0.25 * slope(1), y + 0.25 * slope(width)], -1)
    return points * (scores > 0)[..., None], scores


def mirrored(key_points: int, pairs: Sequence[tuple[int, int]]) -> list[int]:
    """Where each key point of a mirrored person was before: `points[..., mirrored(J, pairs), :]`. pairs: left and right
    of the same part; what is in no pair stays."""
    order = list(range(key_points))
    for left, right in pairs:
        order[left], order[right] = right, left
    return order


def flip_merged(maps: Tensor, pairs: Sequence[tuple[int, int]]) -> Tensor:
    """The flip test: maps (B, 2, J, h, w) of each input and of its mirror image -> their mean (B, J, h, w); maps (B, J,
    h, w) stay as they are.

    The mirrored maps are turned back and moved one pixel to the right, the first column kept: pixels of a heat map lie
    on every stride-th pixel of the input counted from the left, in a mirrored input counted from the right.
    """
    if maps.ndim == 4:
        return maps
    order = mirrored(maps.shape[2], pairs)  # not as an index, which the device would have to be sent
    turned = torch.stack([maps[:, 1, key_point] for key_point in order], 1).flip(-1)
    turned[..., 1:] = turned[..., :-1].clone()
    return (maps[:, 0] + turned) / 2
