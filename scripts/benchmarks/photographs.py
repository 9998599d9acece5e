"""JPEG files with the size and the compressibility of ImageNet's, drawn from a seed."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

CLASSES = ("class0", "class1")
SIZES = ((375, 500), (333, 500), (500, 375), (375, 500), (400, 500))  # height, width
QUALITIES = (92, 95, 90)
GRAIN = 9.0  # deviation of the noise, out of 255: brings a file to about 100 KB


def write_photographs(root: Path, count: int) -> float:
    """`count` files as train/ of an image folder with two classes, val/ is empty. Returns their mean size in bytes."""
    for split, name in itertools.product(("train", "val"), CLASSES):
        (root / split / name).mkdir(parents=True)
    generator = np.random.default_rng(0)
    written = 0
    for number in range(count):
        pixels = photograph(*SIZES[number % len(SIZES)], generator)
        path = root / "train" / CLASSES[number % 2] / f"{number:04d}.JPEG"
        Image.fromarray(pixels).save(path, quality=QUALITIES[number % len(QUALITIES)])
        written += path.stat().st_size
    return written / count


def photograph(height: int, width: int, generator: np.random.Generator) -> np.ndarray:
    """Colour at four scales, the coarse ones strongest, some hard edges, and grain: uint8 (H, W, 3)."""
    image = torch.zeros(1, 3, height, width)
    for scale in (4, 8, 32, 128):
        coarse = generator.random((1, 3, max(2, height // scale), max(2, width // scale)), dtype=np.float32)
        image += F.interpolate(torch.from_numpy(coarse), size=(height, width), mode="bicubic") * scale**0.5
    image = (image - image.min()) / (image.max() - image.min()) * 255
    pixels = image[0].permute(1, 2, 0).numpy()
    for _ in range(6):
        top, left = generator.integers(0, height), generator.integers(0, width)
        tall, wide = generator.integers(max(1, height // 20), 1 + height // 2, 2)
        pixels[top : top + tall, left : left + wide] += generator.normal(0, 40, 3)
    pixels = pixels + generator.normal(0, GRAIN, (height, width, 1))
    return pixels.clip(0, 255).astype(np.uint8)
