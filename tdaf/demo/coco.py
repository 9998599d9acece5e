"""Demo data in COCO's format: bright shapes in clutter for detection, articulated figures for pose.

Both are scenes of figures, some hidden in part, now and then with a heap or a row of tiny ones that is annotated as one
crowd. What is annotated is what can be seen: a map says which polygon is in front at every quarter pixel; boxes, areas,
masks and hidden joints are read from it."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw
from pycocotools import mask as coco_mask

from tdaf.demo import scene
from tdaf.demo.figure import JOINTS, SKELETON, Figure, Part, random_person
from tdaf.demo.scene import Colour, Points, Rng

Record = dict[str, Any]

# Six shapes that are told apart when small; a hexagon looks like a circle. The ids have gaps, as COCO's have.
SHAPES = {"circle": 1, "square": 2, "triangle": 4, "cross": 7, "ring": 8, "crescent": 13}
NAMES = tuple(SHAPES)
PERSON = 1
RESULTS = Path("person_detection_results") / "detections_val2017.json"

STEPS = 4  # cells of the map along a pixel's side
NUMBERS = 32  # of the map for each figure: part p of figure k has the number 1 + 32 k + p
CROWD = 250  # the crowd's number in the map; ground and clutter have 0
_LEAST = 0.25  # share of a figure that must be seen, or it is left out of the picture
_UNLABELLED: Record = {"keypoints": [0] * (3 * len(JOINTS)), "num_keypoints": 0}


@dataclass(frozen=True)
class Layout:
    """What is where: `figures` from back to front, before them the crowd's, before these the clutter of `front`.

    frame: the picture's width and height."""

    frame: tuple[int, int]
    figures: list[Figure]
    crowd: list[Figure]
    front: list[tuple[Points, Colour]]

    def map(self) -> np.ndarray:
        """(STEPS height, STEPS width) uint8: the number of the polygon in front."""
        numbered = [
            (part.points, 1 + NUMBERS * k + p)
            for k, figure in enumerate(self.figures)
            for p, part in enumerate(figure.parts)
        ]
        numbered += [(part.points, CROWD) for figure in self.crowd for part in figure.parts]
        numbered += [(points, 0) for points, _ in self.front]
        top = Image.new("L", (self.frame[0] * STEPS, self.frame[1] * STEPS))
        pen = ImageDraw.Draw(top)
        for points, number in numbered:
            scene.polygon(pen, points, STEPS, number)
        return np.asarray(top)

    def drop_hidden(self, enough: Callable[[Figure, float], bool]) -> tuple[Layout, np.ndarray]:
        """The layout without the figures of which too little is seen, and its map: drawn but not annotated, they would
        be learnt as ground. enough: whether it is, of a figure and the squared pixels that are seen of it."""
        top = self.map()
        figures = [figure for k, figure in enumerate(self.figures) if enough(figure, area(mask_of(top, k)))]
        if len(figures) == len(self.figures):
            return self, top
        layout = replace(self, figures=figures)
        return layout, layout.map()


@dataclass(frozen=True)
class Scene:
    """A drawn picture. annotations: without ids, one for each figure, then the crowd's."""

    image: Image.Image
    layout: Layout
    annotations: list[Record]


def mask_of(top: np.ndarray, place: int) -> np.ndarray:
    """Where a figure's parts are in front, in cells of the map. Numbers below its first wrap around to large ones."""
    return top - np.uint8(1 + NUMBERS * place) < NUMBERS


def area(mask: np.ndarray) -> float:
    """Squared pixels of a mask in cells of the map."""
    return float(np.count_nonzero(mask) / STEPS**2)


def annotation(mask: np.ndarray, category: int, crowd: bool = False) -> Record:
    """Box and area of a mask in cells of the map, and the run lengths of the pixels of which it covers half or more. A
    crowd is measured in these pixels, as COCO's are."""
    # Pillow's reduce rounds the mean of 16 cells; with 240 for a cell it is a whole number already.
    pixels = np.asarray(Image.fromarray(mask.astype(np.uint8) * np.uint8(240)).reduce(STEPS)) >= 120
    if crowd:
        mask = pixels.repeat(STEPS, axis=0).repeat(STEPS, axis=1)
    columns, rows = np.flatnonzero(mask.any(axis=0)), np.flatnonzero(mask.any(axis=1))
    left, top, right, bottom = columns[0], rows[0], columns[-1] + 1, rows[-1] + 1
    runs = coco_mask.encode(np.asfortranarray(pixels, np.uint8))
    return {
        "category_id": category,
        "bbox": [float(length / STEPS) for length in (left, top, right - left, bottom - top)],
        "area": area(mask),
        "iscrowd": int(crowd),
        "segmentation": {"size": runs["size"], "counts": runs["counts"].decode("ascii")},
    }


