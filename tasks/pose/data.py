"""One sample a person: cut out of its image, its key points moved along."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import default_collate

from tasks.coco.source import CocoSplit
from tasks.pose.augment import Augmentation
from tasks.pose.boxes import NONE, People
from tasks.pose.crop import affine, crop, framed, inverse, mirrored, transform
from tasks.pose.skeleton import flip_pairs, legs
from tdaf.task import Batch


class Persons:
    """The boxes of one or more sources, one source after the other; `samples[i]` has

    "input": uint8 RGB (3, H, W), or (2, 3, H, W) with flip_test, the second its mirror image.
    "joints": (J, 3) float32, x y in pixels of the input and 1 where labelled, else 0 (a point outside the input stays
    where it is: its heat map may still show the rim of it, see `heatmaps.encode`). Zeros for a detector's box.
    "inverse": (2, 3) float64, from input to image; "box": (4,) float32, x1 y1 x2 y2; "box_score".
    "image_id", "annotation_id" (-1 for a detector's box), "column": the source's place.

    names: of the key points. augment: None for evaluation.
    """

    groups = None

    def __init__(
        self,
        split: CocoSplit,
        sources: Sequence[People],
        size: tuple[int, int],
        names: Sequence[str],
        augment: Augmentation | None = None,
        flip_test: bool = False,
    ) -> None:
        self.split, self.size, self.augment, self.flip_test = split, size, augment, flip_test
        self.images, self.boxes, self.scores, self.rows = (
            np.concatenate([getattr(source, field) for source in sources])
            for field in ("images", "boxes", "scores", "rows")
        )
        self.columns = np.repeat(np.arange(len(sources)), [len(source) for source in sources])
        self.skipped = sum(source.skipped for source in sources)
        self.notes = dict(split.annotations.notes)
        for source in sources:
            self.notes |= source.notes
        self.legs, self.order = legs(names), mirrored(len(names), flip_pairs(names))
        self._latest: tuple[int, Tensor] | None = None

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> dict[str, Any]:
        place, row, box = int(self.images[index]), int(self.rows[index]), self.boxes[index]
        image = self._image(place)
        if self.augment is None:
            sample = prepared(image, box, self.size, self.flip_test)
            joints = transformed(self._joints(row), inverse(sample["inverse"]))
        else:
            sample, joints = self._augmented(image, box, self._joints(row))
        table = self.split.annotations.table
        return {
            **sample,
            "joints": torch.from_numpy(joints.astype(np.float32)),
            "box_score": float(self.scores[index]),
            "image_id": int(self.split.annotations.image_ids[place]),
            "annotation_id": NONE if row == NONE else int(table.ids[row]),
            "column": int(self.columns[index]),
        }

    def name(self, index: int) -> str:
        """The image's path below the root, as a skip list has it."""
        return self.split.name(int(self.images[index]))

    def collate(self, samples: list[dict[str, Any]]) -> Batch:
        return default_collate(samples)

    def _image(self, place: int) -> Tensor:
        """Persons of one image follow each other in evaluation: it is decoded once for all of them."""
        if self._latest is None or self._latest[0] != place:
            self._latest = place, self.split.read(place)
        return self._latest[1]

    def _joints(self, row: int) -> np.ndarray:
        points = self.split.annotations.table.keypoints
        if row == NONE or points is None:
            return np.zeros((len(self.order), 3))
        joints = points[row].astype(np.float64)
        joints[:, 2] = joints[:, 2] > 0
        return joints

    def _augmented(self, image: Tensor, box: np.ndarray, joints: np.ndarray) -> tuple[dict[str, Any], np.ndarray]:
        assert self.augment is not None
        centre, extent, rotation, flip = self.augment(box, joints, self.legs, self.size)
        matrix = affine(centre, extent, self.size, rotation, flip)
        joints = transformed(joints, matrix)
        return _sample(image, box, matrix, self.size, False), joints[self.order] if flip else joints


def prepared(image: Tensor, box: np.ndarray, size: tuple[int, int], flip_test: bool) -> dict[str, Any]:
    """A person as evaluation and predict take it: "input", "inverse" and "box" of a sample of `Persons`."""
    return _sample(image, box, affine(*framed(box, size), size), size, flip_test)


def transformed(joints: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """(J, 3) moved by a (2, 3); what is not labelled is all zeros."""
    return np.concatenate([transform(joints[:, :2], matrix), joints[:, 2:]], 1) * (joints[:, 2:] > 0)


def _sample(image: Tensor, box: np.ndarray, matrix: np.ndarray, size: tuple[int, int], views: bool) -> dict[str, Any]:
    pixels = crop(image, matrix, size)
    pixels = torch.stack([pixels, pixels.flip(-1)]) if views else pixels
    corners = torch.as_tensor(box, dtype=torch.float32)
    return {"input": pixels, "inverse": torch.from_numpy(inverse(matrix)), "box": corners}
