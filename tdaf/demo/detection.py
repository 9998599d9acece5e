"""Demo data for detection: several bright shapes in clutter, small to large, some hidden in part, in COCO's format."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from tdaf.demo import coco_format, layers, scene, shapes
from tdaf.demo.coco_format import Record
from tdaf.demo.layers import Layers
from tdaf.demo.parallel import drawn

# Six that are told apart when small; a hexagon looks like a circle. The ids have gaps, as COCO's have.
CATEGORIES = {"circle": 1, "square": 2, "triangle": 4, "cross": 7, "ring": 8, "crescent": 13}
NAMES = tuple(CATEGORIES)
_ROUND = ("circle", "ring", "crescent")
_CROWD = len(NAMES) + 1  # the crowd's number in the layers; the shapes' are 1..6
_LEAST = 0.25  # share of a shape that must be seen, or it is left out of the picture


@dataclass(frozen=True)
class Piece:
    """A polygon of the picture. number: in the layers, 0 for clutter."""

    name: str
    points: shapes.Points
    number: int


@dataclass(frozen=True)
class Scene:
    """A drawn picture, its pieces from back to front, and its annotations without ids."""

    image: Image.Image
    pieces: list[Piece]
    annotations: list[Record]


def sample(seed: int, split: str, index: int, size: int) -> Scene:
    """Sample `index`: 1 to 6 shapes, a short side of 0.9 to 1.1 of `size` pixels, an aspect of up to 4:3 either way.

    One in thirty holds no shape; one in forty holds a heap of tiny shapes, annotated as one crowd. The shape in front
    is that of `NAMES[index % 6]`, so that six samples hold every class."""
    rng = scene.generator(seed, split, index)
    frame = scene.frame(rng, size, 4 / 3)
    ground = scene.ground_colours(rng)
    image = scene.textured(rng, ground, *frame)
    # Fragments stay smaller than the smallest shape.
    reach = 0.13 * size
    colours = np.concatenate([ground, scene.figure_colours(rng, ground)])
    scene.clutter(rng, image, int(rng.integers(6, 16)), reach, colours)
    heap = _heap(rng, frame, size) if index % 40 == 20 else []
    pieces = _shapes(rng, frame, size, NAMES[index % len(NAMES)], heap) if index % 30 != 29 else []
    pieces += heap
    front = scene.strewn(rng, frame, int(rng.integers(0, 5)), 0.7 * reach, ground)
    pieces += [Piece("", points, 0) for points, _ in front]
    pieces, top = _well_seen(pieces, frame)
    _paint(rng, image, [piece for piece in pieces if piece.number], ground)
    for points, colour in front:
        scene.paste(image, points, colour)
    return Scene(scene.grain(rng, image, rng.uniform(2, 8)), pieces, _annotations(pieces, top))


def write(folder: Path, seed: int, train: int, val: int, size: int) -> None:
    """`annotations/instances_{train,val}2017.json` and `{train,val}2017/*.jpg`."""
    categories = [
        {"supercategory": "round" if name in _ROUND else "angular", "id": number, "name": name}
        for name, number in CATEGORIES.items()
    ]
    for split, count in (("train", train), ("val", val)):
        (folder / f"{split}2017").mkdir(parents=True)
        entries = drawn(partial(_entry, folder, seed, split, size=size), count)
        path = folder / "annotations" / f"instances_{split}2017.json"
        coco_format.write_annotations(path, entries, categories)


def _entry(folder: Path, seed: int, split: str, index: int, size: int) -> tuple[Record, list[Record]]:
    drawing = sample(seed, split, index, size)
    return coco_format.save_image(folder, split, index, drawing.image), drawing.annotations


def _shapes(
    rng: np.random.Generator, frame: tuple[int, int], size: int, front: str, heap: list[Piece]
) -> list[Piece]:
    """1 to 6 shapes, the large ones mostly behind, apart from `heap` if they can be; the last has the name `front`."""
    count = rng.choice(6, p=[0.18, 0.22, 0.22, 0.18, 0.12, 0.08]) + 1
    sides: list[float] = []
    for _ in range(count):
        # COCO's limits between small, medium and large, 32 and 96 pixels, are 0.25 and 0.75 of a size of 128.
        shares = [0.25, 0.6, 0.15] if count <= 3 and not heap else [0.35, 0.65, 0.0]
        low, high = ((0.15, 0.24), (0.26, 0.58), (0.78, 0.92))[rng.choice(3, p=shares)]
        sides.append(size * math.exp(rng.uniform(math.log(low), math.log(high))))
    sides.sort(key=lambda side: -side * rng.uniform(0.7, 1.4))
    names = [*rng.choice(NAMES, size=len(sides) - 1).tolist(), front]
    pieces: list[Piece] = []
    for number, (name, side) in enumerate(zip(names, sides, strict=True), start=1):
        aspect = math.exp(rng.uniform(-0.15, 0.15))
        points = shapes.place(shapes.outline(name, rng), (0.0, 0.0), shapes.turn(name, rng), side * side, aspect)
        overhang = 0.35 if rng.random() < 0.2 else 0.0
        taken = [shapes.box(piece.points) for piece in pieces + heap]
        pieces.append(Piece(name, points + scene.spot(rng, shapes.box(points), frame, taken, overhang), number))
    return pieces


def _heap(rng: np.random.Generator, frame: tuple[int, int], size: int) -> list[Piece]:
    """Tiny shapes of one class, close together."""
    name = str(rng.choice(NAMES))
    reach = size * rng.uniform(0.14, 0.22)
    centre = reach + rng.random(2) * (np.array(frame) - 2 * reach)
    heap = []
    for place in centre + reach * rng.uniform(-1, 1, size=(rng.integers(14, 25), 2)):
        covered = (size * rng.uniform(0.05, 0.075)) ** 2
        points = shapes.place(shapes.outline(name, rng), (place[0], place[1]), shapes.turn(name, rng), covered)
        heap.append(Piece(name, points, _CROWD))
    return heap


def _covered(pieces: list[Piece], frame: tuple[int, int]) -> np.ndarray:
    seen = Layers(*frame)
    for piece in pieces:
        seen.cover(piece.points, piece.number)
    return seen.numbers()


def _well_seen(pieces: list[Piece], frame: tuple[int, int]) -> tuple[list[Piece], np.ndarray]:
    """The pieces without the shapes of which too little is seen, and what is on top then.

    Drawn but not annotated, such a shape would be learnt as ground."""
    top = _covered(pieces, frame)

    def seen(piece: Piece) -> bool:
        if piece.number in (0, _CROWD):
            return True
        return layers.area(top == piece.number) >= _LEAST * shapes.area(piece.points)

    kept = [piece for piece in pieces if seen(piece)]
    return kept, top if len(kept) == len(pieces) else _covered(kept, frame)


def _colours(rng: np.random.Generator, name: str, ground: np.ndarray) -> np.ndarray:
    """Two kindred colours (2, 3): of a class in its own sixth of the hues, of clutter in any.

    Classes have hues as fruit have: outlines alone take a detector longer to learn than a demo may last. As clutter has
    all of them, it still takes the outline to tell an object."""
    if not name:
        return scene.figure_colours(rng, ground)
    hue = NAMES.index(name) / len(NAMES)
    offers = [scene.hued(rng, hue, 0.06) for _ in range(8)]
    # bright against the ground, as all figures are
    return max(offers, key=lambda offer: min(scene.lightness(offer).min() - scene.lightness(ground).max(), 60))


def _paint(rng: np.random.Generator, image: Image.Image, pieces: list[Piece], ground: np.ndarray) -> None:
    """Each shape in the one of two bright colours that differs most from the others' colours."""
    used: list[np.ndarray] = []
    for piece in pieces:
        offers = [_colours(rng, piece.name, ground) for _ in range(2)]
        apart = [min((np.abs(offer - other).sum() for other in used), default=0.0) for offer in offers]
        used.append(offers[int(np.argmax(apart))])
        left, top, right, bottom = shapes.box(piece.points)
        # Only as much texture as the shape needs: a whole picture of it for each would take a third of all time.
        texture = scene.textured(rng, used[-1], math.ceil(right - left) + 1, math.ceil(bottom - top) + 1)
        paint = Image.new("RGB", image.size)
        paint.paste(texture, (math.floor(left), math.floor(top)))
        scene.paste(image, piece.points, paint)


def _annotations(pieces: list[Piece], top: np.ndarray) -> list[Record]:
    records = []
    for number, name in {piece.number: piece.name for piece in pieces if piece.number}.items():
        mask = top == number
        make = coco_format.crowd if number == _CROWD else coco_format.thing
        records.append(make(mask, CATEGORIES[name]))
    return records