def annotations(layout: Layout, top: np.ndarray, categories: dict[str, int]) -> list[Record]:
    """What is seen of each figure, and of the crowd."""
    records = [annotation(mask_of(top, k), categories[figure.name]) for k, figure in enumerate(layout.figures)]
    if layout.crowd:
        records.append(annotation(top == CROWD, categories[layout.crowd[0].name], crowd=True))
    return records


def detection_scene(seed: int, split: str, index: int, size: int) -> Scene:
    """Sample `index`: 1 to 6 shapes, a short side of 0.9 to 1.1 of `size` pixels, an aspect of up to 4:3 either way.

    One in thirty holds no shape; one in forty holds a heap of tiny shapes, annotated as one crowd. The shape in front
    is that of `NAMES[index % 6]`, so that six samples hold every class."""
    rng = scene.generator(seed, split, index)
    frame = scene.frame(rng, size, 4 / 3)
    ground = scene.ground_colours(rng)
    image = scene.texture(rng, ground, *frame)
    reach = 0.13 * size  # fragments stay smaller than the smallest shape
    colours = np.concatenate([ground, scene.figure_colours(rng, ground)])
    scene.clutter(rng, image, int(rng.integers(6, 16)), reach, colours)
    crowd = _heap(rng, frame, size) if index % 40 == 20 else []
    shapes = _shapes(rng, frame, size, NAMES[index % len(NAMES)], crowd) if index % 30 != 29 else []
    front = scene.fragments(rng, frame, int(rng.integers(0, 5)), 0.7 * reach, ground)
    layout = Layout(frame, shapes, crowd, front)
    layout, top = layout.drop_hidden(lambda shape, seen: seen >= _LEAST * scene.area(shape.parts[0].points))
    _paint(rng, image, layout.figures + crowd, ground)
    for points, colour in front:
        scene.paste(image, points, colour)
    return Scene(scene.grain(rng, image, rng.uniform(2, 8)), layout, annotations(layout, top, SHAPES))


def _shapes(rng: Rng, frame: tuple[int, int], size: int, front: str, heap: list[Figure]) -> list[Figure]:
    """1 to 6 shapes, the large ones mostly behind, apart from `heap` if they can be; the last has the name `front`."""
    count = rng.choice(6, p=[0.18, 0.22, 0.22, 0.18, 0.12, 0.08]) + 1
    # COCO's limits between small, medium and large, 32 and 96 pixels, are 0.25 and 0.75 of a size of 128.
    shares = [0.25, 0.6, 0.15] if count <= 3 and not heap else [0.35, 0.65, 0.0]
    sides: list[float] = []
    for _ in range(count):
        low, high = ((0.15, 0.24), (0.26, 0.58), (0.78, 0.92))[rng.choice(3, p=shares)]
        sides.append(size * math.exp(rng.uniform(math.log(low), math.log(high))))
    sides.sort(key=lambda side: -side * rng.uniform(0.7, 1.4))
    names = [*rng.choice(NAMES, size=len(sides) - 1).tolist(), front]
    shapes: list[Figure] = []
    for name, side in zip(names, sides, strict=True):
        points = scene.random_shape(rng, name, side * side, aspect=math.exp(rng.uniform(-0.15, 0.15)))
        shapes.append(_place(rng, Figure(name, [Part(points)]), frame, shapes + heap))
    return shapes


def _place(rng: Rng, figure: Figure, frame: tuple[int, int], others: list[Figure]) -> Figure:
    """The figure at a free spot; a fifth of them may be cut off by the frame."""
    overhang = 0.35 if rng.random() < 0.2 else 0.0
    return figure.moved(0, 1, scene.free_spot(rng, figure.box(), frame, [other.box() for other in others], overhang))


def _heap(rng: Rng, frame: tuple[int, int], size: int) -> list[Figure]:
    """Tiny shapes of one class, close together."""
    name = str(rng.choice(NAMES))
    reach = size * rng.uniform(0.14, 0.22)
    centre = reach + rng.random(2) * (np.array(frame) - 2 * reach)
    heap = []
    for place in centre + reach * rng.uniform(-1, 1, size=(rng.integers(14, 25), 2)):
        points = scene.random_shape(rng, name, covered=(size * rng.uniform(0.05, 0.075)) ** 2)
        heap.append(Figure(name, [Part(points + place)]))
    return heap


