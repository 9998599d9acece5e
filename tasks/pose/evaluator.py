"""Key-point AP of every source of boxes, by the protocol of microsoft/human-pose-estimation.pytorch
(lib/core/function.py, lib/dataset/coco.py, lib/nms/nms.py)."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tasks.coco.annotations import Annotations
from tasks.coco.scoring import score
from tasks.pose.augment import transform
from tasks.pose.simplepose import decode, flip_merged
from tasks.pose.source import person
from tdaf.task import Batch

# column, image id, box score, area of the frame in the image, key points (J, 3): x, y in pixels of the image, score
Record = tuple[int, int, float, float, np.ndarray]


class KeypointAP:
    """Heat maps averaged with the mirror image's, quarter-pixel offset, a person's score the box's times the mean of
    its key points' scores above `threshold`, then OKS-NMS of the persons of an image. COCO's evaluation takes the best
    20 an image.

    Args:
        columns: names of the sources of boxes.
        annotations: of the split. All its images count, also those without a record: an image that could not be read
            has none, and its persons count as missed.
        pairs: left and right key points.
        sigmas: (J,) of OKS, in NMS and in the scores.
        flip_test: whether inputs are pairs, for the protocol's name, as in "gt+flip".
        threshold: key points with a higher score count in a person's.
        nms: similarity (OKS) above which the lower of two persons goes.
    """

    def __init__(
        self,
        columns: Sequence[str],
        annotations: Annotations,
        pairs: Sequence[tuple[int, int]],
        sigmas: Sequence[float],
        flip_test: bool,
        threshold: float = 0.2,
        nms: float = 0.9,
    ) -> None:
        self.columns, self.annotations, self.category = list(columns), annotations, person(annotations)[1]
        self.pairs, self.sigmas, self.threshold, self.nms = pairs, list(sigmas), threshold, nms
        self.protocol = "+".join([*columns, *(["flip"] if flip_test else [])])

    def update(self, outputs: Tensor, batch: Batch) -> list[Record]:
        """outputs: heat maps (B, [2,] J, h, w)."""
        keypoints = in_image(outputs, batch, self.pairs)
        height, width = batch["input"].shape[-2:]
        areas = torch.linalg.det(batch["inverse"][..., :2].cpu()).abs() * (height * width)
        fields = (batch[key].tolist() for key in ("column", "image_id", "box_score"))
        return list(zip(*fields, areas.tolist(), keypoints, strict=True))

    def compute(self, records: list[Record]) -> tuple[dict[str, float], dict[str, str]]:
        """COCO's ten numbers in 0..1 by name, "AP" first (-1 where there is nothing to find): of the first column, and
        with more than one of each as well under "<column>/AP" and so on. And the files keypoints-<column>.json, COCO's
        key-point results, whose digits are cut before they are scored; and columns.md, a table."""
        results = [self.results([record for record in records if record[0] == k]) for k in range(len(self.columns))]
        values = [score(self.annotations, own, "keypoints", self.sigmas).values for own in results]
        files = {
            f"keypoints-{column}.json": json.dumps(own, separators=(",", ":"))
            for column, own in zip(self.columns, results, strict=True)
        }
        boxes = np.bincount([record[0] for record in records], minlength=len(self.columns))
        rows = [
            [f"{self.protocol}, {len(self.annotations)} images", *self.columns],
            ["---", *["---:"] * len(self.columns)],
            ["boxes", *map(str, boxes)],
            ["persons after OKS-NMS", *(str(len(own)) for own in results)],
            *([name, *(f"{own[name]:.3f}" for own in values)] for name in values[0]),
        ]
        table = "".join(f"| {' | '.join(cell.replace('|', '/') for cell in row)} |\n" for row in rows)
        named = zip(self.columns, values, strict=True) if len(values) > 1 else ()
        by_column = {f"{column}/{name}": value for column, own in named for name, value in own.items()}
        return {**values[0], **by_column}, {**files, "columns.md": table}

    def results(self, records: list[Record]) -> list[dict[str, Any]]:
        """Those of one column that OKS-NMS keeps, in COCO's format, the best of each image first."""
        images: dict[int, list[Record]] = {}
        for record in records:
            images.setdefault(record[1], []).append(record)
        results = []
        for image_id, own in images.items():
            keypoints = np.stack([record[4] for record in own])
            areas = np.array([record[3] for record in own])
            scores = rescored(keypoints, np.array([record[2] for record in own]), self.threshold)
            for index in oks_nms(keypoints, scores, areas, self.sigmas, self.nms):
                points = keypoints[index].round(3).ravel().tolist()
                result = {"image_id": image_id, "category_id": self.category, "keypoints": points}
                results.append({**result, "score": round(float(scores[index]), 6)})
        return results


def in_input(outputs: Tensor, batch: Batch, pairs: Sequence[tuple[int, int]]) -> Tensor:
    """Heat maps to key points (B, J, 3): x, y in pixels of the input, and score."""
    maps = flip_merged(outputs, pairs)
    points, scores = decode(maps)
    stride = batch["input"].shape[-1] // maps.shape[-1]
    return torch.cat([points * stride, scores[..., None]], -1)


def in_image(outputs: Tensor, batch: Batch, pairs: Sequence[tuple[int, int]]) -> np.ndarray:
    """Heat maps to key points (B, J, 3) float64 on the CPU: x, y in pixels of the image, and score."""
    points = in_input(outputs, batch, pairs).double().cpu().numpy()
    points[..., :2] = transform(points[..., :2], batch["inverse"].cpu().numpy())
    return points


def rescored(keypoints: np.ndarray, box_scores: np.ndarray, threshold: float) -> np.ndarray:
    """keypoints (K, J, 3), box_scores (K,) -> a person's scores (K,): the box's times the mean of those of the key
    points that are above `threshold`; 0 where none is."""
    scores = keypoints[..., 2]
    counted = scores > threshold
    return box_scores * (scores * counted).sum(1) / np.maximum(counted.sum(1), 1)


def oks(one: np.ndarray, area: float, others: np.ndarray, areas: np.ndarray, sigmas: Sequence[float]) -> np.ndarray:
    """Object key-point similarity (K,) of one person (J, 3) to others (K, J, 3), in 0..1.

    The mean over all key points of exp(-d^2 / (2 s^2 k^2)): d the distance, s^2 the mean of the two persons' areas in
    square pixels, k twice the key point's sigma. Unlike COCO's own evaluation it asks nobody whether a key point is
    visible, as the publication does not.
    """
    squares = np.square(others[..., :2] - one[..., :2]).sum(-1)
    sizes = (area + areas) / 2 + np.spacing(1.0)
    constants = np.square(2 * np.asarray(sigmas, np.float64))
    return np.exp(-squares / (2 * sizes[:, None] * constants)).mean(-1)


def oks_nms(
    keypoints: np.ndarray, scores: np.ndarray, areas: np.ndarray, sigmas: Sequence[float], threshold: float
) -> list[int]:
    """Indices of the persons of one image that are kept, the best first: of two whose similarity is above `threshold`
    the one with the higher score, of equal ones the first. keypoints (K, J, 3), scores (K,), areas (K,)."""
    left = np.argsort(-scores, kind="stable")
    kept = []
    while len(left):
        best, left = int(left[0]), left[1:]
        kept.append(best)
        alike = oks(keypoints[best], float(areas[best]), keypoints[left], areas[left], sigmas)
        left = left[alike <= threshold]
    return kept
