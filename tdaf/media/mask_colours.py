"""The colours of mask values, and the scale that says what they stand for."""

from __future__ import annotations

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

# from 0 to 1: black, violet, red, yellow, rising evenly in lightness, so that they are told apart without seeing hues
# (matplotlib's "inferno" by Smith and van der Walt, CC0, at every sixteenth)
_ANCHORS = (
    (0, 0, 4), (11, 7, 36), (33, 12, 74), (61, 9, 101), (87, 16, 110), (113, 25, 110), (138, 34, 106), (163, 44, 97),
    (188, 55, 84), (208, 69, 69), (227, 89, 51), (241, 113, 31), (249, 140, 10), (252, 170, 15), (249, 201, 50),
    (242, 232, 101), (252, 255, 164),
)  # fmt: skip


def coloured(values: Tensor) -> Tensor:
    """values (h, w), of which 0 and below is black and 1 and above pale yellow -> uint8 RGB (3, h, w)."""
    anchors = torch.tensor(_ANCHORS, dtype=torch.float32)
    places = values.detach().float().cpu().nan_to_num().clamp(0, 1) * (len(anchors) - 1)
    below = places.long().clamp(max=len(anchors) - 2)
    rgb = torch.lerp(anchors[below], anchors[below + 1], (places - below)[..., None])
    return rgb.round().to(torch.uint8).permute(2, 0, 1)


def scale_bar(width: int, size: int, rows: list[tuple[str, list[str]]]) -> Image.Image:
    """The colours from left to right, and below them `rows` of a name and of texts evenly over the scale, from its
    first to its last colour. width: of the picture; size: of the letters. Both in pixels."""
    font = ImageFont.load_default(size)
    left = round(max(font.getlength(name) for name, _ in rows)) + size
    right = width - round(max(font.getlength(texts[-1]) for _, texts in rows) / 2) - size // 2
    left = min(left + round(max(font.getlength(texts[0]) for _, texts in rows) / 2), right - 2)
    image = Image.new("RGB", (width, size + 6 + len(rows) * (size + 5)), "white")
    strip = coloured(torch.linspace(0, 1, right - left).expand(size, -1)).permute(1, 2, 0).contiguous()
    image.paste(Image.fromarray(strip.numpy()), (left, 0))
    draw = ImageDraw.Draw(image)
    for row, (name, texts) in enumerate(rows):
        y = size + 6 + row * (size + 5)
        draw.text((0, y), name, fill="black", font=font, anchor="lt")
        for place, text in enumerate(texts):
            x = left + (right - 1 - left) * place / max(1, len(texts) - 1)
            draw.line((x, size, x, size + 3), fill="black")
            draw.text((x, y), text, fill="black", font=font, anchor="mt")
    return image
