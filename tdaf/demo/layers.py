"""What is on top where: a map of the numbers of drawn polygons, in quarter pixels, from which boxes, areas and hidden
joints are read. Nothing is annotated that was not drawn."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageDraw

from tdaf.demo import shapes

STEPS = 4  # cells of the map along a pixel's side


class Layers:
    """The number of the polygon in front at every quarter pixel of a frame; 0 where there is only ground or clutter."""

    def __init__(self, width: int, height: int) -> None:
        self._map = Image.new("L", (width * STEPS, height * STEPS))
        self._pen = ImageDraw.Draw(self._map)

    def cover(self, points: shapes.Points, number: int) -> None:
        """Puts a polygon in front of all that came before. number: 0..255."""
        self._pen.polygon((points * STEPS - 0.5).ravel().tolist(), fill=number)

    def numbers(self) -> np.ndarray:
        """The map as it is now, (STEPS height, STEPS width) uint8."""
        return np.asarray(self._map)


def box(mask: np.ndarray) -> tuple[float, float, float, float]:
    """(left, top, width, height) in pixels of a mask in quarter pixels that is not empty."""
    columns, rows = np.flatnonzero(mask.any(axis=0)), np.flatnonzero(mask.any(axis=1))
    left, right, top, bottom = columns[0], columns[-1] + 1, rows[0], rows[-1] + 1
    return float(left / STEPS), float(top / STEPS), float((right - left) / STEPS), float((bottom - top) / STEPS)


def area(mask: np.ndarray) -> float:
    """Squared pixels of a mask in quarter pixels."""
    return float(np.count_nonzero(mask) / STEPS**2)


def pixels(mask: np.ndarray) -> np.ndarray:
    """The pixels of which a mask in quarter pixels covers half or more, (height, width) bool."""
    # Pillow's reduce rounds the mean of 16 cells; with 240 for a cell it is a whole number already.
    cells = Image.fromarray(mask.astype(np.uint8) * np.uint8(240))
    return np.asarray(cells.reduce(STEPS)) >= 120
