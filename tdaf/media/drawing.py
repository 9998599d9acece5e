"""Predictions drawn on their pictures. Pictures are uint8 RGB (3, H, W); small ones come back enlarged by a whole
number, with what is drawn on them, so that lines and texts can be seen."""

from __future__ import annotations

import colorsys
from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from torch.nn import functional as F

SMALLEST = 192  # pixels of the short side below which a picture is enlarged
GOLDEN = 0.6180339887  # of a turn from hue to hue: however many colours are taken, their hues lie spread out

Colour = tuple[int, int, int]


def colour(place: int) -> Colour:
    """RGB colour number `place`, 0 or more: hues by the golden section, with three lightnesses in turn."""
    rgb = colorsys.hls_to_rgb(place * GOLDEN % 1, (0.5, 0.72, 0.34)[place % 3], 1.0)
    return tuple(round(255 * part) for part in rgb)


def labelled(image: Tensor, text: str) -> Tensor:
    """`text` in white on a dark strip at the picture's foot."""
    picture, _ = _canvas(image)
    size = max(14, picture.height // 16)
    font = ImageFont.load_default(size)
    text = _fitted(text, font, picture.width - size)
    draw = ImageDraw.Draw(picture, "RGBA")
    draw.rectangle((0, picture.height - 3 * size // 2, picture.width, picture.height), fill=(0, 0, 0, 190))
    draw.text((size // 2, picture.height - 3 * size // 4), text, fill="white", font=font, anchor="lm")
    return _tensor(picture)


def boxes(picture: Tensor, boxes: Tensor, texts: Sequence[str], colours: Sequence[Colour] | None = None) -> Tensor:
    """boxes: (K, 4) x1 y1 x2 y2 in pixels, 0 the left edge of the first. texts: one a box, "" for none. The first boxes
    lie above the later ones. Without `colours`, the palette in turn."""
    image, factor = _canvas(picture)
    draw, width = ImageDraw.Draw(image), _line(image)
    font = ImageFont.load_default(max(12, min(image.size) // 28))
    colours = [colour(place) for place in range(len(boxes))] if colours is None else colours
    edges = (boxes.detach().cpu().double() * factor).tolist()
    for (left, top, right, bottom), text, paint in reversed(list(zip(edges, texts, colours, strict=True))):
        left, right = (min(max(x, 0), image.width) for x in (left, right))
        top, bottom = (min(max(y, 0), image.height) for y in (top, bottom))
        if right - left < 1 or bottom - top < 1:
            continue  # outside the picture, or nothing to be seen of it
        draw.rectangle((left, top, right - 1, bottom - 1), outline=paint, width=width)
        if text:
            _label(draw, image, left, top, text, paint, font)
    return _tensor(image)


def skeletons(
    picture: Tensor,
    keypoints: Tensor,
    edges: Sequence[tuple[int, int]],
    colours: Sequence[Colour] | None = None,
    least: float = 0.0,
) -> Tensor:
    """keypoints: (P, J, 3) x, y (0: the centre of the first pixel) and score; drawn where the score is above `least`.
    edges: pairs of key points, 0-based, joined where both are drawn. A colour a person, the palette in turn."""
    image, factor = _canvas(picture)
    draw, width = ImageDraw.Draw(image), _line(image)
    radius = width + 1
    colours = [colour(place) for place in range(len(keypoints))] if colours is None else colours
    for person, paint in zip(keypoints.detach().cpu().double(), colours, strict=True):
        places = [tuple(xy) for xy in ((person[:, :2] + 0.5) * factor - 0.5).tolist()]
        seen = (person[:, 2] > least).tolist()
        for one, other in edges:
            if seen[one] and seen[other]:
                draw.line((places[one], places[other]), fill=paint, width=width)
        for (x, y), there in zip(places, seen, strict=True):
            if there:
                around = (x - radius, y - radius, x + radius, y + radius)
                draw.ellipse(around, fill=paint, outline=_contrast(paint))
    return _tensor(image)


def heat(picture: Tensor, maps: Tensor) -> Tensor:
    """maps: (h, w) or (J, h, w) over the whole picture, of which the largest value counts: 0 leaves the picture as it
    is, and from there it glows red, yellow and, at 1 and above, white."""
    image, _ = _canvas(picture)
    height, width = image.height, image.width
    values = maps.detach().float().cpu().reshape(-1, *maps.shape[-2:]).amax(0).nan_to_num().clamp(0, 1)
    values = F.interpolate(values[None, None], (height, width), mode="bilinear", align_corners=False)[0]
    glow = torch.cat([(3 * values - part).clamp(0, 1) for part in range(3)])
    blended = torch.lerp(_tensor(image).float(), 255 * glow, 0.85 * values)
    return blended.round().to(torch.uint8)


def _canvas(picture: Tensor) -> tuple[Image.Image, int]:
    """The picture to draw on, and how many times larger it is."""
    image = Image.fromarray(picture.permute(1, 2, 0).contiguous().numpy())
    factor = -(-SMALLEST // min(image.size))
    if factor > 1:
        image = image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST)
    return image, factor


def _tensor(image: Image.Image) -> Tensor:
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def _line(image: Image.Image) -> int:
    return max(2, round(min(image.size) / 150))


def _contrast(paint: Colour) -> Colour:
    """Black or white, whichever stands out more; the weights are those of BT.601's luma."""
    return (0, 0, 0) if 0.299 * paint[0] + 0.587 * paint[1] + 0.114 * paint[2] > 128 else (255, 255, 255)


def _label(
    draw: ImageDraw.ImageDraw,
    image: Image.Image,
    left: float,
    top: float,
    text: str,
    paint: Colour,
    font: ImageFont.FreeTypeFont,
) -> None:
    """On the box's upper edge; below it, or further left, where it would leave the picture."""
    text = _fitted(text, font, image.width - 6)
    width, height = round(font.getlength(text)) + 6, sum(font.getmetrics()) + 2
    x = max(0, min(round(left), image.width - width))
    y = round(top) - height if top >= height else min(round(top), image.height - height)
    draw.rectangle((x, y, x + width - 1, y + height - 1), fill=paint)
    draw.text((x + 3, y + height / 2), text, fill=_contrast(paint), font=font, anchor="lm")


def _fitted(text: str, font: ImageFont.FreeTypeFont, width: int) -> str:
    """Cut in the middle of the name, so that the probability at its end stays."""
    while font.getlength(text) > width and len(text) > 12:
        middle = (len(text) - 5) // 2
        text = text[: middle - 2] + ".." + text[middle + 2 :]
    return text
