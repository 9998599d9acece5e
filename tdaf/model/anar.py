"""ANAR, the attention network across recurrence (paper, Sec. 3.2, Table 1): a flow's map -> the next one's mask."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tdaf.errors import UserError
from tdaf.model.staged import initialise

LAYERS = (2, 3, 5, 7)
INIT = ("kaiming", "identity")
UPSAMPLE = ("deconv", "resize")
MASK = ("one", "channel")


class ANAR(nn.Module):
    """g_l: a map (B, A, *size) -> a mask (B, 1, *any size that is asked for) in [0, 1].

    Every convolution and deconvolution but the last: no bias, batch norm, ReLU. The last: 1x1, bias, sigmoid.

    The paper's are the defaults. Designs that are not the paper's, one switch each:

        upsample="resize"   u = W * R2(x) where the paper has u = D x: R2 is linear interpolation to twice the size, W a
                            3x3 convolution, D the 4x4 deconvolution of stride 2, whose four phases of a pixel start
                            differently and lay a checkerboard over the mask.
        mask="channel"      g_l(x) is (B, A, *size), so that h_l * (g_l + eta) gates each channel by a mask of its own.
        learn_eta           h_l * (g_l + sigmoid(e_l)), a number e_l each stage, begun so that sigmoid(e_l) = eta.

    Args:
        channels: A, of the map.
        layers: 2, 3, 5 or 7 (Table 1; 2 up-samples without parameters).
        width: c of Table 1, a multiple of 32; None is its literal reading, c = A.
        dims: 2, or 3 with time as one more axis of every kernel.
        depthwise: each kernel larger than one pixel becomes a depthwise one and a 1x1 (for MobileNet, Sec. 4.1).
        init: "kaiming" (He et al. 2015, as the paper), or "identity": every mask starts as 1 - eta, so gate + eta = 1
            and a pretrained network starts as itself.
        eta: of Eq. 5; for init="identity" and learn_eta alone.
        upsample: "deconv" (Table 1), or "resize". (2 layers up-sample without parameters, whatever it is.)
        mask: "one" for all channels (Table 1), or "channel".
        learn_eta: whether eta is learnt, for each stage its own.

    Raises:
        UserError: a setting out of range.
    """

    def __init__(
        self,
        channels: int,
        layers: int = 3,
        width: int | None = 512,
        dims: int = 2,
        depthwise: bool = False,
        init: str = "kaiming",
        eta: float = 0.5,
        upsample: str = "deconv",
        mask: str = "one",
        learn_eta: bool = False,
    ) -> None:
        super().__init__()
        check_anar(layers, init, eta, upsample, mask, learn_eta)
        _check_width(channels, width)
        c = channels if width is None else width
        self.dims = dims
        trans = c // 4 if layers >= 5 else c // 8
        self.trans = _layer(channels, trans, 1, dims)
        downs, joins, last = {
            2: ([], [], trans),
            3: ([], [], c // 32),
            5: ([c // 8], [c // 16], c // 32),
            7: ([c // 8, c // 8], [c // 16, c // 16], c // 32),
        }[layers]
        widths = [trans, *downs]
        self.down = nn.ModuleList(_layer(a, b, 3, dims, depthwise) for a, b in zip(widths, downs, strict=False))
        sources = [widths[-1], *joins]
        kernel = 4 if upsample == "deconv" else 0
        self.up = nn.ModuleList(
            _layer(a, b, kernel, dims, depthwise, relu=False) for a, b in zip(sources, joins, strict=False)
        )
        self.skip = nn.ModuleList(_layer(a, b, 1, dims, relu=False) for a, b in zip(widths[-2::-1], joins, strict=True))
        self.last = _layer(sources[-1], last, kernel, dims, depthwise) if layers > 2 else None
        self.mask = _conv(dims)(last, 1 if mask == "one" else channels, 1)
        self.logit = nn.Parameter(torch.tensor(math.log(eta / (1 - eta)))) if learn_eta else None
        initialise(self)
        if init == "identity":
            nn.init.zeros_(self.mask.weight)
            nn.init.constant_(self.mask.bias, math.log((1 - eta) / eta))
        else:
            # fan_out is 1 here: it would start the logits at a deviation of 4 to 8, where the sigmoid is flat.
            nn.init.kaiming_normal_(self.mask.weight, mode="fan_in", nonlinearity="relu")

    def forward(self, x: Tensor, size: Sequence[int]) -> Tensor:
        """x (B, A, *any) -> (B, 1, *size)."""
        x = self.trans(x)
        skips = []
        for down in self.down:
            skips.append(x)
            x = down(x)
        for up, skip in zip(self.up, self.skip, strict=True):
            above = skips.pop()
            x = F.relu(_resize(up(x), above.shape[2:]) + skip(above), inplace=True)
        if self.last is None:
            # Linear interpolation and a 1x1 convolution commute; convolving first leaves one channel to interpolate.
            mask = self.mask(x)
            mask = _resize(mask, [2 * s for s in mask.shape[2:]])
        else:
            mask = self.mask(self.last(x))
        return _resize(torch.sigmoid(mask), size)

    def shortcut(self, eta: float) -> float | Tensor:
        """What is added to the mask: the number given, or the learnt one in its place."""
        return eta if self.logit is None else torch.sigmoid(self.logit)


def check_anar(
    layers: int, init: str, eta: float, upsample: str = "deconv", mask: str = "one", learn_eta: bool = False
) -> None:
    """Raises UserError for settings of ANAR that are wrong whatever the stage."""
    if isinstance(layers, bool) or layers not in LAYERS:
        raise UserError(f"anar={layers}: must be one of {', '.join(map(str, LAYERS))}")
    if isinstance(eta, bool) or not isinstance(eta, (int, float)) or not 0 <= eta <= 1:
        raise UserError(f"eta={eta}: must be between 0 and 1")
    for name, value, known in (("gate_init", init, INIT), ("upsample", upsample, UPSAMPLE), ("mask", mask, MASK)):
        if value not in known:
            raise UserError(f"{name}={value}: must be one of {', '.join(known)}")
    if learn_eta and not 0 < eta < 1:
        raise UserError(f"learn_eta=true learns a number between 0 and 1, so it needs 0 < eta < 1; eta is {eta}")
    if init == "identity" and not 0 < eta < 1:
        raise UserError(f"gate_init=identity starts every mask at 1 - eta, so it needs 0 < eta < 1; eta is {eta}")


def _check_width(channels: int, width: int | None) -> None:
    if width is None and channels % 32:
        raise UserError(
            f"anar_width=null: a stage has {channels} channels, which is no multiple of 32; give anar_width a number"
        )
    if width is not None and (isinstance(width, bool) or not isinstance(width, int) or width < 32 or width % 32):
        raise UserError(f"anar_width={width}: must be null or a positive multiple of 32")


def _conv(dims: int, transposed: bool = False) -> type[nn.Module]:
    if transposed:
        return nn.ConvTranspose2d if dims == 2 else nn.ConvTranspose3d
    return nn.Conv2d if dims == 2 else nn.Conv3d


def _layer(
    channels: int, width: int, kernel: int, dims: int, depthwise: bool = False, relu: bool = True, stride: int = 2
) -> nn.Sequential:
    """Kernel 1: a projection; 3: a convolution that halves the size (up); 4: a deconvolution that doubles it; 0: linear
    interpolation that doubles it, and a 3x3 convolution."""
    if kernel == 0:
        twice = nn.Upsample(scale_factor=2, mode="bilinear" if dims == 2 else "trilinear")
        return nn.Sequential(twice, *_layer(channels, width, 3, dims, depthwise, relu, stride=1))
    norm = nn.BatchNorm2d if dims == 2 else nn.BatchNorm3d
    space = {} if kernel == 1 else {"stride": stride, "padding": 1}
    conv = _conv(dims, transposed=kernel == 4)
    layers: list[nn.Module]
    if depthwise and kernel > 1:
        layers = [
            conv(channels, channels, kernel, groups=channels, bias=False, **space),
            norm(channels),
            nn.ReLU(inplace=True),
            _conv(dims)(channels, width, 1, bias=False),
        ]
    else:
        layers = [conv(channels, width, kernel, bias=False, **space)]
    layers.append(norm(width))
    if relu:
        layers.append(nn.ReLU(inplace=True))
    return nn.Sequential(*layers)


def _resize(x: Tensor, size: Sequence[int]) -> Tensor:
    # An exported graph serves sizes that are not known yet; resizing to the same size changes nothing.
    if not torch.compiler.is_exporting() and list(x.shape[2:]) == list(size):
        return x
    return F.interpolate(x, size=list(size), mode="bilinear" if x.dim() == 4 else "trilinear", align_corners=False)
