"""From a mask to polygons and run lengths, the two ways in which COCO writes a segmentation."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from tdaf.demo import shapes

_TOLERANCE = 0.35  # pixels that a corner may stand out and yet be dropped


def polygons(mask: np.ndarray) -> list[shapes.Points]:
    """The outlines of a mask (height, width) bool in pixels: one polygon for each part, none for an empty mask.

    A hole is joined to its part's outline by a slit of no width, so that filling by the even-odd rule, which is
    pycocotools' rule, leaves it open."""
    loops = [_simplified(loop) for loop in _loops(mask)]
    turns = [_signed(loop) for loop in loops]
    outer = [loop for loop, turn in zip(loops, turns, strict=True) if turn > 0]
    for hole in (loop for loop, turn in zip(loops, turns, strict=True) if turn < 0):
        left, top, right, bottom = shapes.box(hole)
        around = [
            place
            for place, (x0, y0, x1, y1) in enumerate(map(shapes.box, outer))
            if x0 <= left and y0 <= top and x1 >= right and y1 >= bottom
        ]
        place = min(around, key=lambda place: abs(_signed(outer[place])))
        edge = outer[place]
        nearest = int(((edge - hole[0]) ** 2).sum(axis=1).argmin())
        edge = np.roll(edge, -nearest, axis=0)
        outer[place] = np.concatenate([edge, edge[:1], hole, hole[:1]])
    return outer


def run_lengths(mask: np.ndarray) -> dict[str, list[int]]:
    """COCO's uncompressed run lengths of a mask (height, width) bool: column by column, beginning with zeros."""
    flat = mask.ravel(order="F")
    changes = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    counts = np.diff(np.concatenate([[0], changes, [flat.size]])).tolist()
    return {"counts": [0, *counts] if flat[0] else counts, "size": list(mask.shape)}


def _loops(mask: np.ndarray) -> list[shapes.Points]:
    """Closed walks along the cracks between pixels, the mask on the right hand: outer edges run clockwise as seen."""
    padded = np.pad(mask, 1).astype(np.int8)
    stride = mask.shape[1] + 1
    across, down = np.diff(padded, axis=0)[:, 1:-1], np.diff(padded, axis=1)[1:-1]

    def edges(steps: np.ndarray, start: int, end: int) -> Iterator[tuple[int, int]]:
        y, x = np.nonzero(steps)
        corners = y * stride + x
        return zip((corners + start).tolist(), (corners + end).tolist(), strict=True)

    # Where pixels touch at a corner only, two edges begin: to the east and west, or to the north and south. Either may
    # be followed; both give closed walks.
    first = dict([*edges(across > 0, 0, 1), *edges(down > 0, stride, 0)])
    second = dict([*edges(across < 0, 1, 0), *edges(down < 0, 0, stride)])
    loops = []
    while first:
        start, corner = first.popitem()
        walk = [start]
        while corner != start:
            walk.append(corner)
            corner = first.pop(corner) if corner in first else second.pop(corner)
        y, x = np.divmod(np.array(walk), stride)
        loops.append(np.stack([x, y], axis=1).astype(np.float64))
    return loops


def _simplified(loop: shapes.Points) -> shapes.Points:
    """The loop through the middles of its cracks, which turns stairs into slopes, less the points on straight runs."""
    points = (loop + np.concatenate([loop[1:], loop[:1]])) / 2
    for _ in range(6):
        if len(points) < 8:
            break
        odd = points[1::2]
        even = points[::2][: len(odd)]
        chord = np.concatenate([points[2::2], points[:1]])[: len(odd)] - even
        offset = odd - even
        apart = np.abs(chord[:, 0] * offset[:, 1] - chord[:, 1] * offset[:, 0])
        keep = np.ones(len(points), bool)
        keep[1::2] = apart > _TOLERANCE * np.hypot(chord[:, 0], chord[:, 1])
        points = points[keep]
    return points


def _signed(points: shapes.Points) -> float:
    x, y = points[:, 0], points[:, 1]
    return float(np.dot(x, np.roll(y, -1)) - np.dot(y, np.roll(x, -1))) / 2
