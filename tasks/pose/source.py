"""COCO's key-point data set, and any own one in its format."""

from __future__ import annotations

from functools import cached_property

from tasks.coco.annotations import Annotations, read
from tasks.coco.source import CocoFiles, CocoSplit
from tdaf.errors import UserError


class CocoKeypoints:
    """Two annotation files whose category "person" (or whose only one) has key points, and two image folders.

    Arguments and errors as in tasks/coco/source.py, the defaults the layout of COCO 2017. Raises UserError where the
    annotation file has no key points.
    """

    def __init__(
        self,
        root: str | None,
        train_annotations: str = "annotations/person_keypoints_train2017.json",
        train_images: str = "train2017",
        val_annotations: str = "annotations/person_keypoints_val2017.json",
        val_images: str = "val2017",
        skip_list: str | None = None,
    ) -> None:
        self.files = CocoFiles(root, train_annotations, train_images, val_annotations, val_images, skip_list)

    @cached_property
    def classes(self) -> list[str]:
        """The names of the key points, in the order of the network's heat maps."""
        found = read(self.files.root / self.files.annotations["val"])
        person(found)
        return found.keypoint_names

    def split(self, name: str) -> CocoSplit:
        """The split "train" or "val"."""
        found = self.files.split(name)
        person(found.annotations)
        return found


def person(annotations: Annotations) -> tuple[int, int]:
    """(the place of the category of persons, its id in the file). UserError where there is none, or no key points."""
    if not annotations.keypoint_names:
        raise UserError(
            f"{annotations.path}: its categories have no key points; give COCO's person_keypoints_*.json, or your own "
            "with the names of the key points in the category"
        )
    places = [place for place, (_, name) in enumerate(annotations.categories) if name == "person"]
    if not places and len(annotations.categories) == 1:
        places = [0]
    if len(places) != 1:
        named = ", ".join(annotations.classes[:5])
        raise UserError(f"{annotations.path}: its categories are {named}: exactly one is to be called person")
    return places[0], annotations.categories[places[0]][0]
