"""Persons found twice: object key-point similarity, and suppression by it (microsoft/human-pose-estimation.pytorch,
lib/nms/nms.py, lib/dataset/coco.py). Key points are (..., J, 3): x, y in pixels of the image, and score.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def rescored(keypoints: Array, box_scores: Array, threshold: float) -> Array:
    """keypoints (K, J, 3), box_scores (K,) -> a person's scores (K,): the box's times the mean of those of the key
    points that are above `threshold`; 0 where none is."""
    scores = keypoints[..., 2]
    counted = scores > threshold
    return box_scores * (scores * counted).sum(1) / np.maximum(counted.sum(1), 1)


def oks(one: Array, area: float, others: Array, areas: Array, sigmas: Sequence[float]) -> Array:
    """Object key-point similarity (K,) of one person (J, 3) to others (K, J, 3), in 0..1.

    The mean over all key points of exp(-d^2 / (2 s^2 k^2)): d the distance, s^2 the mean of the two persons' areas in
    square pixels, k twice the key point's sigma. Unlike COCO's own evaluation it asks nobody whether a key point is
    visible, as the publication does not.
    """
    squares = np.square(others[..., :2] - one[..., :2]).sum(-1)
    sizes = (area + areas) / 2 + np.spacing(1.0)
    constants = np.square(2 * np.asarray(sigmas, np.float64))
    return np.exp(-squares / (2 * sizes[:, None] * constants)).mean(-1)


def oks_nms(keypoints: Array, scores: Array, areas: Array, sigmas: Sequence[float], threshold: float) -> list[int]:
    """Places of the persons of one image that are kept, the best first: of two whose similarity is above `threshold`
    the one with the higher score, of equal ones the first. keypoints (K, J, 3), scores (K,), areas (K,)."""
    left = np.argsort(-scores, kind="stable")
    kept = []
    while len(left):
        best, left = int(left[0]), left[1:]
        kept.append(best)
        alike = oks(keypoints[best], float(areas[best]), keypoints[left], areas[left], sigmas)
        left = left[alike <= threshold]
    return kept
