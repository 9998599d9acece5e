"""Attention maps beside what they were made from, on a white sheet (paper, Fig. 3b): a row a flow, a column a stage."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from torch.nn import functional as F

from tdaf.media.mask_colours import coloured, scale_bar

GLOW = 0.6  # of the colours in an overlay; the rest is the picture in grey

Place = tuple[int, int]  # flow, stage; both 1-based


@dataclass(frozen=True)
class Panel:
    """picture: uint8 RGB (3, H, W). masks: values (h, w) in [0, 1]. title: "" for none."""

    picture: Tensor
    masks: Mapping[Place, Tensor]
    title: str = ""


def sheet(
    panels: Sequence[Panel],
    strides: Mapping[Place, int],
    eta: float,
    title: str = "",
    style: str = "both",
    scale: str = "full",
    tile: int = 320,
) -> Tensor:
    """uint8 RGB (3, height, width): the panels, in rows where there are several, below them the colour scale and eta.

    A panel is its picture and, right of it, a tile a mask, all of one size and each pixel in its place: value (i, j) of
    a mask lies over pixels i * stride, ... and j * stride, ... of the picture, and is not smoothed. Above a tile stand
    the mask's size and its smallest, largest and mean value.

    strides: pixels of the picture that one value spans. style: "overlay", the colours over the picture in grey;
    "mask", the colours alone; "both", one above the other. scale: "full", from 0 to 1; "own", from each mask's smallest
    to its largest value. tile: pixels of a tile's long side; small pictures are enlarged by the whole number that stays
    below it, large ones made smaller so that the finest mask has a whole number of pixels a value, at least one.
    """
    size = max(13, tile // 20)
    body = _side_by_side([_panel(panel, strides, style, scale, tile, size) for panel in panels], size)
    lines = [_line(title, body.width, size + 2)] if title else []
    parts = [*lines, body, _foot(body.width, size, eta, scale)]
    whole = Image.new("RGB", (body.width + 2 * size, sum(part.height + size for part in parts) + size), "white")
    top = size
    for part in parts:
        whole.paste(part, (size, top))
        top += part.height + size
    return torch.from_numpy(np.array(whole)).permute(2, 0, 1)


def spread(values: Tensor, stride: int, size: tuple[int, int], tile: tuple[int, int]) -> Tensor:
    """Each pixel of a tile gets the value whose cell it lies in. values (h, w), of `stride` pixels each over a picture
    of `size` (H, W), of which a tile of `tile` (height, width) is drawn -> (height, width).

    Where the cells do not reach over the whole picture they are stretched to.
    """
    rows, columns = (
        _cells(count, stride, side, pixels) for count, side, pixels in zip(values.shape, size, tile, strict=True)
    )
    return values[rows][:, columns]


def _cells(count: int, stride: int, side: int, pixels: int) -> Tensor:
    cell = stride if count * stride >= side else side / count
    centres = (torch.arange(pixels, dtype=torch.float64) + 0.5) * side / pixels
    return (centres / cell).long().clamp(max=count - 1)


def _tile(size: tuple[int, int], stride: int, tile: int) -> tuple[int, int]:
    """(height, width) at which a picture of `size` is drawn; stride: the finest mask's."""
    longest = max(size)
    factor = tile // longest if longest <= tile else min(1.0, max(1, round(tile * stride / longest)) / stride)
    return round(size[0] * factor) or 1, round(size[1] * factor) or 1


