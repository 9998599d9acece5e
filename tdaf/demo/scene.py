"""Pictures of polygons in clutter: grounds, colours, distractors, and pasting a polygon on a picture.

Everything random comes from the generator that is passed in; `generator` makes one for each sample, so any sample can
be drawn alone, in any order and in any process, and comes out the same."""

from __future__ import annotations

import colorsys
import math
import zlib
from collections.abc import Iterable, Sequence

import numpy as np
from PIL import Image, ImageDraw

from tdaf.demo import shapes

Colour = tuple[int, int, int]
Box = tuple[float, float, float, float]  # left, top, right, bottom

_FINE = 4  # sub-pixels along each axis when an edge is drawn
_COARSE = 3  # the same for clutter
_LUMA = np.array([0.299, 0.587, 0.114])
_LINE = np.array([[-1.0, -0.1], [1.0, -0.1], [1.0, 0.1], [-1.0, 0.1]])
_DOT = 0.3 * shapes.polar(np.ones(12))


def generator(seed: int, split: str, index: int) -> np.random.Generator:
    """The source of randomness of one sample."""
    return np.random.default_rng([seed, zlib.crc32(split.encode()), index])


def field(rng: np.random.Generator, width: int, height: int) -> np.ndarray:
    """A pattern (height, width) float32 in 0..1: flat, gradient, glow, stripes or blotches."""
    kind = rng.integers(5)
    if kind == 0:
        return np.full((height, width), rng.uniform(), np.float32)
    if kind == 4:
        cells = rng.integers(3, 7, size=2)
        coarse = Image.fromarray(rng.integers(0, 256, size=cells, dtype=np.uint8))
        return np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC), np.float32) / 255
    x = np.linspace(-1, 1, width, dtype=np.float32)
    y = np.linspace(-1, 1, height, dtype=np.float32)[:, None]
    if kind == 1:
        return np.clip(np.hypot(x - rng.uniform(-1, 1), y - rng.uniform(-1, 1)) / 2, 0, 1)
    angle = rng.uniform(0, 2 * math.pi)
    along = x * np.float32(math.cos(angle)) + y * np.float32(math.sin(angle))
    if kind == 2:
        return np.clip((along + 1) / 2, 0, 1)
    waves = np.float32(rng.uniform(2, 6) * math.pi)
    return (np.sin(along * waves + np.float32(rng.uniform(0, 2 * math.pi))) + 1) / 2


def textured(rng: np.random.Generator, colours: np.ndarray, width: int, height: int) -> Image.Image:
    """An RGB picture that goes between two colours (2, 3) of 0..255 by a random `field`."""
    mix = field(rng, width, height)[..., None]
    first, second = colours.astype(np.float32)
    return Image.fromarray((first + (second - first) * mix).astype(np.uint8))


def ground_colours(rng: np.random.Generator) -> np.ndarray:
    """Two kindred colours (2, 3) float64 of 0..150, not bright, for a ground."""
    first = rng.uniform(0, 150, size=3)
    return np.stack([first, np.clip(first + rng.uniform(-45, 45, size=3), 0, 150)])


def figure_colours(rng: np.random.Generator, ground: np.ndarray) -> np.ndarray:
    """Two kindred colours (2, 3) float64 of 0..255 that are brighter than both of the ground's, in any hue.

    Figures are bright as under a lamp: which side of an edge is the figure need not be learnt first, which is what
    makes the demo learnable in a minute. Brightness still says nothing about the class."""
    first = rng.uniform(30, 256, size=(64, 3))
    both = np.stack([first, np.clip(first + rng.uniform(-45, 45, size=(64, 3)), 0, 255)], axis=1)
    lighter = (both @ _LUMA).min(axis=1) - (ground @ _LUMA).max()
    clear = np.flatnonzero(lighter > 60)
    return both[clear[0] if len(clear) else lighter.argmax()]


def lightness(colours: np.ndarray) -> np.ndarray:
    """(K, 3) of 0..255 -> (K,) of 0..255, as the eye weighs them."""
    return colours @ _LUMA


def hued(rng: np.random.Generator, hue: float, spread: float) -> np.ndarray:
    """Two kindred colours (2, 3) float64 of 0..255 within `spread` of a hue; hues go round from 0 (red) to 1."""
    hues = hue + rng.uniform(-spread, spread, size=2)
    shades = [(rng.uniform(0.5, 0.95), rng.uniform(0.75, 1.0)) for _ in range(2)]
    return np.array([colorsys.hsv_to_rgb(h % 1.0, *shade) for h, shade in zip(hues, shades, strict=True)]) * 255


