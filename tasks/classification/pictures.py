"""Predictions drawn on their images."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

SMALLEST = 192  # pixels of the short side below which an image is enlarged, so that the text can be read


def labelled(image: Tensor, text: str) -> Tensor:
    """uint8 RGB (3, H, W) -> the same, enlarged where it is small, with `text` in white on a dark strip at its foot."""
    picture = Image.fromarray(image.permute(1, 2, 0).contiguous().numpy())
    factor = -(-SMALLEST // min(picture.size))
    if factor > 1:
        picture = picture.resize((picture.width * factor, picture.height * factor), Image.Resampling.NEAREST)
    size = max(14, picture.height // 16)
    font = ImageFont.load_default(size)
    text = _fitted(text, font, picture.width - size)
    draw = ImageDraw.Draw(picture, "RGBA")
    draw.rectangle((0, picture.height - 3 * size // 2, picture.width, picture.height), fill=(0, 0, 0, 190))
    draw.text((size // 2, picture.height - 3 * size // 4), text, fill="white", font=font, anchor="lm")
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1)


def _fitted(text: str, font: ImageFont.FreeTypeFont, width: int) -> str:
    """Cut in the middle of the name, so that the probability at its end stays."""
    while font.getlength(text) > width and len(text) > 12:
        middle = (len(text) - 5) // 2
        text = text[: middle - 2] + ".." + text[middle + 2 :]
    return text
