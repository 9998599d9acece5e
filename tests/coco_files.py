"""Small data sets in COCO's format for the tests: documents, files, images."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

Document = dict[str, list[dict[str, Any]]]


def document() -> Document:
    """Three images and four objects; ids out of order and with gaps, as in COCO."""
    images = [
        {"id": 30, "file_name": "c.jpg", "height": 40, "width": 60, "license": 1},
        {"id": 10, "file_name": "a.jpg", "height": 50, "width": 50},
        {"id": 20, "file_name": "folder/bb.jpg", "height": 64, "width": 48},
    ]
    categories = [{"id": 7, "name": "cup"}, {"id": 3, "name": "dog"}, {"id": 90, "name": "book"}]
    rows = [
        (105, 30, 90, [10.5, 5, 20, 30.25], 300.5, 0),
        (101, 10, 3, [0, 0, 50, 50], 2000, 1),
        (103, 30, 7, [1, 2, 3, 4], 11, 0),
        (102, 10, 7, [30, 20, 10, 10], 90, 0),
    ]
    keys = ("id", "image_id", "category_id", "bbox", "area", "iscrowd")
    annotations = [{**dict(zip(keys, row, strict=True)), "segmentation": [[1, 2, 3, 4, 5, 6]]} for row in rows]
    return {"images": images, "annotations": annotations, "categories": categories}


def drawn(images: int, objects: int, classes: int = 3, seed: int = 0, joints: int = 0) -> Document:
    """Random objects of all sizes, a few crowds, in images of 300 to 640 pixels; with `joints` key points each."""
    rng = np.random.default_rng(seed)
    sizes = rng.integers(300, 641, (images, 2)).tolist()
    places = [
        {"id": number, "file_name": f"{number:012d}.jpg", "height": height, "width": width}
        for number, (height, width) in zip(range(3, 7 * images, 7), sizes, strict=True)
    ]
    found = []
    for number in range(1, objects + 1):
        image = places[rng.integers(images)]
        w, h = (2 + rng.random(2) ** 3 * [image["width"] - 2, image["height"] - 2]).round(2).tolist()
        x, y = (rng.random(2) * [image["width"] - w, image["height"] - h]).round(2).tolist()
        entry = {"id": number, "image_id": image["id"], "category_id": 10 * int(rng.integers(classes)) + 1}
        entry |= {"bbox": [x, y, w, h], "area": round(w * h * 0.7, 4), "iscrowd": int(rng.random() < 0.05)}
        if joints:
            state = rng.integers(0, 3, joints) * (rng.random() > 0.1)
            points = np.stack([x + rng.random(joints) * w, y + rng.random(joints) * h, state], 1).round()
            entry |= {"keypoints": (points * (state > 0)[:, None]).ravel().tolist()}
            entry |= {"num_keypoints": int((state > 0).sum())}
        found.append(entry)
    categories: list[dict[str, Any]] = [{"id": 10 * k + 1, "name": f"class {k}"} for k in range(classes)]
    if joints:
        categories[0] |= {"keypoints": [f"joint {k}" for k in range(joints)], "skeleton": [[1, 2], [2, joints]]}
    return {"images": places, "annotations": found, "categories": categories}


def save(path: Path, content: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def save_images(folder: Path, content: Document) -> None:
    """A picture of its own for each image of the document, smooth enough to be small."""
    for number, image in enumerate(content["images"]):
        path = folder / image["file_name"]
        path.parent.mkdir(parents=True, exist_ok=True)
        coarse = np.random.default_rng(number).integers(0, 256, (4, 4, 3), np.uint8)
        Image.fromarray(coarse).resize((image["width"], image["height"])).save(path)


def save_set(root: Path, train: Document, val: Document) -> Path:
    """COCO 2017's layout."""
    for split, content in (("train", train), ("val", val)):
        save(root / f"annotations/instances_{split}2017.json", content)
        save_images(root / f"{split}2017", content)
    return root
