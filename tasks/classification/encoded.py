"""Training images that come to the device as JPEGs, and are decoded, cut out and mirrored there (data.decode=gpu)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.io import ImageReadMode, decode_jpeg

from tasks.classification.transforms import Box, Cropped, Mixing
from tdaf.errors import RunError, UserError


@dataclass(frozen=True)
class EncodedImages:
    """What a batch has as "input" until it is moved to its device.

    Args:
        content: the JPEGs, uint8, one after the other.
        lengths: bytes of each.
        boxes: what is cut out of each.
        mirrored: whether that is mirrored.
        size: pixels of the side that it is resized to.
    """

    content: Tensor
    lengths: list[int]
    boxes: list[Box]
    mirrored: list[bool]
    size: int

    @classmethod
    def of(cls, samples: Sequence[tuple[np.ndarray, Box, bool]], size: int) -> EncodedImages:
        files, boxes, mirrored = zip(*samples, strict=True)
        content = torch.from_numpy(np.concatenate(files))
        return cls(content, [file.size for file in files], list(boxes), list(mirrored), size)

    def __len__(self) -> int:
        return len(self.lengths)

    def __iter__(self) -> Iterator[Tensor]:
        return iter(self.to("cpu"))

    def to(self, device: torch.device | str, **_: Any) -> Tensor:
        """uint8 (B, 3, size, size) there, resized as in a worker, antialiased bilinear. On a GPU nvJPEG decodes, whose
        pixels are a little different. Raises RunError for a file that it cannot decode, or where it is missing."""
        device, files = torch.device(device), list(self.content.split(self.lengths))
        try:
            images = decode_jpeg(files, ImageReadMode.RGB, device=device)
        except RuntimeError as error:
            said = str(error).partition("\n")[0]
            raise RunError(f"data.decode=gpu: {said}; scan=strict of scripts/check_data.py finds damage") from error
        return torch.stack([self._input(*each) for each in zip(images, self.boxes, self.mirrored, strict=True)])

    def _input(self, image: Tensor, box: Box, mirrored: bool) -> Tensor:
        top, left, height, width = box
        pixels = image[None, :, top : top + height, left : left + width].float()
        pixels = F.interpolate(pixels, (self.size, self.size), mode="bilinear", antialias=True)[0]
        return (pixels.flip(-1) if mirrored else pixels).round().clamp(0, 255).byte()


def check_decodes_on_gpu(transform: Any, mixing: Mixing) -> None:
    """Raises UserError where nothing decodes on a GPU, and for what is done with pixels before they are there."""
    if not torch.cuda.is_available():
        raise UserError("data.decode=gpu: torch sees no GPU here; give data.decode=cpu")
    if not isinstance(transform, Cropped) or len(transform.then) > 1 or mixing.mixup or mixing.cutmix:
        more = "lighting, randaugment, erasing, mixup and cutmix work on the pixels in loader workers"
        raise UserError(f"data.decode=gpu is for ImageNet's crops and mirroring alone: {more}; give data.decode=cpu")
