"""Pictures of polygons in clutter: ten shapes, colours, textures, distractors, and polygons pasted on a picture.

Everything random comes from the generator that is passed in; `generator` makes one for each sample, so any sample can
be drawn alone, in any order and in any process, and comes out the same. The order in which numbers are drawn is part of
the data sets: to change it is to change every picture (prepare.VERSION).

Points are (P, 2) float64, x to the right and y down, in pixels once they are placed; pixel (0, 0) has its corner at the
origin. Colours are of 0..255.
"""

from __future__ import annotations

import colorsys
import math
import zlib
from collections.abc import Iterable, Sequence

import numpy as np
from PIL import Image, ImageDraw

Rng = np.random.Generator
Points = np.ndarray
Colour = tuple[int, int, int]
Box = tuple[float, float, float, float]  # left, top, right, bottom

SHAPES = ("circle", "square", "triangle", "star", "cross", "ring", "crescent", "heart", "arrow", "hexagon")

# A square turned by 45 degrees is a diamond, a plus is an X, a heart upside down is hard to read.
_LARGEST_TURN = {"square": 25.0, "cross": 25.0, "heart": 35.0}
_SUBPIXELS = 4  # along each axis when an edge is drawn
_CLUTTER_SUBPIXELS = 3
_LUMA = np.array([0.299, 0.587, 0.114])


def generator(seed: int, split: str, index: int) -> Rng:
    """The source of randomness of one sample."""
    return np.random.default_rng([seed, zlib.crc32(split.encode()), index])


def polar(radii: np.ndarray, start: float = -math.pi / 2, sweep: float = 2 * math.pi) -> Points:
    """Points at equal steps of angle over `sweep`, beginning at the top, at these radii."""
    angles = start + sweep * np.arange(len(radii)) / len(radii)
    return radii[:, None] * np.stack([np.cos(angles), np.sin(angles)], axis=1)


def outline(name: str, rng: Rng) -> Points:
    """The shape `name` about the origin, upright and about two units wide, its proportions drawn from `rng`.

    Each is one closed polygon, so that masks and boxes follow from its points."""
    match name:
        case "circle":
            return polar(np.ones(48))
        case "square":
            return np.array([[-1.0, -1.0], [1.0, -1.0], [1.0, 1.0], [-1.0, 1.0]])
        case "triangle":
            return polar(np.ones(3))
        case "star":
            return polar(np.tile([1.0, rng.uniform(0.38, 0.48)], 5))
        case "cross":
            arm = rng.uniform(0.28, 0.38)
            right = np.array([[arm, -1.0], [arm, -arm], [1.0, -arm], [1.0, arm], [arm, arm], [arm, 1.0]])
            return np.concatenate([right, -right])
        case "ring":
            # A slit of no width joins both edges, which keeps a shape with a hole one polygon.
            edge = np.concatenate([polar(np.ones(48)), [[0.0, -1.0]]])
            return np.concatenate([edge, rng.uniform(0.5, 0.66) * edge[::-1]])
        case "crescent":
            # Both arcs run between the tips (0, -1) and (0, 1); the inner one is flatter.
            depth, outer = rng.uniform(0.2, 0.4), np.linspace(-math.pi / 2, math.pi / 2, 32)
            inner = outer[::-1][1:-1]
            left = np.stack([-np.cos(outer), np.sin(outer)], axis=1)
            return np.concatenate([left, np.stack([-depth * np.cos(inner), np.sin(inner)], axis=1)])
        case "heart":
            t = np.linspace(0.0, 2 * math.pi, 48, endpoint=False)
            y = -(13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t))
            return np.stack([16 * np.sin(t) ** 3, y], axis=1) / 16
        case "arrow":
            shaft, neck = rng.uniform(0.22, 0.32), rng.uniform(-0.15, 0.1)
            right = np.array([[0.0, -1.0], [0.8, neck], [shaft, neck], [shaft, 1.0]])
            return np.concatenate([right, right[:0:-1] * [-1.0, 1.0]])
        case "hexagon":
            return polar(np.ones(6))
    raise ValueError(f"there is no shape {name!r}")


def rotation(radians: float, scale: float = 1.0) -> np.ndarray:
    """(2, 2): `points @ rotation(...)` turns clockwise as seen, and scales."""
    cos, sin = scale * math.cos(radians), scale * math.sin(radians)
    return np.array([[cos, sin], [-sin, cos]])


