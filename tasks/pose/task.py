"""Human key points (SimplePose, Xiao et al. 2018) as the engine sees them (protocols: tdaf/task.py)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from tasks.coco.source import CocoSplit
from tasks.pose import skeleton as named
from tasks.pose.augment import Augmentation
from tasks.pose.boxes import People, annotated, detected
from tasks.pose.crop import framed
from tasks.pose.data import Persons
from tasks.pose.evaluator import KeypointAP, in_image, in_input, merged
from tasks.pose.heatmaps import encode
from tasks.pose.inputs import PredictDataset, people
from tasks.pose.losses import heatmap_loss
from tasks.pose.network import PoseNetwork, deconvolved
from tasks.pose.nms import oks_nms, rescored
from tasks.pose.source import person
from tdaf.errors import UserError
from tdaf.media.drawing import heat, skeletons
from tdaf.media.pictures import Media
from tdaf.model.normalise import Normalise
from tdaf.model.staged import Staged
from tdaf.task import Batch


class Source(Protocol):
    classes: list[str]  # names of key points, in the order of the heat maps; left_x and right_x change places in a flip

    def split(self, name: str) -> CocoSplit:
        """The split "train" or "val"; raises UserError when it is not there."""


class Pose:
    """data: the images and annotations. size: height and width of the input, multiples of the backbone's last stride.
    deconvolutions: channels of each. sigma: of the heat maps' Gaussians, in pixels of the maps. mean, std: of the
    pixels, RGB, in units of 0..1 (the published code feeds BGR with the mean and std of RGB).
    boxes: where evaluation takes persons from, "gt" (the annotations) or a file of COCO detection results, or a list of
    these: all are evaluated, a column each. box_score: boxes of a file with a lower score are left out.
    flip_test: whether heat maps are averaged with the mirror image's. keypoint_threshold: key points with a higher
    score count in a person's score, and are drawn. oks_nms: persons more similar than this are one.
    sigmas: of OKS, a number for each key point; null: COCO's for COCO's names and 0.05 for others. skeleton: bones to
    draw, pairs of key points counted from 1 as in COCO's files; null: COCO's between its names.
    Raises UserError for values outside these.
    """

    metric = "AP"

    def __init__(
        self,
        data: Source,
        train_augment: Augmentation,
        mean: list[float],
        std: list[float],
        size: Sequence[int] = (256, 192),
        deconvolutions: Sequence[int] = (256, 256, 256),
        sigma: float = 2.0,
        boxes: list[str] | str = "gt",
        box_score: float = 0.0,
        flip_test: bool = True,
        keypoint_threshold: float = 0.2,
        oks_nms: float = 0.9,
        sigmas: list[float] | None = None,
        skeleton: list[list[int]] | None = None,
    ) -> None:
        if len(size) != 2 or min(size) < 32:
            raise UserError(f"task.size={list(size)}: give height and width, as [256,192], 32 or more each")
        if not sigma > 0:
            raise UserError(f"task.sigma={sigma}: give more than 0")
        for name, value in (("keypoint_threshold", keypoint_threshold), ("oks_nms", oks_nms)):
            if not 0 <= value <= 1:
                raise UserError(f"task.{name}={value}: give 0 to 1")
        if not len(mean) == len(std) == 3 or min(std) <= 0:
            raise UserError("task.mean, task.std: give three numbers each, one a colour, std above 0")
        if sigmas is not None and (not sigmas or min(sigmas) <= 0):
            raise UserError(f"task.sigmas={sigmas}: give a number above 0 for each key point, or null")
        self.data, self.augment, self.mean, self.std = data, train_augment, list(mean), list(std)
        self.size, self.deconvolutions, self.sigma = (size[0], size[1]), list(deconvolutions), sigma
        self.columns, self.box_score = _columns([boxes] if isinstance(boxes, str) else boxes), box_score
        self.flip_test, self.threshold, self.nms = flip_test, keypoint_threshold, oks_nms
        self._sigmas, self._skeleton = sigmas, skeleton

    @property
    def classes(self) -> list[str]:
        """The names of the key points."""
        return self.data.classes

    @property
    def pairs(self) -> list[tuple[int, int]]:
        return named.flip_pairs(self.classes)

    @property
    def sigmas(self) -> list[float]:
        if self._sigmas is None:
            return named.sigmas(self.classes)
        if len(self._sigmas) != len(self.classes):
            raise UserError(f"task.sigmas: {len(self._sigmas)} numbers for {len(self.classes)} key points")
        return self._sigmas

    @property
    def edges(self) -> list[tuple[int, int]]:
        """Bones, as places in `classes`."""
        if self._skeleton is None:
            return named.edges(self.classes)
        for bone in self._skeleton:
            if len(bone) != 2 or not all(1 <= end <= len(self.classes) for end in bone):
                raise UserError(f"task.skeleton: {bone}: give pairs of 1 to {len(self.classes)}")
        return [(a - 1, b - 1) for a, b in self._skeleton]

    def network(self, backbone: Staged, tdaf: Callable[[Staged], Staged]) -> nn.Module:
        """TDAF goes over backbone and deconvolutions. Raises UserError for settings that do not fit the key points."""
        _ = self.sigmas, self.edges  # first used after the training: a mistake in them is to show before it
        stride = backbone.strides[-1]
        if any(side % stride for side in self.size):
            raise UserError(f"task.size={list(self.size)}: give multiples of {stride}, this backbone's stride")
        body = tdaf(deconvolved(backbone, self.deconvolutions))
        return PoseNetwork(body, len(self.classes), Normalise(self.mean, self.std))

    def dataset(self, split: str) -> Persons:
        """"train": all persons of the annotations. "val": those of every source of boxes, one after the other."""
        images = self.data.split(split)
        if split == "train":
            sources, augment = [annotated(images.annotations)], self.augment
        else:
            sources, augment = [self._people(images, path) for path in self.columns.values()], None
        found = Persons(images, sources, self.size, self.classes, augment, self.flip_test and augment is None)
        if not len(found):
            raise UserError(f"{images.annotations.path}: no person with a box and a labelled key point in it")
        return found

    def _people(self, images: CocoSplit, path: Path | None) -> People:
        return annotated(images.annotations) if path is None else detected(path, images.annotations, self.box_score)

    def losses(self, outputs: Tensor, batch: Batch) -> dict[str, Tensor]:
        """outputs: heat maps (B, J, h, w)."""
        joints, stride = batch["joints"], batch["input"].shape[-1] // outputs.shape[-1]
        targets, weights = encode(joints[..., :2], joints[..., 2], outputs.shape[-2:], stride, self.sigma)
        return {"heatmaps": heatmap_loss(outputs, targets, weights)}

    def evaluator(self) -> KeypointAP:
        annotations = self.data.split("val").annotations
        return KeypointAP(
            list(self.columns),
            annotations.path,
            annotations.image_ids,
            person(annotations)[1],
            self.pairs,
            self.sigmas,
            self.flip_test,
            self.threshold,
            self.nms,
        )

    def predict_dataset(
        self,
        paths: list[Path],
        boxes: str | None = None,
        person: str | None = None,
        box_score: float | None = None,
    ) -> PredictDataset:
        """A sample a person. boxes: null or image, the whole picture is one; else a JSON file of boxes (see
        `inputs.people`), of which those of the category `person` (null: person) with `box_score` (null: 0.3) or more
        are taken. Raises UserError for a file that is none of boxes, and for a choice among boxes that are not given."""
        for name, value in {"person": person, "box_score": box_score}.items():
            if value is not None and boxes in (None, "image"):
                raise UserError(f"{name}={value}: chooses among boxes, so give boxes=FILE.json or a detector's run too")
        pictures = Media(paths)
        chosen = people(boxes, pictures, "person" if person is None else person, 0.3 if box_score is None else box_score)
        return PredictDataset(pictures, chosen, self.size, self.flip_test)

    def postprocess(self, outputs: Tensor, batch: Batch) -> list[dict[str, Any]]:
        """A person: {"keypoints": [[x, y, score], ...], "box": [x, y, width, height], "score"}, in pixels."""
        found = in_image(outputs, batch, self.pairs)
        scores = rescored(found, batch["box_score"].double().cpu().numpy(), self.threshold)
        corners = batch["box"].double().cpu()
        boxes = torch.cat([corners[:, :2], corners[:, 2:] - corners[:, :2]], 1)
        return [
            {"keypoints": points, "box": box, "score": score}
            for points, box, score in zip(found.tolist(), boxes.tolist(), scores.tolist(), strict=True)
        ]

    def draw(self, picture: Tensor, answers: list[dict[str, Any]]) -> Tensor:
        """Skeletons of the persons that OKS-NMS leaves, of key points above `keypoint_threshold`."""
        points = [answer["keypoints"] for answer in self._distinct(answers)]
        found = torch.tensor(points).reshape(-1, len(self.classes), 3)
        return skeletons(picture, found, self.edges, least=self.threshold)

    def to_json(self, found: list[tuple[Path, int | None, list[dict[str, Any]]]]) -> dict[str, Any]:
        """COCO's format. An annotation has "score", and the third number of a key point is its score. What `draw`
        does not show of persons found twice is not in it either."""
        images, annotations = [], []
        for number, (path, frame, answers) in enumerate(found, 1):
            images.append({"id": number, "file_name": str(path), **({} if frame is None else {"frame": frame})})
            for answer in self._distinct(answers):
                points = [value for point in answer["keypoints"] for value in point]
                entry = {"id": len(annotations) + 1, "image_id": number, "category_id": 1, "keypoints": points}
                annotations.append({**entry, "bbox": answer["box"], "score": answer["score"]})
        bones = [[a + 1, b + 1] for a, b in self.edges]
        category = {"id": 1, "name": "person", "keypoints": self.classes, "skeleton": bones}
        return {"images": images, "annotations": annotations, "categories": [category]}

    def _distinct(self, answers: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Of the persons of one picture those that OKS-NMS leaves, the best first."""
        if len(answers) < 2:
            return answers
        points = np.array([answer["keypoints"] for answer in answers])
        corners = np.array([answer["box"] for answer in answers])
        corners[:, 2:] += corners[:, :2]
        areas = framed(corners, self.size)[1].prod(1)
        scores = np.array([answer["score"] for answer in answers])
        return [answers[place] for place in oks_nms(points, scores, areas, self.sigmas, self.nms)]

    def visualize(self, outputs: Tensor, batch: Batch) -> dict[str, list[Tensor]]:
        """The skeleton on each person's crop, and all heat maps over it."""
        inputs = batch["input"].cpu()
        crops = inputs if inputs.ndim == 4 else inputs[:, 0]
        points, maps = in_input(outputs, batch, self.pairs).cpu(), merged(outputs, self.pairs).cpu()
        return {
            "prediction": [
                skeletons(crop, own[None], self.edges, least=self.threshold)
                for crop, own in zip(crops, points, strict=True)
            ],
            "heatmaps": [heat(crop, own) for crop, own in zip(crops, maps, strict=True)],
        }


def _columns(boxes: list[str]) -> dict[str, Path | None]:
    """Name to file, None for the annotations. The name is the file's, without its ending."""
    columns: dict[str, Path | None] = {}
    for entry in boxes:
        path = None if entry == "gt" else Path(entry).expanduser()
        name = "gt" if path is None else path.stem
        if name in columns:
            raise UserError(f"task.boxes={boxes}: two columns would be called {name}; rename one of the files")
        columns[name] = path
    if not columns:
        raise UserError("task.boxes=[]: give gt, or files of COCO detection results, or both")
    return columns
