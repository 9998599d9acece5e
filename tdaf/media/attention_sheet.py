"""Attention maps beside what they were made from, on a white sheet (paper, Fig. 3b): a row a flow, a column a stage."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor
from torch.nn import functional as F
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2.functional import resize, rgb_to_grayscale
from torchvision.utils import make_grid

from tdaf.media.drawing import Lettering

OPACITY = 0.6  # of the colours in an overlay; the rest is the picture in grey
WHITE = 255
# from 0 to 1: black, violet, red, yellow, rising evenly in lightness, so that they are told apart without seeing hues
# (matplotlib's "inferno" by Smith and van der Walt, CC0, at every sixteenth)
COLOURS = (
    (0, 0, 4), (11, 7, 36), (33, 12, 74), (61, 9, 101), (87, 16, 110), (113, 25, 110), (138, 34, 106), (163, 44, 97),
    (188, 55, 84), (208, 69, 69), (227, 89, 51), (241, 113, 31), (249, 140, 10), (252, 170, 15), (249, 201, 50),
    (242, 232, 101), (252, 255, 164),
)  # fmt: skip

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
    """The panels on a white sheet, below them the colour scale and eta.

    A panel is its picture and, right of it, a row a flow and a column a stage, a tile a mask, each value over the
    pixels that it stands for and not smoothed. Above a tile stand the mask's size, smallest, largest and mean.

    Args:
        panels: in rows where there are several.
        strides: pixels of the picture that one value of a mask spans, as `mask_strides` gives them.
        eta: of Eq. 5.
        title: above all; a long one is cut in its middle.
        style: "overlay", the colours over the picture in grey; "mask", the colours alone; "both", one above the other.
        scale: "full", from 0 to 1; "own", from each mask's smallest to its largest value.
        tile: pixels of a tile's long side. Small pictures are enlarged by the whole number that stays below it, large
            ones made smaller so that the finest mask has a whole number of pixels a value, at least one.

    Returns:
        uint8 RGB (3, height, width).
    """
    size = max(13, tile // 20)
    drawn = [_panel(panel, strides, style, scale, tile, size) for panel in panels]
    height, width = (max(panel.shape[axis] for panel in drawn) for axis in (1, 2))
    body = _grid(drawn, min(len(drawn), max(1, round((len(drawn) * height / width) ** 0.5))), 2 * size)
    head = [_text([title], size + 2, body.shape[2])] if title else []
    whole = _stack([*head, body, _legend(body.shape[2], size, eta, scale)], size)
    return F.pad(whole, (size, size, size, size), value=WHITE)


def coloured(values: Tensor) -> Tensor:
    """values (h, w), of which 0 and below is black and 1 and above pale yellow -> uint8 RGB (3, h, w)."""
    numbers, places = values.detach().float().cpu().nan_to_num().numpy(), np.linspace(0, 1, len(COLOURS))
    channels = [np.interp(numbers, places, channel) for channel in zip(*COLOURS, strict=True)]
    return torch.from_numpy(np.stack(channels).round().astype(np.uint8))


def spread(values: Tensor, stride: int, size: tuple[int, int], tile: tuple[int, int]) -> Tensor:
    """Each pixel of a tile gets the value whose cell it lies in.

    Args:
        values: (h, w), of `stride` pixels each. Where their cells do not reach over the whole picture (in a network
            without padding) they are stretched to.
        stride: pixels.
        size: (H, W) of the picture.
        tile: (height, width) at which it is drawn, and of what is returned.
    """
    for axis, (count, side, pixels) in enumerate(zip(values.shape, size, tile, strict=True)):
        cell = stride if count * stride >= side else side / count
        centres = (torch.arange(pixels, dtype=torch.float64) + 0.5) * side / pixels
        values = values.index_select(axis, (centres / cell).long().clamp(max=count - 1))
    return values


def _panel(panel: Panel, strides: Mapping[Place, int], style: str, scale: str, tile: int, letters: int) -> Tensor:
    height, width = panel.picture.shape[1:]
    longest, finest = max(height, width), min(strides[place] for place in panel.masks)
    factor = tile // longest if longest <= tile else min(1.0, max(1, round(tile * finest / longest)) / finest)
    mode = InterpolationMode.NEAREST_EXACT if factor > 1 else InterpolationMode.BILINEAR
    picture = resize(panel.picture, [round(height * factor) or 1, round(width * factor) or 1], mode)
    flows, stages = sorted({flow for flow, _ in panel.masks}), sorted({stage for _, stage in panel.masks})
    cells = [_stack([_text(["input", f"{height}x{width}"], letters), picture])]
    for flow in flows:
        cells += [] if flow == flows[0] else [_blank(1, 1)]
        # a flow has no mask at a stage that the flow before it has not
        there = [(flow, stage) in panel.masks for stage in stages]
        cells += [
            _cell(panel, strides[flow, stage], (flow, stage), picture, style, scale, letters) if known else _blank(1, 1)
            for stage, known in zip(stages, there, strict=True)
        ]
    grid = _grid(cells, 1 + len(stages), letters)
    return _stack([_text([panel.title], letters + 1, grid.shape[2]), grid], letters // 2) if panel.title else grid


def _cell(panel: Panel, stride: int, place: Place, picture: Tensor, style: str, scale: str, letters: int) -> Tensor:
    whole, sides = panel.masks[place].detach().float().cpu(), panel.picture.shape[1:]
    # what a deconvolution gives beyond the picture's edge is not drawn, and not counted in the texts
    values = whole[tuple(slice(-(-side // stride)) for side in sides)]
    low, high, mean = values.min().item(), values.max().item(), values.mean().item()
    mask = spread(values, stride, tuple(sides), tuple(picture.shape[1:]))
    colours = coloured((mask - low) / max(high - low, 1e-6) if scale == "own" else mask)
    overlay = torch.lerp(rgb_to_grayscale(picture.float(), 3), colours.float(), OPACITY).round().byte()
    tiles = {"overlay": [overlay], "mask": [colours], "both": [overlay, colours]}[style]
    size = "x".join(map(str, whole.shape))
    if values.shape != whole.shape:
        size += f" ({'x'.join(map(str, values.shape))} of it)"
    texts = [f"flow {place[0]}, stage {place[1]}: {size}", f"{low:.2f} to {high:.2f}, mean {mean:.2f}"]
    return _stack([_text(texts, letters), _stack(tiles, 2)])


def _legend(width: int, letters: int, eta: float, scale: str) -> Tensor:
    """The colours from left to right, what they stand for, and what eta does."""
    strip = coloured(torch.linspace(0, 1, min(width, 40 * letters)).expand(letters, -1))
    ends = "g = 0 to g = 1" if scale == "full" else "the smallest g of a mask to its largest"
    text = f"From {ends}. A map is multiplied by g + eta, here by {eta:g} (g = 0) to {1 + eta:g} (g = 1)."
    return _stack([strip, _text(textwrap.wrap(text, max(12, 2 * width // letters)), letters)], letters // 3)


def _text(lines: Sequence[str], letters: int, width: int | None = None) -> Tensor:
    """Black on white, `letters` pixels high, as wide as it has to be. width: to which a line is cut in its middle."""
    lettering, step = Lettering(letters), letters + 4
    lines = [lettering.fitted(line, width) if width else line for line in lines]
    image = Image.new("RGB", (max(round(lettering.length(line)) + 2 for line in lines), step * len(lines)), "white")
    draw = ImageDraw.Draw(image)
    for row, line in enumerate(lines):
        lettering.write(draw, (0, row * step), line, "black", "la")
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def _blank(height: int, width: int) -> Tensor:
    return torch.full((3, height, width), WHITE, dtype=torch.uint8)


def _padded(image: Tensor, height: int, width: int) -> Tensor:
    return F.pad(image, (0, width - image.shape[2], 0, height - image.shape[1]), value=WHITE)


def _stack(images: Sequence[Tensor], gap: int = 0) -> Tensor:
    """One above the other, at the left edge."""
    width = max(image.shape[2] for image in images)
    rows = [_padded(image, image.shape[1] + gap, width) for image in images]
    return torch.cat([*rows[:-1], rows[-1][:, : rows[-1].shape[1] - gap]], 1)


def _grid(images: Sequence[Tensor], columns: int, gap: int) -> Tensor:
    """In their order, row by row, each at the upper left of a place as large as the largest."""
    height, width = (max(image.shape[axis] for image in images) for axis in (1, 2))
    grid = make_grid([_padded(image, height, width) for image in images], columns, gap, pad_value=WHITE)
    return grid[:, gap:-gap, gap:-gap] if len(images) > 1 else grid