def _paint(rng: Rng, image: Image.Image, shapes: list[Figure], ground: np.ndarray) -> None:
    """Each shape in the one of two bright colours that differs most from the others' colours."""
    used: list[np.ndarray] = []
    for shape in shapes:
        offers = [_colours(rng, shape.name, ground) for _ in range(2)]
        apart = [min((np.abs(offer - other).sum() for other in used), default=0.0) for offer in offers]
        used.append(offers[int(np.argmax(apart))])
        left, top, right, bottom = shape.box()
        # Only as much texture as the shape needs: a whole picture of it for each would take a third of all time.
        texture = scene.texture(rng, used[-1], math.ceil(right - left) + 1, math.ceil(bottom - top) + 1)
        paint = Image.new("RGB", image.size)
        paint.paste(texture, (math.floor(left), math.floor(top)))
        scene.paste(image, shape.parts[0].points, paint)


def _colours(rng: Rng, name: str, ground: np.ndarray) -> np.ndarray:
    """Two kindred colours (2, 3) in the class's own sixth of the hues.

    Classes have hues as fruit have: outlines alone take a detector longer to learn than a demo may last. As clutter has
    all of them, it still takes the outline to tell an object."""
    offers = []
    for _ in range(8):
        hues = NAMES.index(name) / len(NAMES) + rng.uniform(-0.06, 0.06, size=2)
        offers.append(np.array([scene.shade(hue, rng.uniform(0.5, 0.95), rng.uniform(0.75, 1.0)) for hue in hues]))
    # bright against the ground, as all figures are
    return max(offers, key=lambda offer: min(scene.lightness(offer).min() - scene.lightness(ground).max(), 60))


def pose_scene(seed: int, split: str, index: int, size: int) -> Scene:
    """Sample `index`: 1 to 4 persons, a short side of 0.9 to 1.1 of `size` pixels, an aspect of up to 4:3 either way.

    One in thirty holds nobody; one in forty holds a row of tiny persons, annotated as one crowd; in one of twenty-five
    the key points of one person are not labelled."""
    rng = scene.generator(seed, split, index)
    frame = scene.frame(rng, size, 4 / 3)
    ground = scene.ground_colours(rng)
    image = scene.texture(rng, ground, *frame)
    scene.clutter(rng, image, int(rng.integers(8, 20)), 0.25 * size, np.concatenate([ground, 1.4 * ground]))
    crowd = _row(rng, frame, size) if index % 40 == 20 else []
    persons = _persons(rng, frame, size) if index % 30 != 29 else []
    front = scene.fragments(rng, frame, int(rng.integers(0, 4)), 0.4 * size, ground)

    def enough(person: Figure, seen: float) -> bool:
        alone = area(Layout(frame, [person], [], []).map() > 0)
        inside = ((person.joints >= 0) & (person.joints < frame)).all(axis=1).sum()
        return inside >= 4 and seen >= _LEAST * alone

    layout, top = Layout(frame, persons, crowd, front).drop_hidden(enough)
    scene.draw(
        image, [(part.points, part.colour) for figure in layout.figures + crowd for part in figure.parts] + front
    )
    records = annotations(layout, top, {"person": PERSON})
    for place, person in enumerate(layout.figures):
        records[place] |= _keypoints(person, top, 1 + NUMBERS * place)
    for record in records[len(layout.figures) :] + records[: index % 25 == 7]:
        record |= _UNLABELLED
    return Scene(scene.grain(rng, image, rng.uniform(2, 8)), layout, records)


def _persons(rng: Rng, frame: tuple[int, int], size: int) -> list[Figure]:
    """1 to 4, the small ones mostly behind."""
    count = rng.choice(4, p=[0.3, 0.3, 0.25, 0.15]) + 1
    low, high = (0.6, 0.95) if count <= 2 else (0.45, 0.75)
    persons: list[Figure] = []
    for tall in sorted(size * rng.uniform(low, high, size=count), key=lambda tall: tall * rng.uniform(0.8, 1.25)):
        degrees = rng.normal(0, 8) if rng.random() < 0.9 else rng.uniform(-80, 80)  # standing, mostly
        person = random_person(rng).moved(float(degrees), float(tall), np.zeros(2))
        persons.append(_place(rng, person, frame, persons))
    return persons


def _row(rng: Rng, frame: tuple[int, int], size: int) -> list[Figure]:
    """Tiny figures side by side."""
    tall, count = size * rng.uniform(0.14, 0.18), int(rng.integers(7, 12))
    start = np.array([rng.uniform(0.1, 0.4) * frame[0], rng.uniform(0.2, 0.8) * frame[1]])
    step = np.array([0.3 * tall, 0.0])
    places = [start + place * step + rng.normal(0, 0.08, size=2) * tall for place in range(count)]
    return [random_person(rng).moved(float(rng.normal(0, 6)), tall, place) for place in places]