def _side_by_side(images: list[Image.Image], gap: int) -> Image.Image:
    """In their order, row by row, in a shape near to a square."""
    width, height = max(image.width for image in images), max(image.height for image in images)
    columns = min(len(images), max(1, round((len(images) * height / width) ** 0.5)))
    rows = -(-len(images) // columns)
    step = (width + 2 * gap, height + 2 * gap)
    whole = Image.new("RGB", (columns * step[0] - 2 * gap, rows * step[1] - 2 * gap), "white")
    for place, image in enumerate(images):
        whole.paste(image, (place % columns * step[0], place // columns * step[1]))
    return whole


def _panel(
    panel: Panel, strides: Mapping[Place, int], style: str, scale: str, tile: int, letters: int
) -> Image.Image:
    size = tuple(panel.picture.shape[1:])
    drawn = _tile(size, min(strides[place] for place in panel.masks), tile)
    picture = _resized(panel.picture, drawn)
    flows, stages = sorted({flow for flow, _ in panel.masks}), sorted({stage for _, stage in panel.masks})
    cells = [[_cell(panel, strides, (f, s), picture, style, scale, letters) for s in stages] for f in flows]
    first = _labelled([picture], ["input", "x".join(map(str, size))], letters)
    width = max(first.width, *(cell.width for row in cells for cell in row if cell))
    height = max(cell.height for row in cells for cell in row if cell)
    head = _line(panel.title, (1 + len(stages)) * (width + letters), letters + 1) if panel.title else None
    top = head.height + letters // 2 if head else 0
    step = (width + letters, height + letters)
    whole = Image.new("RGB", ((1 + len(stages)) * step[0] - letters, top + len(flows) * step[1] - letters), "white")
    if head:
        whole.paste(head, (0, 0))
    whole.paste(first, (0, top))
    for row, line in enumerate(cells):
        for column, cell in enumerate(line, 1):
            if cell:
                whole.paste(cell, (column * step[0], top + row * step[1]))
    return whole


def _cell(
    panel: Panel, strides: Mapping[Place, int], place: Place, picture: Tensor, style: str, scale: str, letters: int
) -> Image.Image | None:
    if place not in panel.masks:
        return None  # a flow has no mask at a stage that the flow before it has not
    whole, sides = panel.masks[place].detach().float().cpu(), panel.picture.shape[1:]
    # what a deconvolution gives beyond the picture's edge is not drawn, and not counted in the texts
    values = whole[tuple(slice(-(-side // strides[place])) for side in sides)]
    low, high, mean = values.min().item(), values.max().item(), values.mean().item()
    mask = spread(values, strides[place], tuple(sides), tuple(picture.shape[1:]))
    colours = coloured((mask - low) / max(high - low, 1e-6) if scale == "own" else mask)
    tiles = []
    if style != "mask":
        grey = (picture.float() * torch.tensor([0.299, 0.587, 0.114])[:, None, None]).sum(0, keepdim=True)
        tiles.append(torch.lerp(grey.expand(3, -1, -1), colours.float(), GLOW).round().to(torch.uint8))
    if style != "overlay":
        tiles.append(colours)
    size = "x".join(map(str, whole.shape))
    if values.shape != whole.shape:
        size += f" ({'x'.join(map(str, values.shape))} of it)"
    texts = [
        f"flow {place[0]}, stage {place[1]}: {size}",
        f"{low:.2f} to {high:.2f}, mean {mean:.2f}",
    ]
    return _labelled(tiles, texts, letters)


def _labelled(tiles: list[Tensor], texts: list[str], letters: int) -> Image.Image:
    """The texts, a line each, and below them the tiles, one above the other."""
    font = ImageFont.load_default(letters)
    step = letters + 4
    width = max(tiles[0].shape[2], *(round(font.getlength(text)) + 2 for text in texts))
    height = len(texts) * step + sum(tile.shape[1] + 2 for tile in tiles) - 2
    whole = Image.new("RGB", (width, height), "white")
    draw = ImageDraw.Draw(whole)
    for row, text in enumerate(texts):
        draw.text((0, row * step), text, fill="black", font=font, anchor="la")
    top = len(texts) * step
    for tile in tiles:
        whole.paste(Image.fromarray(tile.permute(1, 2, 0).contiguous().numpy()), (0, top))
        top += tile.shape[1] + 2
    return whole


def _line(text: str, width: int, letters: int) -> Image.Image:
    font = ImageFont.load_default(letters)
    while font.getlength(text) > width and len(text) > 12:  # a path's end says more than its beginning
        text = ".." + text[3:]
    image = Image.new("RGB", (width, letters + 4), "white")
    ImageDraw.Draw(image).text((0, 0), text, fill="black", font=font, anchor="la")
    return image


def _foot(width: int, letters: int, eta: float, scale: str) -> Image.Image:
    marks = [0, 0.25, 0.5, 0.75, 1]
    if scale == "full":
        rows = [("mask g", [f"{g:g}" for g in marks]), ("factor g + eta", [f"{g + eta:g}" for g in marks])]
    else:
        rows = [("mask g", ["its smallest value", "its largest"])]
    bar = scale_bar(min(width, 30 * letters), letters, rows)
    said = f"A map is multiplied by g + eta. Here eta is {eta:g}: from {eta:g} (g = 0) to {1 + eta:g} (g = 1)."
    lines = _wrapped(said, width, letters)
    whole = Image.new("RGB", (width, bar.height + len(lines) * (letters + 5)), "white")
    whole.paste(bar, (0, 0))
    for row, text in enumerate(lines):
        whole.paste(_line(text, width, letters), (0, bar.height + row * (letters + 5)))
    return whole


def _wrapped(text: str, width: int, letters: int) -> list[str]:
    font = ImageFont.load_default(letters)
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if font.getlength(longer) > width and lines[-1]:
            lines.append(word)
        else:
            lines[-1] = longer
    return lines


def _resized(picture: Tensor, size: tuple[int, int]) -> Tensor:
    """Enlarged by repeating pixels, made smaller by averaging them."""
    if tuple(picture.shape[1:]) == size:
        return picture
    if size[0] > picture.shape[1]:
        return F.interpolate(picture[None].float(), size, mode="nearest-exact")[0].to(torch.uint8)
    small = F.interpolate(picture[None].float(), size, mode="bilinear", antialias=True)[0]
    return small.round().clamp(0, 255).to(torch.uint8)
