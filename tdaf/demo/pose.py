"""Demo data for pose: articulated figures in clutter, several a picture, in COCO's key-point format."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from tdaf.demo import coco_format, layers, scene, shapes
from tdaf.demo.coco_format import Record
from tdaf.demo.figure import JOINTS, SKELETON, Figure, standing
from tdaf.demo.layers import STEPS, Layers
from tdaf.demo.parallel import drawn

PERSON = 1
RESULTS = Path("person_detection_results") / "detections_val2017.json"
NUMBERS = 32  # of the layers for each figure: part p of figure k has the number 1 + 32 k + p
_CROWD = 250
_UNLABELLED: Record = {"keypoints": [0] * (3 * len(JOINTS)), "num_keypoints": 0}
_LEAST = 0.25  # share of a figure that must be seen, or it is left out of the picture


@dataclass(frozen=True)
class Layout:
    """What is where: `figures` from back to front, before them the crowd's, before these the clutter of `front`.

    frame: the picture's width and height."""

    frame: tuple[int, int]
    figures: list[Figure]
    crowd: list[Figure]
    front: list[tuple[shapes.Points, scene.Colour]]


@dataclass(frozen=True)
class Scene:
    """A drawn picture. annotations: without ids, one for each figure, then the crowd's."""

    image: Image.Image
    layout: Layout
    annotations: list[Record]


def sample(seed: int, split: str, index: int, size: int) -> Scene:
    """Sample `index`: 1 to 4 figures, a short side of 0.9 to 1.1 of `size` pixels, an aspect of up to 4:3 either way.

    One in thirty holds nobody; one in forty holds a row of tiny figures, annotated as one crowd; in one of twenty-five
    the key points of one person are not labelled."""
    rng = scene.generator(seed, split, index)
    frame = scene.frame(rng, size, 4 / 3)
    ground = scene.ground_colours(rng)
    image = scene.textured(rng, ground, *frame)
    scene.clutter(rng, image, int(rng.integers(8, 20)), 0.25 * size, np.concatenate([ground, 1.4 * ground]))
    crowd = _row(rng, frame, size) if index % 40 == 20 else []
    figures = _figures(rng, frame, size) if index % 30 != 29 else []
    front = scene.strewn(rng, frame, int(rng.integers(0, 4)), 0.4 * size, ground)
    layout, top = _well_seen(Layout(frame, figures, crowd, front))
    parts = [(part.points, part.colour) for figure in layout.figures + crowd for part in figure.parts]
    scene.draw(image, parts + front)
    annotations = _annotations(layout, top)
    if index % 25 == 7 and annotations:
        annotations[0] |= _UNLABELLED
    return Scene(scene.grain(rng, image, rng.uniform(2, 8)), layout, annotations)


def write(folder: Path, seed: int, train: int, val: int, size: int) -> None:
    """`annotations/person_keypoints_{train,val}2017.json`, `{train,val}2017/*.jpg`, and `RESULTS`, a detector's boxes
    for the validation pictures in COCO's results format."""
    person = {"supercategory": "person", "id": PERSON, "name": "person", "keypoints": JOINTS, "skeleton": SKELETON}
    for split, count in (("train", train), ("val", val)):
        (folder / f"{split}2017").mkdir(parents=True)
        entries = drawn(partial(_entry, folder, seed, split, size=size), count)
        path = folder / "annotations" / f"person_keypoints_{split}2017.json"
        coco_format.write_annotations(path, entries, [person])
    # The last entries are the validation pictures'.
    results = [detected(scene.generator(seed, "detections", index), *entry) for index, entry in enumerate(entries)]
    coco_format.write_json(folder / RESULTS, sum(results, []))


def _entry(folder: Path, seed: int, split: str, index: int, size: int) -> tuple[Record, list[Record]]:
    drawing = sample(seed, split, index, size)
    return coco_format.save_image(folder, split, index, drawing.image), drawing.annotations


def detected(rng: np.random.Generator, image: Record, annotations: list[Record]) -> list[Record]:
    """What a fair detector might find: most persons, some pixels off, and now and then something that is none."""
    width, height = image["width"], image["height"]
    found = []
    for annotation in annotations:
        if annotation["iscrowd"] or rng.random() < 0.06:
            continue
        left, top, wide, tall = annotation["bbox"]
        edges = np.array([left, top, left + wide, top + tall]) + rng.normal(0, 0.03, size=4) * [wide, tall, wide, tall]
        found.append((edges, rng.uniform(0.6, 1.0)))
    if rng.random() < 0.3:
        centre, half = rng.random(2) * (width, height), rng.uniform(0.1, 0.3, size=2) * (width, height)
        found.append((np.concatenate([centre - half, centre + half]), rng.uniform(0.05, 0.4)))
    records = []
    for edges, score in found:
        left, top, right, bottom = np.clip(edges, 0, (width, height, width, height)).round(2).tolist()
        box = [left, top, round(right - left, 2), round(bottom - top, 2)]
        records.append({"image_id": image["id"], "category_id": PERSON, "bbox": box, "score": round(float(score), 4)})
    return records