def paste(image: Image.Image, points: shapes.Points, paint: Image.Image | Colour) -> None:
    """Draws a polygon with smooth edges on `image`, in place; what lies outside is cut off.

    `paint` is a colour, or an RGB picture of the image's size that shows through the polygon."""
    left, top, right, bottom = shapes.box(points)
    x0, y0 = max(math.floor(left), 0), max(math.floor(top), 0)
    x1, y1 = min(math.ceil(right), image.width), min(math.ceil(bottom), image.height)
    if x1 <= x0 or y1 <= y0:
        return
    fine = Image.new("L", ((x1 - x0) * _FINE, (y1 - y0) * _FINE))
    # PIL's pixel (0, 0) has its centre there; ours has its corner there.
    corners = (points - [x0, y0]) * _FINE - 0.5
    ImageDraw.Draw(fine).polygon(corners.ravel().tolist(), fill=255)
    filling = paint.crop((x0, y0, x1, y1)) if isinstance(paint, Image.Image) else paint
    image.paste(filling, (x0, y0, x1, y1), fine.reduce(_FINE))


def fragment(rng: np.random.Generator, reach: float) -> shapes.Points:
    """A distractor about the origin, not wider than `reach`: a line, a dot, a blob, or a piece of any shape.

    It is drawn without knowledge of the sample's class, so it says nothing about it."""
    kind = rng.integers(4)
    if kind == 0:
        points = _LINE
    elif kind == 1:
        points = _DOT
    elif kind == 2:
        points = shapes.polar(rng.uniform(0.35, 0.9, size=7))
    else:
        whole = shapes.outline(shapes.NAMES[rng.integers(len(shapes.NAMES))], rng)
        half = whole[: max(3, int(len(whole) * rng.uniform(0.35, 0.6)))]
        points = half / np.abs(half).max()
    size, angle = reach * rng.uniform(0.25, 0.5), rng.uniform(0, 2 * math.pi)
    cos, sin = size * math.cos(angle), size * math.sin(angle)
    return points @ np.array([[cos, sin], [-sin, cos]])


def strewn(
    rng: np.random.Generator, frame: tuple[int, int], pieces: int, reach: float, colours: np.ndarray
) -> list[tuple[shapes.Points, Colour]]:
    """`pieces` fragments over a frame (width, height); each takes one of `colours` (K, 3) or a colour of its own."""
    fragments = []
    for _ in range(pieces):
        own = rng.random() < 0.5
        colour = rng.uniform(0, 256, size=3) if own else colours[rng.integers(len(colours))]
        red, green, blue = colour.astype(int).tolist()
        fragments.append((fragment(rng, reach) + rng.random(2) * frame, (red, green, blue)))
    return fragments


def draw(image: Image.Image, polygons: Iterable[tuple[shapes.Points, Colour]]) -> None:
    """Draws polygons in flat colours on `image`, in place, the last in front."""
    # One enlarged picture for all pieces: several times faster than a smooth mask for each.
    fine = image.resize((image.width * _COARSE, image.height * _COARSE), Image.Resampling.NEAREST)
    pen = ImageDraw.Draw(fine)
    for points, colour in polygons:
        pen.polygon((points * _COARSE - 0.5).ravel().tolist(), fill=colour)
    image.paste(fine.reduce(_COARSE))


def clutter(rng: np.random.Generator, image: Image.Image, pieces: int, reach: float, colours: np.ndarray) -> None:
    """Strews `pieces` fragments over `image`, in place; see `strewn`."""
    draw(image, strewn(rng, image.size, pieces, reach, colours))


def frame(rng: np.random.Generator, size: int, aspect: float) -> tuple[int, int]:
    """A picture's (width, height): a short side of 0.9 to 1.1 of `size`, upright or lying, up to 1 : `aspect`."""
    short = round(size * rng.uniform(0.9, 1.1))
    long = round(short * rng.uniform(1.0, aspect))
    return (short, long) if rng.random() < 0.5 else (long, short)


def spot(
    rng: np.random.Generator, box: Box, frame: tuple[int, int], taken: Sequence[Box], overhang: float
) -> np.ndarray:
    """How far (x, y) to move a thing with this box so that it lies in the frame; not much upon others, mostly.

    taken: the boxes of the others. overhang: the share of the box that may stick out at each side; what is larger than
    the frame lies in its middle."""
    corner, size = np.array(box[:2]), np.array(box[2:]) - box[:2]
    low, high = -overhang * size, np.array(frame) - (1 - overhang) * size
    low, high = np.where(low > high, (low + high) / 2, low), np.where(low > high, (low + high) / 2, high)
    offers = rng.uniform(low, high, size=(rng.integers(1, 8), 2))
    others = np.array(taken).reshape(-1, 4)
    common = np.minimum(offers[:, None] + size, others[:, 2:]) - np.maximum(offers[:, None], others[:, :2])
    smaller = np.minimum(size.prod(), (others[:, 2:] - others[:, :2]).prod(axis=1))
    hidden = (np.maximum(common, 0).prod(axis=2) / smaller).sum(axis=1)
    return offers[hidden.argmin()] - corner


def grain(rng: np.random.Generator, image: Image.Image, strength: float) -> Image.Image:
    """The picture with normal noise of standard deviation `strength` (of 255), as from a camera."""
    noise = rng.standard_normal((image.height, image.width, 3), dtype=np.float32) * np.float32(strength)
    return Image.fromarray(np.clip(np.asarray(image) + noise, 0, 255).astype(np.uint8))
