"""COCO's key-point data set, and any own one in its format; and what the names of key points say: which are left and
right of the same part, which belong to the legs, how they are joined, and how exactly people place them. Names are all
that a checkpoint stores, so an own skeleton works like COCO's.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cached_property

from tasks.coco.annotations import Annotations
from tasks.coco.source import CocoFiles
from tdaf.errors import UserError

# name: ten times its sigma, COCO's half constant of the spread with which annotators place it
# (cocodataset/cocoapi, PythonAPI/pycocotools/cocoeval.py, Params.setKpParams)
SPREADS = {
    "nose": 0.26, "left_eye": 0.25, "right_eye": 0.25, "left_ear": 0.35, "right_ear": 0.35,
    "left_shoulder": 0.79, "right_shoulder": 0.79, "left_elbow": 0.72, "right_elbow": 0.72,
    "left_wrist": 0.62, "right_wrist": 0.62, "left_hip": 1.07, "right_hip": 1.07,
    "left_knee": 0.87, "right_knee": 0.87, "left_ankle": 0.89, "right_ankle": 0.89,
}  # fmt: skip
COCO = tuple(SPREADS)
OTHER_SIGMA = 0.05  # of key points that COCO does not have: about the mean of its 17

# the bones of COCO's category "person" (person_keypoints_val2017.json, "skeleton")
BONES = (
    ("left_ankle", "left_knee"), ("left_knee", "left_hip"), ("right_ankle", "right_knee"), ("right_knee", "right_hip"),
    ("left_hip", "right_hip"), ("left_shoulder", "left_hip"), ("right_shoulder", "right_hip"),
    ("left_shoulder", "right_shoulder"), ("left_shoulder", "left_elbow"), ("right_shoulder", "right_elbow"),
    ("left_elbow", "left_wrist"), ("right_elbow", "right_wrist"), ("left_eye", "right_eye"), ("nose", "left_eye"),
    ("nose", "right_eye"), ("left_eye", "left_ear"), ("right_eye", "right_ear"), ("left_ear", "left_shoulder"),
    ("right_ear", "right_shoulder"),
)  # fmt: skip
# a capitalised or small word, capitals before one (the L of LEye), a number, and letters that have no case
WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+|[^\W\d_A-Za-z]+")
SIDES = {"l": "left", "r": "right"}
LEGS = ("hip", "knee", "ankle", "heel", "toe", "foot")


def flip_pairs(names: Sequence[str]) -> list[tuple[int, int]]:
    """Indices of the left and the right one of every part that has both.

    The side is a word of the name, or l or r, in any case and place: left_eye, "Left Hand", LEFT-EYE, eyeLeft, l_eye,
    LEye, kneeL; also lefteye, and lknee where at least two names are joined like that.
    """
    sided = [_sided(name) for name in names]
    pairs = _matched(sided)
    if not any("left" in name or "right" in name for name in sided):
        joined = _matched([re.sub("^[lr](?=[a-z]{3})", lambda found: f"{SIDES[found[0]]} ", name) for name in sided])
        pairs = joined if len(joined) > 1 else []
    return pairs


def unpaired(names: Sequence[str], pairs: Sequence[tuple[int, int]]) -> list[str]:
    """Names that say left or right, be it by a letter as the names of the pairs do, and are in none of the pairs."""
    by_letter = any(not _says_side(names[index]) for pair in pairs for index in pair)
    alone = [name for index, name in enumerate(names) if not any(index in pair for pair in pairs)]
    return [n for n in alone if _says_side(n) or by_letter and {"left", "right"} & set(_sided(n).split())]


def checked_pairs(
    setting: str, pairs: Sequence[Sequence[int]], names: Sequence[str], once: bool = False
) -> list[tuple[int, int]]:
    """A user's pairs, counted from 1, as indices. once: each in one pair only. Raises UserError where they are none."""
    used: set[int] = set()
    for pair in pairs:
        ends = list(pair) if isinstance(pair, Sequence) else []
        if len(ends) != 2 or not all(type(end) is int and 1 <= end <= len(names) for end in ends):
            raise UserError(f"{setting}: {pair}: give pairs of 1 to {len(names)}, as [[1,2],[3,4]]")
        if once and (used & set(ends) or ends[0] == ends[1]):
            raise UserError(f"{setting}: {ends}: a key point is in one pair, with another one")
        used.update(ends)
    return [(left - 1, right - 1) for left, right in pairs]


