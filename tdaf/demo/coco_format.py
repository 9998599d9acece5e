"""COCO 2017's files: names, annotation files and their parts."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from tdaf.demo import contour, layers

Record = dict[str, Any]


def image_id(split: str, index: int) -> int:
    """The id of a sample: no two of a data set are equal, and there are gaps between them, as in COCO."""
    return 7 * index + {"train": 9, "val": 12}[split]


def save_image(folder: Path, split: str, index: int, image: Image.Image) -> Record:
    """Writes `<split>2017/<id in 12 digits>.jpg` and returns the entry for "images"."""
    number = image_id(split, index)
    name = f"{number:012d}.jpg"
    image.save(folder / f"{split}2017" / name, "JPEG", quality=90)
    return {"license": 1, "file_name": name, "height": image.height, "width": image.width, "id": number}


def thing(mask: np.ndarray, category: int) -> Record:
    """The annotation of one object, without ids, from its visible part in quarter pixels (see `layers`)."""
    left, top, width, height = layers.box(mask)
    x, y, steps = int(left), int(top), layers.STEPS
    part = mask[y * steps : math.ceil(top + height) * steps, x * steps : math.ceil(left + width) * steps]
    outlines = [outline + [x, y] for outline in contour.polygons(layers.pixels(part))]
    return {
        "category_id": category,
        "bbox": [left, top, width, height],
        "area": layers.area(part),
        "iscrowd": 0,
        "segmentation": [outline.round(2).ravel().tolist() for outline in outlines],
    }


def crowd(mask: np.ndarray, category: int) -> Record:
    """The annotation of a group, without ids: whole pixels, as run lengths."""
    whole = layers.pixels(mask)
    return {
        "category_id": category,
        "bbox": list(layers.box(whole.repeat(layers.STEPS, axis=0).repeat(layers.STEPS, axis=1))),
        "area": int(whole.sum()),
        "iscrowd": 1,
        "segmentation": contour.run_lengths(whole),
    }


def write_annotations(path: Path, entries: list[tuple[Record, list[Record]]], categories: list[Record]) -> None:
    """The annotation file. entries: an image's and its annotations', which get their ids here, from 1 on."""
    listed = [{**annotation, "image_id": image["id"]} for image, own in entries for annotation in own]
    for number, annotation in enumerate(listed, start=1):
        annotation["id"] = number
    info = {"description": "drawn demo data in COCO's format", "url": "", "version": "1.0", "year": 2017}
    content = {
        "info": {**info, "contributor": "tdaf", "date_created": "2017/09/01"},
        "licenses": [{"id": 1, "name": "MIT", "url": ""}],
        "images": [image for image, _ in entries],
        "annotations": listed,
        "categories": categories,
    }
    write_json(path, content)


def write_json(path: Path, content: Record | list[Record]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, separators=(",", ":")), encoding="utf-8")
