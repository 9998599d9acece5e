"""What is measured, on what."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Settings:
    """backbone, anar, flows: the network. batch: samples a call; size: of the square images, in pixels.

    pairs: timed rounds of each measurement, None for the measurement's own number. images: files that the loaders read.
    """

    backbone: str
    anar: int
    flows: int
    batch: int
    size: int
    device: torch.device
    pairs: int | None = None
    images: int = 160

    @property
    def gpu(self) -> bool:
        return self.device.type == "cuda"

    @property
    def of_the_bars(self) -> bool:
        """Whether the bars were set for this: ResNet-50, ANAR-3, three flows, 224 pixels, on a GPU 128 samples."""
        network = (self.backbone, self.anar, self.flows, self.size) == ("res50", 3, 3, 224)
        return network and self.batch >= (128 if self.gpu else 8)

    def rounds(self, own: int) -> int:
        return self.pairs or own
