"""One image file to pixels, several times faster than PIL and with PIL's pixels."""

from __future__ import annotations

import io
from os import PathLike

import numpy as np
import torch
import torchvision.io
from PIL import Image
from torch import Tensor

from tdaf.errors import UnreadableSample
from tdaf.media import archive


def read_image(path: str | PathLike[str]) -> Tensor:
    """The image as uint8 RGB (3, H, W), pixel for pixel what PIL's `Image.open(path).convert("RGB")` gives, whatever
    the file's name says about its format. The memory behind it is (H, W, 3), as decoders write it.

    EXIF rotation is not applied: torchvision's ImageFolder, with which the published networks were trained, does not.
    The path may lead through an archive (tdaf/media/archive.py). Raises UnreadableSample for a missing, empty,
    truncated or damaged file and for one that is no image.
    """
    try:
        data = archive.read(path)
    except OSError as error:
        raise UnreadableSample(f"{error.strerror or error} ({path})") from error
    if data.size == 0:
        raise UnreadableSample(f"the file is empty ({path})")
    image = _decode(torch.from_numpy(data))
    return _pil_decode(data, path) if image is None else image


def _decode(data: Tensor) -> Tensor | None:
    """None for what is left to PIL: formats unknown to torchvision, 16 bits a channel, more than one frame, damage."""
    try:
        image = torchvision.io.decode_image(data, torchvision.io.ImageReadMode.RGB)
    # AttributeError: torchvision has announced that a later release will leave its decoders out.
    except (RuntimeError, AttributeError):
        return None
    return image if image.dtype == torch.uint8 and image.ndim == 3 else None


def _pil_decode(data: np.ndarray, path: str | PathLike[str]) -> Tensor:
    try:
        with Image.open(io.BytesIO(data.tobytes())) as image:
            pixels = np.array(image.convert("RGB"))
    except Image.UnidentifiedImageError as error:
        raise UnreadableSample(f"not an image ({path})") from error
    # PIL's plug-ins let many kinds of exception out of a damaged file (OSError, SyntaxError, ValueError, struct.error).
    except Exception as error:
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise UnreadableSample(f"{reason} ({path})") from error
    return torch.from_numpy(pixels).permute(2, 0, 1)