def _keypoints(figure: Figure, top: np.ndarray, first: int) -> Record:
    """x, y, v of each joint, x and y the pixel that holds it: 0, 0, 0 outside the picture; v is 1 where it is hidden by
    anything that does not show it, be it of the same figure, else 2. first: the number of the figure's first part."""
    rows, columns = top.shape
    flat: list[int] = []
    for name, (x, y) in zip(JOINTS, figure.joints, strict=True):
        column, row = math.floor(x * STEPS), math.floor(y * STEPS)
        if not (0 <= column < columns and 0 <= row < rows):
            flat += [0, 0, 0]
            continue
        part = int(top[row, column]) - first
        shown = 0 <= part < len(figure.parts) and name in figure.parts[part].joints
        flat += [column // STEPS, row // STEPS, 2 if shown else 1]
    return {"keypoints": flat, "num_keypoints": sum(v > 0 for v in flat[2::3])}


def detections(rng: Rng, image: Record, annotations: list[Record]) -> list[Record]:
    """What a fair detector might find: most persons, some pixels off, and now and then something that is none."""
    frame = np.array([image["width"], image["height"]])
    found = []
    for annotation in annotations:
        if annotation["iscrowd"] or rng.random() < 0.06:
            continue
        corner, size = np.array(annotation["bbox"][:2]), np.array(annotation["bbox"][2:])
        edges = np.concatenate([corner, corner + size]) + rng.normal(0, 0.03, size=4) * np.tile(size, 2)
        found.append((edges, rng.uniform(0.6, 1.0)))
    if rng.random() < 0.3:
        centre, half = rng.random(2) * frame, rng.uniform(0.1, 0.3, size=2) * frame
        found.append((np.concatenate([centre - half, centre + half]), rng.uniform(0.05, 0.4)))
    records = []
    for edges, score in found:
        left, top, right, bottom = np.clip(edges, 0, np.tile(frame, 2)).round(2).tolist()
        box = [left, top, round(right - left, 2), round(bottom - top, 2)]
        records.append({"image_id": image["id"], "category_id": PERSON, "bbox": box, "score": round(float(score), 4)})
    return records


def write_detection(folder: Path, seed: int, train: int, val: int, size: int) -> None:
    """`annotations/instances_{train,val}2017.json` and `{train,val}2017/*.jpg`."""
    categories = [{"supercategory": "shape", "id": number, "name": name} for name, number in SHAPES.items()]
    for split, count in (("train", train), ("val", val)):
        scenes = (detection_scene(seed, split, index, size) for index in range(count))
        _write_split(folder, "instances", split, scenes, categories)


def write_pose(folder: Path, seed: int, train: int, val: int, size: int) -> None:
    """`annotations/person_keypoints_{train,val}2017.json`, `{train,val}2017/*.jpg`, and `RESULTS`, a detector's boxes
    for the validation pictures in COCO's results format."""
    person = {"supercategory": "person", "id": PERSON, "name": "person", "keypoints": JOINTS, "skeleton": SKELETON}
    for split, count in (("train", train), ("val", val)):
        scenes = (pose_scene(seed, split, index, size) for index in range(count))
        entries = _write_split(folder, "person_keypoints", split, scenes, [person])
    # The last entries are the validation pictures'.
    results = [detections(scene.generator(seed, "detections", index), *entry) for index, entry in enumerate(entries)]
    _write_json(folder / RESULTS, sum(results, []))


def _write_split(
    folder: Path, kind: str, split: str, scenes: Iterable[Scene], categories: list[Record]
) -> list[tuple[Record, list[Record]]]:
    """The pictures, `<split>2017/<id in 12 digits>.jpg`, and their annotation file; returns what it says of each."""
    (folder / f"{split}2017").mkdir(parents=True)
    entries, annotations = [], []
    for index, drawn in enumerate(scenes):
        number = 7 * index + {"train": 9, "val": 12}[split]  # gaps between the ids, as in COCO, and none twice
        name, (width, height) = f"{number:012d}.jpg", drawn.image.size
        drawn.image.save(folder / f"{split}2017" / name, "JPEG", quality=90)
        image = {"license": 1, "file_name": name, "height": height, "width": width, "id": number}
        annotations += [{**annotation, "image_id": number} for annotation in drawn.annotations]
        entries.append((image, drawn.annotations))
    content = {
        "info": {"description": "drawn demo data in COCO's format", "version": "1.0", "year": 2017},
        "licenses": [{"id": 1, "name": "MIT", "url": ""}],
        "images": [image for image, _ in entries],
        "annotations": [{**annotation, "id": number} for number, annotation in enumerate(annotations, start=1)],
        "categories": categories,
    }
    _write_json(folder / "annotations" / f"{kind}_{split}2017.json", content)
    return entries


def _write_json(path: Path, content: Record | list[Record]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, separators=(",", ":")), encoding="utf-8")