def area(points: Points) -> float:
    """Area of a polygon in squared units of its points (shoelace; the ring's hole counts as empty)."""
    x, y = points[:, 0], points[:, 1]
    return abs(float(np.dot(x, np.roll(y, -1)) - np.dot(y, np.roll(x, -1)))) / 2


def box(points: Points) -> Box:
    """The smallest upright box about the points."""
    (left, top), (right, bottom) = points.min(axis=0), points.max(axis=0)
    return float(left), float(top), float(right), float(bottom)


def fit(points: Points, covered: float, degrees: float = 0.0, aspect: float = 1.0) -> Points:
    """The outline stretched by `aspect` (width over height), turned clockwise, and scaled to an area of `covered`
    squared pixels, the middle of its box at the origin.

    Sizes are set by area and not by width, so that a class cannot be told from how many pixels it covers."""
    turned = points * [math.sqrt(aspect), 1 / math.sqrt(aspect)] @ rotation(math.radians(degrees))
    scaled = turned * math.sqrt(covered / area(turned))
    return scaled - (scaled.min(axis=0) + scaled.max(axis=0)) / 2


def random_shape(rng: Rng, name: str, covered: float, aspect: float = 1.0) -> Points:
    """The shape `name` of random proportions, turned as far as it stays recognisable; see `fit`."""
    points, limit = outline(name, rng), _LARGEST_TURN.get(name, 180.0)
    return fit(points, covered, float(rng.uniform(-limit, limit)), aspect)


def ground_colours(rng: Rng) -> np.ndarray:
    """Two kindred colours (2, 3) float64 of 0..150, not bright, for a ground."""
    first = rng.uniform(0, 150, size=3)
    return np.stack([first, np.clip(first + rng.uniform(-45, 45, size=3), 0, 150)])


def figure_colours(rng: Rng, ground: np.ndarray) -> np.ndarray:
    """Two kindred colours (2, 3) float64 that are brighter than both of the ground's, in any hue.

    Figures are bright as under a lamp: which side of an edge is the figure need not be learnt first, which is what
    makes the demo learnable in a minute. Brightness still says nothing about the class."""
    first = rng.uniform(30, 256, size=(64, 3))
    both = np.stack([first, np.clip(first + rng.uniform(-45, 45, size=(64, 3)), 0, 255)], axis=1)
    lighter = lightness(both).min(axis=1) - lightness(ground).max()
    clear = np.flatnonzero(lighter > 60)
    return both[clear[0] if len(clear) else lighter.argmax()]


def lightness(colours: np.ndarray) -> np.ndarray:
    """(..., 3) -> (...) of 0..255, as the eye weighs them."""
    return colours @ _LUMA


def shade(hue: float, saturation: float, value: float) -> np.ndarray:
    """(3,) float64; hues go round from 0 (red) to 1."""
    return np.array(colorsys.hsv_to_rgb(hue % 1.0, saturation, value)) * 255


def texture(rng: Rng, colours: np.ndarray, width: int, height: int) -> Image.Image:
    """An RGB picture that goes between two colours (2, 3) by a random `pattern`."""
    mix = pattern(rng, width, height)[..., None]
    first, second = colours.astype(np.float32)
    return Image.fromarray((first + (second - first) * mix).astype(np.uint8))


def pattern(rng: Rng, width: int, height: int) -> np.ndarray:
    """(height, width) float32 in 0..1: flat, glow, gradient, stripes or blotches."""
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


def grain(rng: Rng, image: Image.Image, strength: float) -> Image.Image:
    """The picture with normal noise of standard deviation `strength` (of 255), as from a camera."""
    noise = rng.standard_normal((image.height, image.width, 3), dtype=np.float32) * np.float32(strength)
    return Image.fromarray(np.clip(np.asarray(image) + noise, 0, 255).astype(np.uint8))


def frame(rng: Rng, size: int, aspect: float, spread: float = 0.1) -> tuple[int, int]:
    """A picture's (width, height): a short side of `size` times 1 - `spread` to 1 + `spread`, upright or lying, up to
    1 : `aspect`."""
    short = round(size * rng.uniform(1 - spread, 1 + spread))
    long = round(short * rng.uniform(1.0, aspect))
    return (short, long) if rng.random() < 0.5 else (long, short)


