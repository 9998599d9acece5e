"""Key-point AP of every source of boxes, by the protocol of microsoft/human-pose-estimation.pytorch
(lib/core/function.py, lib/dataset/coco.py, lib/nms/nms.py)."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from tasks.coco.annotations import Annotations
from tasks.coco.scoring import score
from tasks.pose.augment import transform
from tasks.pose.simplepose import decode, flip_merged
from tasks.pose.source import person
from tdaf.engine.report import bar, legend, paragraph
from tdaf.engine.report import table as html_table
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


# --- Where key points go wrong: the errors of Ronchi and Perona (2017), by key point and by size of persons

KINDS = ("good", "jitter", "inversion", "swap", "miss", "person not found")
GOOD, NEAR = 0.85, 0.5  # similarity of a key point to where it is, from which on it is good, and is near
FOUND = 0.1  # OKS from which on a person may be one that is annotated
SIZES = (
    ("small", 0, 32**2),
    ("medium", 32**2, 96**2),
    ("large", 96**2, np.inf),
)  # COCO's, square pixels of the outline


class Errors(NamedTuple):
    """Of every labelled key point (K,): which it is; its person's number and area; its place in `KINDS`; its distance
    in parts of the area's square root, NaN where the person was not found."""

    joints: np.ndarray
    persons: np.ndarray
    areas: np.ndarray
    kinds: np.ndarray
    distances: np.ndarray


def errors(
    annotations: Annotations, results: list[dict[str, Any]], pairs: Sequence[tuple[int, int]], sigmas: Sequence[float]
) -> Errors:
    """Persons are matched to the annotated ones one to one, the most similar (OKS of the labelled key points) first.

    A key point is good or jitters where its similarity to where it is, exp(-d^2 / (2 area (2 sigma)^2)), is 0.85 or 0.5
    at least; else it is an inversion near the person's own mirrored one, a swap near another person's (or that one's
    mirrored), and a miss elsewhere.

    Args:
        results: in COCO's format.
        pairs: left and right key points.
        sigmas: (J,) of OKS.
    """
    index = person(annotations)[0]
    mirror = np.arange(len(sigmas))
    for a, b in pairs:
        mirror[a], mirror[b] = b, a
    constants = 2 * np.square(2 * np.asarray(sigmas, np.float64))
    by_image: dict[int, list[np.ndarray]] = {}
    for result in results:
        by_image.setdefault(result["image_id"], []).append(np.reshape(result["keypoints"], (-1, 3)))
    rows, count = [np.zeros((0, 5))], 0
    for place, image_id in enumerate(annotations.image_ids.tolist()):
        objects = annotations.objects(place)
        objects = objects[(objects["category"] == index) & ~objects["iscrowd"] & (objects["area"] > 0)]
        truth = objects["keypoints"].astype(np.float64)
        labelled = truth[..., 2] > 0
        kept = labelled.any(1)
        truth, labelled, areas = truth[kept], labelled[kept], objects["area"][kept]
        said = np.stack(by_image[image_id]) if image_id in by_image else np.zeros((0, len(sigmas), 3))
        for one, match in enumerate(_matches(said, truth, labelled, areas, constants)):
            joints = np.flatnonzero(labelled[one])
            kinds, distances = np.full(len(joints), len(KINDS) - 1), np.full(len(joints), np.nan)
            if match is not None:
                points = match[joints, :2]
                own = _near(points, truth[one], labelled[one], joints, areas[one], constants)
                others = [k for k in range(len(truth)) if k != one]
                swapped = [
                    _near(points, truth[k], labelled[k], which, areas[k], constants)
                    for k in others
                    for which in (joints, mirror[joints])
                ]
                inverted = _near(points, truth[one], labelled[one], mirror[joints], areas[one], constants)
                swap = np.max(swapped, axis=0) if swapped else np.zeros(len(joints))
                kinds = np.select([own >= GOOD, own >= NEAR, inverted >= NEAR, swap >= NEAR], range(4), 4)
                distances = np.linalg.norm(points - truth[one, joints, :2], axis=-1) / np.sqrt(areas[one])
            of_person = np.full(len(joints), count + one), np.full(len(joints), areas[one])
            rows.append(np.stack([joints, *of_person, kinds, distances], 1))
        count += len(truth)
    joints, persons, areas, kinds, distances = np.concatenate(rows).T
    return Errors(joints.astype(int), persons.astype(int), areas, kinds.astype(int), distances)


def _near(
    points: np.ndarray, truth: np.ndarray, labelled: np.ndarray, joints: np.ndarray, area: float, constants: np.ndarray
) -> np.ndarray:
    """Similarity (K,) of points (K, 2) to a person's key points `joints`, 0 to one that is not labelled."""
    squares = np.square(points - truth[joints, :2]).sum(-1)
    return np.exp(-squares / (area * constants[joints])) * labelled[joints]


def _matches(
    said: np.ndarray, truth: np.ndarray, labelled: np.ndarray, areas: np.ndarray, constants: np.ndarray
) -> list[np.ndarray | None]:
    """For each annotated person the key points (J, 3) said of it."""
    squares = np.square(said[:, None, :, :2] - truth[None, :, :, :2]).sum(-1)
    similar = np.exp(-squares / (areas[:, None] * constants)) * labelled
    similar = similar.sum(-1) / labelled.sum(-1).clip(1)
    matches: list[np.ndarray | None] = [None] * len(truth)
    while similar.size and similar.max() >= FOUND:
        one, person = np.unravel_index(similar.argmax(), similar.shape)
        matches[person] = said[one]
        similar[one], similar[:, person] = -1, -1
    return matches


def sections(found: Errors, names: Sequence[str]) -> dict[str, str]:
    """HTML by heading. names: of the key points."""
    by_joint = [(name, found.joints == joint) for joint, name in enumerate(names)]
    by_size = [(name, (low <= found.areas) & (found.areas < high)) for name, low, high in SIZES]
    everything = ("all", np.ones(len(found.kinds), bool))
    explained = (
        "Percent of labelled key points: good and jitter, near where they are; inversion, at the person's own mirrored "
        "one; swap, at another person's; miss, elsewhere. Distance: the median, in percent of the square root of the "
        "person's area, of persons that were found."
    )
    return {
        "Errors by key point": paragraph(explained) + _table("key point", [everything, *by_joint], found),
        "Errors by size of persons": paragraph("Small: below 32 x 32 square pixels; large: 96 x 96 and more.")
        + _table("size", [everything, *by_size], found),
    }


def _table(what: str, groups: Sequence[tuple[str, np.ndarray]], found: Errors) -> str:
    rows: list[Sequence[Any]] = [(what, "persons", "labelled", *KINDS, "distance", "")]
    for name, which in groups:
        counts = np.bincount(found.kinds[which], minlength=len(KINDS))
        shares = counts / (counts.sum() or np.nan)
        distances = found.distances[which & ~np.isnan(found.distances)]
        median = float(100 * np.median(distances)) if len(distances) else np.nan
        persons = len(np.unique(found.persons[which]))
        rows.append(
            (name, persons, int(which.sum()), *(100 * shares).tolist(), median, bar(shares) if counts.any() else "")
        )
    return legend(KINDS) + html_table(rows)
