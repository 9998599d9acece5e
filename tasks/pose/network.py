"""SimplePose (Xiao et al. 2018): deconvolutions on top of any backbone, and one heat map a key point."""

from __future__ import annotations

from collections import OrderedDict

from torch import Tensor, nn

from tdaf.errors import UserError
from tdaf.model.staged import Staged

DEVIATION = 0.001  # of first weights (microsoft/human-pose-estimation.pytorch, lib/models/pose_resnet.py, init_weights)


class PoseNetwork(nn.Module):
    """Normalise, body, 1x1 convolution: (B, 3, H, W) -> heat maps (B, J, H / stride, W / stride), one a key point;
    (B, V, 3, H, W), V views a sample -> (B, V, J, H / stride, W / stride).

    `body` ends in deconvolutions (see `deconvolved`), with TDAF around all of it or not. H and W are to be multiples of
    the backbone's last stride, else the maps are larger than said. Keys of the state dict: `body.stages...`, `head...`.
    """

    def __init__(self, body: Staged, key_points: int, normalise: nn.Module) -> None:
        super().__init__()
        self.normalise, self.body = normalise, body
        self.head = nn.Conv2d(body.widths[-1], key_points, 1)
        nn.init.normal_(self.head.weight, 0, DEVIATION)
        nn.init.zeros_(self.head.bias)

    @property
    def stride(self) -> int:
        """Pixels of the input to one of a heat map."""
        return self.body.strides[-1]

    def forward(self, x: Tensor) -> Tensor:
        views = x.shape[:-3]
        maps = self.head(self.body(self.normalise(x.flatten(0, len(views) - 1)))[-1])
        return maps.unflatten(0, views)


def deconvolved(backbone: Staged, widths: list[int]) -> Staged:
    """The backbone followed by a stage for each of `widths`: a 4x4 deconvolution which doubles the size, batch norm,
    ReLU.

    Weights start from N(0, 0.001) as published, not from what the paper has for new layers (its Sec. 4.3 keeps the
    training of its baseline). Raises UserError for widths that are none and for a backbone that they do not fit.
    """
    if not widths or any(isinstance(w, bool) or not isinstance(w, int) or w < 1 for w in widths):
        raise UserError(f"task.deconvolutions={widths}: give the channels of each deconvolution, as [256,256,256]")
    if backbone.dims != 2:
        raise UserError("dims=3: key points are found in images; use dims=2")
    most = (backbone.strides[-1] & -backbone.strides[-1]).bit_length() - 1  # how often the stride halves to a whole one
    if len(widths) > most:
        raise UserError(
            f"task.deconvolutions={widths}: each doubles the size of the map, so after this backbone, of stride "
            f"{backbone.strides[-1]}, there can be {most}"
        )
    inputs = [backbone.widths[-1], *widths]
    strides = [backbone.strides[-1] >> k for k in range(1, len(widths) + 1)]
    return backbone.append([_deconvolution(a, b) for a, b in zip(inputs, widths)], widths, strides)


def _deconvolution(channels: int, width: int) -> nn.Sequential:
    deconv = nn.ConvTranspose2d(channels, width, 4, stride=2, padding=1, bias=False)
    nn.init.normal_(deconv.weight, 0, DEVIATION)
    layers = OrderedDict(deconv=deconv, norm=nn.BatchNorm2d(width), relu=nn.ReLU(inplace=True))
    return nn.Sequential(layers)