def paste(image: Image.Image, points: Points, paint: Image.Image | Colour) -> None:
    """Draws a polygon with smooth edges on `image`, in place; what lies outside is cut off.

    `paint` is a colour, or an RGB picture of the image's size that shows through the polygon."""
    left, top, right, bottom = box(points)
    x0, y0 = max(math.floor(left), 0), max(math.floor(top), 0)
    x1, y1 = min(math.ceil(right), image.width), min(math.ceil(bottom), image.height)
    if x1 <= x0 or y1 <= y0:
        return
    fine = Image.new("L", ((x1 - x0) * _SUBPIXELS, (y1 - y0) * _SUBPIXELS))
    polygon(ImageDraw.Draw(fine), points - [x0, y0], _SUBPIXELS, 255)
    filling = paint.crop((x0, y0, x1, y1)) if isinstance(paint, Image.Image) else paint
    image.paste(filling, (x0, y0, x1, y1), fine.reduce(_SUBPIXELS))


def polygon(pen: ImageDraw.ImageDraw, points: Points, subpixels: int, fill: Colour | int) -> None:
    """Fills a polygon on a picture that is enlarged `subpixels` times."""
    # PIL's pixel (0, 0) has its centre at the origin; ours has its corner there.
    pen.polygon((points * subpixels - 0.5).ravel().tolist(), fill=fill)


def draw(image: Image.Image, polygons: Iterable[tuple[Points, Colour]]) -> None:
    """Draws polygons in flat colours on `image`, in place, the last in front."""
    # One enlarged picture for all pieces: several times faster than a smooth mask for each.
    size = image.width * _CLUTTER_SUBPIXELS, image.height * _CLUTTER_SUBPIXELS
    fine = image.resize(size, Image.Resampling.NEAREST)
    pen = ImageDraw.Draw(fine)
    for points, colour in polygons:
        polygon(pen, points, _CLUTTER_SUBPIXELS, colour)
    image.paste(fine.reduce(_CLUTTER_SUBPIXELS))


def fragment(rng: Rng, reach: float) -> Points:
    """A distractor about the origin, not wider than `reach`: a line, a dot, a blob, or a piece of any shape.

    It is drawn without knowledge of the sample's class, so it says nothing about it."""
    kind = rng.integers(4)
    if kind == 0:
        points = np.array([[-1.0, -0.1], [1.0, -0.1], [1.0, 0.1], [-1.0, 0.1]])
    elif kind == 1:
        points = 0.3 * polar(np.ones(12))
    elif kind == 2:
        points = polar(rng.uniform(0.35, 0.9, size=7))
    else:
        whole = outline(SHAPES[rng.integers(len(SHAPES))], rng)
        half = whole[: max(3, int(len(whole) * rng.uniform(0.35, 0.6)))]
        points = half / np.abs(half).max()
    size = reach * rng.uniform(0.25, 0.5)
    return points @ rotation(rng.uniform(0, 2 * math.pi), size)


def fragments(
    rng: Rng, frame: tuple[int, int], pieces: int, reach: float, colours: np.ndarray
) -> list[tuple[Points, Colour]]:
    """`pieces` fragments over a frame (width, height); each takes one of `colours` (K, 3) or a colour of its own."""
    polygons = []
    for _ in range(pieces):
        own = rng.random() < 0.5
        colour = rng.uniform(0, 256, size=3) if own else colours[rng.integers(len(colours))]
        polygons.append((fragment(rng, reach) + rng.random(2) * frame, tuple(colour.astype(int).tolist())))
    return polygons


def clutter(rng: Rng, image: Image.Image, pieces: int, reach: float, colours: np.ndarray) -> None:
    """Strews `pieces` fragments over `image`, in place; see `fragments`."""
    draw(image, fragments(rng, image.size, pieces, reach, colours))


def free_spot(rng: Rng, box: Box, frame: tuple[int, int], others: Sequence[Box], overhang: float) -> np.ndarray:
    """How far (x, y) to move a thing with this box so that it lies in the frame; not much upon others, mostly.

    overhang: the share of the box that may stick out at each side; what is larger than the frame lies in its middle."""
    corner, size = np.array(box[:2]), np.array(box[2:]) - box[:2]
    low, high = -overhang * size, np.array(frame) - (1 - overhang) * size
    low, high = np.where(low > high, (low + high) / 2, low), np.where(low > high, (low + high) / 2, high)
    offers = rng.uniform(low, high, size=(rng.integers(1, 8), 2))
    taken = np.array(others).reshape(-1, 4)
    common = np.minimum(offers[:, None] + size, taken[:, 2:]) - np.maximum(offers[:, None], taken[:, :2])
    smaller = np.minimum(size.prod(), (taken[:, 2:] - taken[:, :2]).prod(axis=1))
    hidden = (np.maximum(common, 0).prod(axis=2) / smaller).sum(axis=1)
    return offers[hidden.argmin()] - corner
