"""Demo data for classification: one large shape in clutter, as an ImageNet folder or as CIFAR-10's batches.

The class is in the outline only: colours, textures, covered area, place and clutter are drawn alike for all classes."""

from __future__ import annotations

import math
import pickle
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from tdaf.demo import scene
from tdaf.demo.scene import SHAPES, Points, Rng

SEARCHED = (0.06, 0.1)  # of a searched picture: the smallest and largest part that a shape covers


def label(index: int) -> int:
    """The class of sample `index`; every run of ten samples holds each class once."""
    return index % len(SHAPES)


def figure(rng: Rng, name: str, width: int, height: int) -> Points:
    """The shape `name` in pixels: an eighth to a quarter of the short side squared, within the central square."""
    short = min(width, height)
    points = scene.random_shape(rng, name, short * short * rng.uniform(0.12, 0.24), math.exp(rng.uniform(-0.15, 0.15)))
    left, top, right, bottom = scene.box(points)
    # One draw for every class, so that the place says nothing; cut only to keep a wide shape inside.
    wander = rng.uniform(-0.2, 0.2, size=2) * short
    free = np.maximum(0.48 * short - np.array([right, bottom]), 0)
    return points + np.clip(wander, -free, free) + [width / 2, height / 2]


def picture(rng: Rng, name: str, width: int, height: int, pieces: int) -> tuple[Image.Image, Points]:
    """An RGB picture of the shape `name`, whole inside the central square that a centre crop keeps, and its outline."""
    ground = scene.ground_colours(rng)
    colours = scene.figure_colours(rng, ground)
    image = scene.texture(rng, ground, width, height)
    reach = 0.28 * min(width, height)
    scene.clutter(rng, image, pieces, reach, np.concatenate([ground, colours]))
    points = figure(rng, name, width, height)
    scene.paste(image, points, scene.texture(rng, colours, width, height))
    # A few small ones in front: an outline in the world is rarely unbroken.
    scene.clutter(rng, image, pieces // 5, 0.6 * reach, ground)
    return scene.grain(rng, image, rng.uniform(2, 10)), points


def imagenet_scene(seed: int, split: str, index: int, size: int) -> tuple[Image.Image, Points]:
    """Sample `index` with a short side of 0.85 to 1.15 of `size` pixels and an aspect of up to 3:2 either way, and the
    outline of its shape in the picture's pixels: where the class is to be seen.

    About one in fifty is a grey picture, as in ImageNet."""
    rng = scene.generator(seed, split, index)
    width, height = scene.frame(rng, size, 1.5, spread=0.15)
    grey = rng.random() < 0.02
    image, points = picture(rng, SHAPES[label(index)], width, height, pieces=int(rng.integers(8, 25)))
    return image.convert("L") if grey else image, points


def search_scene(seed: int, split: str, index: int, size: int, others: int) -> tuple[Image.Image, Points]:
    """Sample `index`, `size` x `size` pixels, and the outline of its target: of several shapes the one of another hue.

    The `others` (0 to 3) share a hue and are of any of the ten classes. Which of two opposite hues is the odd one is
    drawn for each picture: neither a hue nor an outline tells the class, the odd hue has to be found over the whole
    picture before the outline that has it is worth looking at. With others=0 nothing has to be found."""
    rng = scene.generator(seed, split, index)
    ground = scene.ground_colours(rng)
    image = scene.texture(rng, ground, size, size)
    scene.clutter(rng, image, int(rng.integers(4, 13)), 0.2 * size, ground)
    odd = rng.choice([0.08, 0.58])  # orange, blue
    outlines = []
    for cell in rng.permutation([(1, 1), (1, 3), (3, 1), (3, 3)])[: others + 1]:
        name, hue = (rng.choice(SHAPES), odd + 0.5) if outlines else (SHAPES[label(index)], odd)
        covered = size * size * rng.uniform(*SEARCHED)
        points = scene.random_shape(rng, name, covered, math.exp(rng.uniform(-0.15, 0.15)))
        outlines.append(points + (cell / 4 + rng.uniform(-0.04, 0.04, size=2)) * size)
        tints = rng.uniform([-0.03, 0.6, 0.7], [0.03, 1.0, 1.0], size=(2, 3))
        colours = np.stack([scene.shade(hue + offset, saturation, value) for offset, saturation, value in tints])
        scene.paste(image, outlines[-1], scene.texture(rng, colours, size, size))
    scene.clutter(rng, image, 2, 0.12 * size, ground)
    return scene.grain(rng, image, rng.uniform(2, 10)), outlines[0]


SCENES = {
    "imagenet": imagenet_scene,
    "search": partial(search_scene, others=3),
    "single": partial(search_scene, others=0),
}


def cifar_picture(seed: int, split: str, index: int) -> Image.Image:
    """Sample `index`, 32 x 32 pixels."""
    rng = scene.generator(seed, split, index)
    return picture(rng, SHAPES[label(index)], 32, 32, pieces=int(rng.integers(4, 11)))[0]


def write_imagenet(folder: Path, seed: int, train: int, val: int, size: int, kind: str = "imagenet") -> None:
    """The pictures of `SCENES[kind]`: `train/<wnid>/<wnid>_<n>.JPEG`, `val/<wnid>/ILSVRC2012_val_<n>.JPEG`, and
    `classes.txt`: a line "wnid name" a class. The wnids n00000001..n00000010 stand for `SHAPES` in that order."""
    wnids = [f"n{number:08d}" for number in range(1, len(SHAPES) + 1)]
    for split, count in (("train", train), ("val", val)):
        for wnid in wnids:
            (folder / split / wnid).mkdir(parents=True)
        for index in range(count):
            wnid = wnids[label(index)]
            file = f"{wnid}_{index}.JPEG" if split == "train" else f"ILSVRC2012_val_{index + 1:08d}.JPEG"
            image, _ = SCENES[kind](seed, split, index, size)
            image.save(folder / split / wnid / file, "JPEG", quality=90)
    lines = [f"{wnid} {name}\n" for wnid, name in zip(wnids, SHAPES, strict=True)]
    (folder / "classes.txt").write_text("".join(lines), encoding="utf-8")


write_search, write_single = partial(write_imagenet, kind="search"), partial(write_imagenet, kind="single")


def write_cifar10(folder: Path, seed: int, train: int, val: int, size: int = 32) -> None:
    """`cifar-10-batches-py/` with data_batch_1..5, test_batch and batches.meta, as on the data set's own page; the five
    batches share `train` samples as evenly as can be. Pictures of this data set have one size, 32."""
    batches = folder / "cifar-10-batches-py"
    batches.mkdir(parents=True)

    def write(name: str, content: dict[str, Any]) -> None:
        # protocol 2, and texts as keys: what every reader of the official files takes (encoding="latin1")
        (batches / name).write_bytes(pickle.dumps(content, protocol=2))

    cuts = [train * part // 5 for part in range(6)]
    for part in range(1, 6):
        batch = _batch(seed, "train", range(cuts[part - 1], cuts[part]))
        write(f"data_batch_{part}", {"batch_label": f"training batch {part} of 5", **batch})
    write("test_batch", {"batch_label": "testing batch 1 of 1", **_batch(seed, "val", range(val))})
    write("batches.meta", {"num_cases_per_batch": cuts[1], "label_names": list(SHAPES), "num_vis": 3072})


def _batch(seed: int, split: str, indices: range) -> dict[str, Any]:
    data = np.empty((len(indices), 3072), np.uint8)
    for row, index in enumerate(indices):
        data[row] = np.asarray(cifar_picture(seed, split, index)).transpose(2, 0, 1).ravel()
    files = [f"{SHAPES[label(index)]}_s_{index:06d}.png" for index in indices]
    return {"labels": [label(index) for index in indices], "data": data, "filenames": files}
