"""The ten shapes of the demo data, each one closed polygon, so that masks and boxes follow from its points."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

Points = np.ndarray  # (P, 2) float64, x to the right and y down


def polar(radii: np.ndarray, start: float = -math.pi / 2, sweep: float = 2 * math.pi) -> Points:
    """Points at equal steps of angle over `sweep`, beginning at the top, at these radii."""
    angles = start + sweep * np.arange(len(radii)) / len(radii)
    return radii[:, None] * np.stack([np.cos(angles), np.sin(angles)], axis=1)


def circle(rng: np.random.Generator) -> Points:
    return polar(np.ones(48))


def square(rng: np.random.Generator) -> Points:
    return np.array([[-1.0, -1.0], [1.0, -1.0], [1.0, 1.0], [-1.0, 1.0]])


def triangle(rng: np.random.Generator) -> Points:
    return polar(np.ones(3))


def star(rng: np.random.Generator) -> Points:
    inner = rng.uniform(0.38, 0.48)
    return polar(np.tile([1.0, inner], 5))


def cross(rng: np.random.Generator) -> Points:
    arm = rng.uniform(0.28, 0.38)
    right = np.array([[arm, -1.0], [arm, -arm], [1.0, -arm], [1.0, arm], [arm, arm], [arm, 1.0]])
    return np.concatenate([right, -right])


def ring(rng: np.random.Generator) -> Points:
    # A slit of no width joins both edges, which keeps a shape with a hole one polygon.
    hole = rng.uniform(0.5, 0.66)
    edge = np.concatenate([polar(np.ones(48)), [[0.0, -1.0]]])
    return np.concatenate([edge, hole * edge[::-1]])


def crescent(rng: np.random.Generator) -> Points:
    # Both arcs run between the tips (0, -1) and (0, 1); the inner one is flatter.
    depth = rng.uniform(0.2, 0.4)
    outer = np.linspace(-math.pi / 2, math.pi / 2, 32)
    inner = outer[::-1][1:-1]
    left = np.stack([-np.cos(outer), np.sin(outer)], axis=1)
    back = np.stack([-depth * np.cos(inner), np.sin(inner)], axis=1)
    return np.concatenate([left, back])


def heart(rng: np.random.Generator) -> Points:
    t = np.linspace(0.0, 2 * math.pi, 48, endpoint=False)
    x = 16 * np.sin(t) ** 3
    y = -(13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t))
    return np.stack([x, y], axis=1) / 16


def arrow(rng: np.random.Generator) -> Points:
    shaft, neck = rng.uniform(0.22, 0.32), rng.uniform(-0.15, 0.1)
    right = np.array([[0.0, -1.0], [0.8, neck], [shaft, neck], [shaft, 1.0]])
    return np.concatenate([right, right[:0:-1] * [-1.0, 1.0]])


def hexagon(rng: np.random.Generator) -> Points:
    return polar(np.ones(6))


_OUTLINES: dict[str, Callable[[np.random.Generator], Points]] = {
    function.__name__: function
    for function in (circle, square, triangle, star, cross, ring, crescent, heart, arrow, hexagon)
}
NAMES: tuple[str, ...] = tuple(_OUTLINES)

# A square turned by 45 degrees is a diamond, a plus is an X, a heart upside down is hard to read.
_TURN = {"square": 25.0, "cross": 25.0, "heart": 35.0}


def outline(name: str, rng: np.random.Generator) -> Points:
    """The shape `name` about the origin, upright and about two units wide, its proportions drawn from `rng`."""
    return _OUTLINES[name](rng)


def turn(name: str, rng: np.random.Generator) -> float:
    """A rotation in degrees that leaves the class recognisable."""
    limit = _TURN.get(name, 180.0)
    return float(rng.uniform(-limit, limit))


def area(points: Points) -> float:
    """Area of a polygon in squared units of its points (shoelace; the ring's hole counts as empty)."""
    x, y = points[:, 0], points[:, 1]
    return abs(float(np.dot(x, np.roll(y, -1)) - np.dot(y, np.roll(x, -1)))) / 2


def box(points: Points) -> tuple[float, float, float, float]:
    """The smallest upright box (left, top, right, bottom) about the points."""
    (left, top), (right, bottom) = points.min(axis=0), points.max(axis=0)
    return float(left), float(top), float(right), float(bottom)


def place(points: Points, centre: tuple[float, float], degrees: float, covered: float, aspect: float = 1.0) -> Points:
    """The outline stretched by `aspect` (width over height), turned clockwise, scaled to an area of `covered` squared
    pixels, and moved so that the middle of its box lies at `centre`.

    Sizes are set by area and not by width, so that a class cannot be told from how many pixels it covers."""
    wide = points * [math.sqrt(aspect), 1 / math.sqrt(aspect)]
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    turned = wide @ np.array([[cos, sin], [-sin, cos]])
    scaled = turned * math.sqrt(covered / area(turned))
    middle = (scaled.min(axis=0) + scaled.max(axis=0)) / 2
    return scaled - middle + np.asarray(centre)