def _says_side(name: str) -> bool:
    return "left" in name.casefold() or "right" in name.casefold()


def _sided(name: str) -> str:
    """The name's words in small letters with a blank between them; l and r are left and right where no word is."""
    words = [word.casefold() for word in WORD.findall(name)]
    if not _says_side(name):
        words = [SIDES.get(word, word) for word in words]
    return " ".join(words)


def _matched(sided: Sequence[str]) -> list[tuple[int, int]]:
    """Indices of two texts that differ in left and right alone, the one that begins with left first. Texts that are
    there twice match nothing: which of them is meant cannot be told."""
    index = {name: k for k, name in enumerate(sided) if sided.count(name) == 1}
    swapped = {"left": "right", "right": "left"}
    others = {name: re.sub("left|right", lambda found: swapped[found[0]], name) for name in index}
    left = (name for name in index if (re.search("left|right", name) or [""])[0] == "left")
    return [(index[name], index[others[name]]) for name in left if others[name] in index]


def edges(names: Sequence[str]) -> list[tuple[int, int]]:
    """COCO's bones between those key points that have COCO's names; none for others."""
    index = {name: k for k, name in enumerate(names)}
    return [(index[a], index[b]) for a, b in BONES if a in index and b in index]


def sigmas(names: Sequence[str]) -> list[float]:
    """COCO's for its names, 0.05 for others, in the unit of an object's size (the square root of its area)."""
    return [SPREADS[name] / 10 if name in SPREADS else OTHER_SIGMA for name in names]


def legs(names: Sequence[str]) -> list[bool]:
    """Whether each key point belongs to the lower half of the body."""
    return [any(part in name.casefold() for part in LEGS) for name in names]


class CocoKeypoints(CocoFiles):
    """Two annotation files whose category "person" (or whose only one) has key points, and two image folders.

    Arguments and errors as those of `CocoFiles`, the defaults the layout of COCO 2017. An annotation file without key
    points is a UserError as well.
    """

    with_keypoints = True
    usual = "annotations/person_keypoints_{}2017.json"

    @cached_property
    def classes(self) -> list[str]:
        """The names of the key points, in the order of the network's heat maps."""
        return self._read("val").keypoint_names

    @property
    def ids(self) -> list[int]:
        """The id of the category of persons in the annotation file."""
        return [person(self._read("val"))[1]]

    def reorder(self, classes: Sequence[str]) -> None:
        """Takes the key points in this order of their names, a checkpoint's."""
        self.classes = list(classes)
        self._order = ((), tuple(classes))

    def _read(self, name: str) -> Annotations:
        annotations = super()._read(name)
        person(annotations)
        return annotations


def person(annotations: Annotations) -> tuple[int, int]:
    """(index of the category of persons, its id in the file). UserError where there is none, or no key points."""
    if not annotations.keypoint_names:
        raise UserError(
            f"{annotations.path}: its categories have no key points; give COCO's person_keypoints_*.json, or your own "
            "with the names of the key points in the category"
        )
    indices = [index for index, name in enumerate(annotations.classes) if name == "person"]
    if not indices and len(annotations.categories) == 1:
        indices = [0]
    if len(indices) != 1:
        named = ", ".join(annotations.classes[:5])
        raise UserError(f"{annotations.path}: its categories are {named}: exactly one is to be called person")
    return indices[0], annotations.categories[indices[0]][0]
