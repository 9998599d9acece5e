"""A key-point data set of a few small images in COCO's layout, written by a test."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from tasks.pose.source import COCO

WIDTH, HEIGHT = 160, 120
BODY = np.array(  # the joints of a standing person, in parts of the box's sides
    [
        (0.50, 0.10), (0.55, 0.07), (0.45, 0.07), (0.62, 0.09), (0.38, 0.09), (0.72, 0.24), (0.28, 0.24), (0.84, 0.40),
        (0.16, 0.40), (0.90, 0.54), (0.10, 0.54), (0.64, 0.55), (0.36, 0.55), (0.66, 0.76), (0.34, 0.76), (0.68, 0.96),
        (0.32, 0.96),
    ]
)  # fmt: skip


def standing(box: tuple[float, float, float, float], hidden: tuple[int, ...] = ()) -> list[float]:
    """COCO's list of 17 key points of a person who fills this box; `hidden` ones are not labelled."""
    points = np.round(np.array(box[:2]) + BODY * np.array(box[2:]))
    rows = [[*point, 2.0] if place not in hidden else [0.0, 0.0, 0.0] for place, point in enumerate(points.tolist())]
    return [value for row in rows for value in row]


def annotation(box: tuple[float, float, float, float], **more: Any) -> dict[str, Any]:
    """A person who fills `box` (x, y, width, height)."""
    points = more.pop("keypoints", None) or standing(box)
    labelled = sum(value > 0 for value in points[2::3])
    entry = {"bbox": list(box), "area": box[2] * box[3], "iscrowd": 0, "category_id": 1}
    return {**entry, "keypoints": points, "num_keypoints": labelled, **more}


def write(
    root: Path,
    images: list[list[dict[str, Any]]],
    names: list[str] | tuple[str, ...] = COCO,
    split: str = "val",
    pictures: list[Image.Image] | None = None,
    first: int = 139,
) -> Path:
    """Annotations of each image; ids of images are `first`, and on by 100. Returns the annotation file."""
    folder = root / f"{split}2017"
    folder.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)
    listed, entries = [], []
    for place, own in enumerate(images):
        number = first + 100 * place
        picture = pictures[place] if pictures else Image.fromarray(noise)
        picture.save(folder / f"{number:012d}.jpg", quality=95, subsampling=0)
        size = {"width": picture.width, "height": picture.height}
        listed.append({"id": number, "file_name": f"{number:012d}.jpg", **size})
        entries += [{"id": len(entries) + k + 1, "image_id": number, **entry} for k, entry in enumerate(own)]
    category = {"id": 1, "name": "person", "keypoints": list(names), "skeleton": [[1, 2]]}
    path = root / "annotations" / f"person_keypoints_{split}2017.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps({"images": listed, "annotations": entries, "categories": [category]}))
    return path
