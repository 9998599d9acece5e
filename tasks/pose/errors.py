"""Where key points go wrong: the errors of Ronchi and Perona (2017), by key point and by size of persons."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from tasks.coco.annotations import Annotations
from tasks.pose.source import person
from tdaf.engine.report import bar, legend, paragraph, table

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
    return legend(KINDS) + table(rows)