def _figures(rng: np.random.Generator, frame: tuple[int, int], size: int) -> list[Figure]:
    """1 to 4 figures, the small ones mostly behind; a fifth of them may be cut off by the frame."""
    count = rng.choice(4, p=[0.3, 0.3, 0.25, 0.15]) + 1
    low, high = (0.6, 0.95) if count <= 2 else (0.45, 0.75)
    figures: list[Figure] = []
    for tall in sorted(size * rng.uniform(low, high, size=count), key=lambda tall: tall * rng.uniform(0.8, 1.25)):
        # Standing, mostly.
        degrees = rng.normal(0, 8) if rng.random() < 0.9 else rng.uniform(-80, 80)
        figure = standing(rng).moved(float(degrees), float(tall), np.zeros(2))
        overhang = 0.35 if rng.random() < 0.2 else 0.0
        shift = scene.spot(rng, figure.box(), frame, [other.box() for other in figures], overhang)
        figures.append(figure.moved(0.0, 1.0, shift))
    return figures


def _row(rng: np.random.Generator, frame: tuple[int, int], size: int) -> list[Figure]:
    """Tiny figures side by side."""
    tall, count = size * rng.uniform(0.14, 0.18), int(rng.integers(7, 12))
    start = np.array([rng.uniform(0.1, 0.4) * frame[0], rng.uniform(0.2, 0.8) * frame[1]])
    step = np.array([0.3 * tall, 0.0])
    places = [start + place * step + rng.normal(0, 0.08, size=2) * tall for place in range(count)]
    return [standing(rng).moved(float(rng.normal(0, 6)), tall, place) for place in places]


def _covered(layout: Layout) -> np.ndarray:
    seen = Layers(*layout.frame)
    for place, figure in enumerate(layout.figures):
        for number, part in enumerate(figure.parts, start=1 + NUMBERS * place):
            seen.cover(part.points, number)
    for figure in layout.crowd:
        for part in figure.parts:
            seen.cover(part.points, _CROWD)
    for points, _ in layout.front:
        seen.cover(points, 0)
    return seen.numbers()


def _of(place: int, top: np.ndarray) -> np.ndarray:
    """The mask of a figure. Numbers below the first wrap around to large ones."""
    return top - np.uint8(1 + NUMBERS * place) < NUMBERS


def _well_seen(layout: Layout) -> tuple[Layout, np.ndarray]:
    """Without the figures of which too much is hidden, or all but nothing inside; and what is on top then."""
    top = _covered(layout)
    kept = []
    for place, figure in enumerate(layout.figures):
        alone = layers.area(_covered(Layout(layout.frame, [figure], [], [])) > 0)
        inside = ((figure.joints >= 0) & (figure.joints < layout.frame)).all(axis=1).sum()
        if inside >= 4 and layers.area(_of(place, top)) >= _LEAST * alone:
            kept.append(figure)
    if len(kept) == len(layout.figures):
        return layout, top
    layout = Layout(layout.frame, kept, layout.crowd, layout.front)
    return layout, _covered(layout)


def _annotations(layout: Layout, top: np.ndarray) -> list[Record]:
    records = []
    for place, figure in enumerate(layout.figures):
        points = _keypoints(figure, top, 1 + NUMBERS * place)
        labelled = sum(v > 0 for v in points[2::3])
        records.append({**coco_format.thing(_of(place, top), PERSON), "keypoints": points, "num_keypoints": labelled})
    if layout.crowd:
        records.append({**coco_format.crowd(top == _CROWD, PERSON), **_UNLABELLED})
    return records


def _keypoints(figure: Figure, top: np.ndarray, first: int) -> list[int]:
    """x, y, v of each joint, x and y the pixel that holds it: 0, 0, 0 outside the picture; v is 1 where it is hidden by
    anything that does not show it, be it of the same figure, and else 2."""
    rows, columns = top.shape
    flat = []
    for joint, (x, y) in enumerate(figure.joints):
        column, row = math.floor(x * STEPS), math.floor(y * STEPS)
        if not (0 <= column < columns and 0 <= row < rows):
            flat += [0, 0, 0]
            continue
        part = int(top[row, column]) - first
        shown = 0 <= part < len(figure.parts) and joint in figure.parts[part].shows
        flat += [column // STEPS, row // STEPS, 2 if shown else 1]
    return flat
