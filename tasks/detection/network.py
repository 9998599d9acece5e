"""FCOS: pixels to classes, boxes and centre-ness on five levels."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from tasks.detection.fpn import LATERAL, Pyramid, level_strides
from tasks.detection.head import Head
from tasks.detection.line import Line
from tdaf.model.staged import Staged


class FcosNetwork(nn.Module):
    """Normalise, body, neck (the pyramid), head: (B, 3, H, W) -> the outputs of `Head`, for any H and W.

    Keys of the state dict: `body.stages...` (followed by torchvision's own), `neck...` and `head...`.
    Raises UserError for a body that gives no three last maps of halving size.
    """

    def __init__(
        self, body: Staged, classes: int, line: Line, normalise: nn.Module, channels: int = 256, convs: int = 4
    ) -> None:
        super().__init__()
        strides = level_strides(body)
        self.normalise, self.body = normalise, body
        self.neck = Pyramid(body.widths[-LATERAL:], channels)
        self.head = Head(classes, strides, line, channels, convs)

    def forward(self, x: Tensor) -> dict[str, Any]:
        return self.head(self.neck(self.body(self.normalise(x))[-LATERAL:]))
