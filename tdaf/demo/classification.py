"""Demo data for classification: one large shape in clutter, as an ImageNet folder or as CIFAR-10's batches.

The class is in the outline only: colours, textures, covered area, place and clutter are drawn alike for all classes."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
from PIL import Image

from tdaf.demo import scene, shapes
from tdaf.demo.cifar_pickle import dumps


def label(index: int) -> int:
    """The class of sample `index`; every run of ten samples holds each class once."""
    return index % len(shapes.NAMES)


def figure(rng: np.random.Generator, name: str, width: int, height: int) -> shapes.Points:
    """The shape `name` in pixels: an eighth to a quarter of the short side squared, within the central square."""
    short = min(width, height)
    covered = short * short * rng.uniform(0.12, 0.24)
    aspect = math.exp(rng.uniform(-0.15, 0.15))
    points = shapes.place(shapes.outline(name, rng), (0.0, 0.0), shapes.turn(name, rng), covered, aspect)
    left, top, right, bottom = shapes.box(points)
    # One draw for every class, so that the place says nothing; cut only to keep a wide shape inside.
    wander = rng.uniform(-0.2, 0.2, size=2) * short
    free = np.maximum(0.48 * short - np.array([right, bottom]), 0)
    return points + np.clip(wander, -free, free) + [width / 2, height / 2]


def picture(
    rng: np.random.Generator, name: str, width: int, height: int, pieces: int
) -> tuple[Image.Image, shapes.Points]:
    """An RGB picture of the shape `name`, whole inside the central square that a centre crop keeps, and its outline."""
    ground = scene.ground_colours(rng)
    colours = scene.figure_colours(rng, ground)
    image = scene.textured(rng, ground, width, height)
    short = min(width, height)
    reach = 0.28 * short
    scene.clutter(rng, image, pieces, reach, np.concatenate([ground, colours]))
    points = figure(rng, name, width, height)
    scene.paste(image, points, scene.textured(rng, colours, width, height))
    # A few small ones in front: an outline in the world is rarely unbroken.
    scene.clutter(rng, image, pieces // 5, 0.6 * reach, ground)
    return scene.grain(rng, image, rng.uniform(2, 10)), points


def imagenet_picture(seed: int, split: str, index: int, size: int) -> Image.Image:
    """Sample `index` with a short side of 0.85 to 1.15 of `size` pixels and an aspect of up to 3:2 either way.

    About one in fifty is a grey picture, as in ImageNet."""
    return imagenet_scene(seed, split, index, size)[0]


def imagenet_scene(seed: int, split: str, index: int, size: int) -> tuple[Image.Image, shapes.Points]:
    """`imagenet_picture` and the outline of its shape, (K, 2) x and y in its pixels: where the class is to be seen."""
    rng = scene.generator(seed, split, index)
    short = round(size * rng.uniform(0.85, 1.15))
    long = round(short * rng.uniform(1.0, 1.5))
    width, height = (short, long) if rng.random() < 0.5 else (long, short)
    grey = rng.random() < 0.02
    image, points = picture(rng, shapes.NAMES[label(index)], width, height, pieces=int(rng.integers(8, 25)))
    return image.convert("L") if grey else image, points


def write_imagenet(folder: Path, seed: int, train: int, val: int, size: int) -> None:
    """`train/<wnid>/<wnid>_<n>.JPEG`, `val/<wnid>/ILSVRC2012_val_<n>.JPEG`, and `classes.txt`: a line "wnid name" a
    class. The wnids n00000001..n00000010 stand for `shapes.NAMES` in that order."""
    wnids = [f"n{number:08d}" for number in range(1, len(shapes.NAMES) + 1)]
    for split, count in (("train", train), ("val", val)):
        for wnid in wnids:
            (folder / split / wnid).mkdir(parents=True)
        for index in range(count):
            wnid = wnids[label(index)]
            file = f"{wnid}_{index}.JPEG" if split == "train" else f"ILSVRC2012_val_{index + 1:08d}.JPEG"
            imagenet_picture(seed, split, index, size).save(folder / split / wnid / file, "JPEG", quality=90)
    lines = [f"{wnid} {name}\n" for wnid, name in zip(wnids, shapes.NAMES, strict=True)]
    (folder / "classes.txt").write_text("".join(lines), encoding="utf-8")


def cifar_picture(seed: int, split: str, index: int, size: int = 32) -> Image.Image:
    """Sample `index`, size x size pixels."""
    rng = scene.generator(seed, split, index)
    return picture(rng, shapes.NAMES[label(index)], size, size, pieces=int(rng.integers(4, 11)))[0]


def write_cifar10(folder: Path, seed: int, train: int, val: int) -> None:
    """`cifar-10-batches-py/` with data_batch_1..5, test_batch and batches.meta, as on the data set's own page; the five
    batches share `train` samples as evenly as can be."""
    batches = folder / "cifar-10-batches-py"
    batches.mkdir(parents=True)
    names = [name.encode() for name in shapes.NAMES]
    cuts = [train * part // 5 for part in range(6)]
    for part in range(1, 6):
        content = _batch(seed, "train", range(cuts[part - 1], cuts[part]), b"training batch %d of 5" % part)
        (batches / f"data_batch_{part}").write_bytes(content)
    (batches / "test_batch").write_bytes(_batch(seed, "val", range(val), b"testing batch 1 of 1"))
    meta = {b"num_cases_per_batch": cuts[1], b"label_names": names, b"num_vis": 3072}
    (batches / "batches.meta").write_bytes(dumps(meta))


def _batch(seed: int, split: str, indices: range, title: bytes) -> bytes:
    data = np.empty((len(indices), 3072), np.uint8)
    for row, index in enumerate(indices):
        data[row] = np.asarray(cifar_picture(seed, split, index)).transpose(2, 0, 1).ravel()
    labels = [label(index) for index in indices]
    files = [b"%s_s_%06d.png" % (shapes.NAMES[label(index)].encode(), index) for index in indices]
    return dumps({b"batch_label": title, b"labels": labels, b"data": data, b"filenames": files})
