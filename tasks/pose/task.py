"""Human key points (SimplePose, Xiao et al. 2018) as the engine sees them (protocols: tdaf/task.py)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from tasks.coco.source import box_sizes, to_coco
from tasks.common import ColourTask, Source
from tasks.pose import source
from tasks.pose.augment import Augmentation, framed
from tasks.pose.data import Persons, PredictDataset, annotated, detected, people_in
from tasks.pose.evaluator import KeypointAP, Record, errors, in_image, in_input, oks_nms, rescored, sections
from tasks.pose.simplepose import KeyPoints, PoseNetwork, deconvolved, encode, flip_merged, heatmap_loss
from tdaf.errors import UserError
from tdaf.media.drawing import boxes as with_boxes
from tdaf.media.drawing import heat, skeletons
from tdaf.model.staged import Staged
from tdaf.ranges import within
from tdaf.task import Batch


class Pose(ColourTask):
    """The task of key points.

    Args:
        data: images and annotations. What their key points' names say decides which change places in a mirror image
            (`source.flip_pairs`).
        train_augment: what training does at random.
        mean, std: of the pixels, RGB, in units of 0..1 (the published code feeds BGR with the mean and std of RGB).
        size: height and width of the input in pixels, multiples of the backbone's last stride.
        deconvolutions: channels of each.
        sigma: of the targets' Gaussians, in pixels of the heat maps.
        boxes: where evaluation takes persons from, "gt" (the annotations) or a file of COCO detection results, or a
            list of these: all are evaluated, a column each.
        box_score: boxes of a file with a lower score are left out.
        flip_test: whether heat maps are averaged with the mirror image's.
        keypoint_threshold: key points with a higher score count in a person's score, and are drawn.
        oks_nms: persons more similar than this are one.
        sigmas: of OKS, a number for each key point; None: COCO's for COCO's names and 0.05 for others.
        skeleton: bones to draw, pairs of key points counted from 1 as in COCO's files; None: COCO's between its names.
        flip_pairs: key points that change places in a mirror image, in place of what their names say, as pairs counted
            from 1; [] for none.

    Raises:
        UserError: a value outside these.
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
        flip_pairs: list[list[int]] | None = None,
    ) -> None:
        if len(size) != 2 or min(size) < 32:
            raise UserError(f"size={list(size)}: give height and width, as [256,192], 32 or more each")
        within("(0, inf)", sigma=sigma)
        within("[0, 1]", keypoint_threshold=keypoint_threshold, oks_nms=oks_nms)
        if sigmas is not None and (not sigmas or min(sigmas) <= 0):
            raise UserError(f"sigmas={sigmas}: give a number above 0 for each key point, or null")
        super().__init__(data, mean, std)
        self.augment = train_augment
        self.size, self.deconvolutions, self.sigma = (size[0], size[1]), list(deconvolutions), sigma
        self.columns, self.box_score = _columns([boxes] if isinstance(boxes, str) else boxes), box_score
        self.flip_test, self.threshold, self.nms = flip_test, keypoint_threshold, oks_nms
        self._sigmas, self._skeleton, self._pairs = sigmas, skeleton, flip_pairs

    @property
    def class_ids(self) -> list[int]:
        """The id of persons in the annotation file, as predict writes it; 1 where that is not known."""
        return getattr(self.data, "ids", None) or [1]

    @property
    def pairs(self) -> list[tuple[int, int]]:
        """Key points that change places in a mirror image, as indices of `classes`. Raises UserError where a name says
        left or right, has no partner, and images are mirrored."""
        if self._pairs is not None:
            return source.checked_pairs("flip_pairs", self._pairs, self.classes, once=True)
        pairs = source.flip_pairs(self.classes)
        alone = source.unpaired(self.classes, pairs)
        if alone and (self.augment.flip or self.flip_test):
            raise UserError(
                f"key point {', '.join(alone[:3])}: no other one is its left or right partner in a mirror image: "
                "correct the names, or give flip_pairs=[[1,2],...] ([] for none), or flip=0 and flip_test=false"
            )
        return pairs

    @property
    def sigmas(self) -> list[float]:
        if self._sigmas is None:
            return source.sigmas(self.classes)
        if len(self._sigmas) != len(self.classes):
            raise UserError(f"sigmas: {len(self._sigmas)} numbers for {len(self.classes)} key points")
        return self._sigmas

    @property
    def edges(self) -> list[tuple[int, int]]:
        """Bones, as pairs of indices of `classes`."""
        if self._skeleton is None:
            return source.edges(self.classes)
        return source.checked_pairs("skeleton", self._skeleton, self.classes)

    def network(self, backbone: Staged, tdaf: Callable[[Staged], Staged]) -> nn.Module:
        """TDAF goes over backbone and deconvolutions. Raises UserError for settings that do not fit the key points."""
        _ = self.sigmas, self.edges, self.pairs  # first used after the training: a mistake in them is to show before it
        stride = backbone.strides[-1]
        if any(side % stride for side in self.size):
            raise UserError(f"size={list(self.size)}: give multiples of {stride}, this backbone's stride")
        body = tdaf(deconvolved(backbone, self.deconvolutions))
        return PoseNetwork(body, len(self.classes), self.normalise(body))

    def dataset(self, split: str) -> Persons:
        """Of "train" all persons of the annotations, of "val" those of every source of boxes, one after the other."""
        images = self.data.split(split)
        if split == "train":
            persons = Persons(images, [annotated(images)], self.size, self.classes, self.augment, pairs=self.pairs)
        else:
            paths = self.columns.values()
            people = [annotated(images) if path is None else detected(path, images, self.box_score) for path in paths]
            persons = Persons(images, people, self.size, self.classes, flip_test=self.flip_test, pairs=self.pairs)
        if not len(persons):
            why = "; ".join(f"{count} {note}" for note, count in persons.notes.items() if count)
            raise UserError(f"{images.annotations.path}: no person with a box and a labelled key point in it ({why})")
        return persons

    def losses(self, outputs: Tensor, batch: Batch) -> dict[str, Tensor]:
        """outputs: heat maps (B, J, h, w)."""
        joints, stride = batch["joints"], batch["input"].shape[-1] // outputs.shape[-1]
        targets, weights = encode(joints[..., :2], joints[..., 2], outputs.shape[-2:], stride, self.sigma)
        return {"heatmaps": heatmap_loss(outputs, targets, weights)}

    def evaluator(self) -> KeypointAP:
        annotations = self.data.split("val").annotations
        settings = (self.pairs, self.sigmas, self.flip_test, self.threshold, self.nms)
        return KeypointAP(list(self.columns), annotations, *settings)

    def predict_dataset(
        self,
        paths: list[Path],
        boxes: str | dict[str, Any] | None = None,
        person: str | None = None,
        box_score: float | None = None,
    ) -> PredictDataset:
        """A sample a person.

        Args:
            boxes: None or "image", the whole picture is one; else a JSON file of boxes, or the content of such a file
                (see `data.people_in`).
            person: the boxes' category to take; None: "person".
            box_score: boxes with a lower score are left out; None: 0.3.

        Raises:
            UserError: a file that is none of boxes, or a choice among boxes that are not given.
        """
        for name, value in {"person": person, "box_score": box_score}.items():
            if value is not None and boxes in (None, "image"):
                raise UserError(f"{name}={value}: chooses among boxes, so give boxes=FILE.json or a detector's run too")
        pictures = self.media(paths)
        category, least = "person" if person is None else person, 0.3 if box_score is None else box_score
        return PredictDataset(pictures, people_in(pictures, boxes, category, least), self.size, self.flip_test)

    def postprocess(self, outputs: Tensor, batch: Batch) -> list[dict[str, Any]]:
        """A person: {"keypoints": [[x, y, score], ...], "box": [x, y, width, height], "score"}, in pixels."""
        keypoints = in_image(outputs, batch, self.pairs)
        scores = rescored(keypoints, batch["box_score"].double().cpu().numpy(), self.threshold)
        corners = batch["box"].double().cpu()
        boxes = torch.cat([corners[:, :2], corners[:, 2:] - corners[:, :2]], 1)
        return [
            {"keypoints": points, "box": box, "score": score}
            for points, box, score in zip(keypoints.tolist(), boxes.tolist(), scores.tolist(), strict=True)
        ]

    def draw(self, picture: Tensor, answers: list[dict[str, Any]]) -> Tensor:
        """Skeletons of the persons that OKS-NMS leaves, of key points above `keypoint_threshold`."""
        points = [answer["keypoints"] for answer in self._distinct(answers)]
        keypoints = torch.tensor(points).reshape(-1, len(self.classes), 3)
        return skeletons(picture, keypoints, self.edges, least=self.threshold)

    def to_json(self, pictures: list[tuple[Path, int | None, list[dict[str, Any]]]]) -> dict[str, Any]:
        """COCO's format. An annotation has "score", and the third number of a key point is its score. What `draw`
        does not show of persons found twice is not in it either."""
        person = self.class_ids[0]
        entries = [
            [
                {
                    "category_id": person,
                    "keypoints": [value for point in answer["keypoints"] for value in point],
                    "bbox": answer["box"],
                    "score": answer["score"],
                }
                for answer in self._distinct(answers)
            ]
            for _, _, answers in pictures
        ]
        bones = [[a + 1, b + 1] for a, b in self.edges]
        category = {"id": person, "name": "person", "keypoints": self.classes, "skeleton": bones}
        return to_coco(pictures, entries, [category])

    def _distinct(self, answers: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Of the persons of one picture those that OKS-NMS leaves, the best first."""
        if len(answers) < 2:
            return answers
        points = np.array([answer["keypoints"] for answer in answers])
        corners = np.array([answer["box"] for answer in answers])
        corners[:, 2:] += corners[:, :2]
        areas = framed(corners, self.size)[1].prod(1)
        scores = np.array([answer["score"] for answer in answers])
        return [answers[index] for index in oks_nms(points, scores, areas, self.sigmas, self.nms)]

    def draw_targets(self, batch: Batch) -> list[Tensor]:
        """The labelled key points of each person on its crop, with their Gaussians (of heat maps of stride 4)."""
        joints = batch["joints"]
        size = [side // 4 for side in batch["input"].shape[-2:]]
        maps, _ = encode(joints[..., :2], joints[..., 2], size, 4, self.sigma)
        rows = zip(batch["input"], joints, maps, strict=True)
        return [heat(crop, own) for crop, points, own in rows]

    def report(self, records: Mapping[int, Record], dataset: Persons) -> dict[str, str]:
        """Of the first column."""
        evaluator = self.evaluator()
        results = evaluator.results([record for record in records.values() if record[0] == 0])
        return sections(errors(evaluator.annotations, results, self.pairs, self.sigmas), self.classes)

    def original(self, dataset: Persons, index: int) -> Tensor:
        """The image, with the person's box."""
        image, box, *_ = dataset.persons[index]
        return with_boxes(dataset.split.read(int(image)), torch.tensor(box[None]), [""])

    def counts(self, dataset: Persons) -> dict[str, dict[str, int]]:
        """Labelled key points by name, and persons by size."""
        objects = dataset.split.annotations.all_objects[dataset.persons["row"]]
        labelled = (objects["keypoints"][..., 2] > 0).sum(0).tolist()
        by_name = dict(zip(self.classes, labelled, strict=True))
        return {"labelled key points": by_name, "persons by side of their box in pixels": box_sizes(objects)}

    def deployed(self, network: nn.Module, onnx: bool) -> nn.Module:
        return KeyPoints(network)

    def visualize(self, outputs: Tensor, batch: Batch) -> dict[str, list[Tensor]]:
        """The skeleton on each person's crop, and all heat maps over it."""
        inputs = batch["input"].cpu()
        crops = inputs if inputs.ndim == 4 else inputs[:, 0]
        points, maps = in_input(outputs, batch, self.pairs).cpu(), flip_merged(outputs, self.pairs).cpu()
        drawn = [
            skeletons(c, own[None], self.edges, least=self.threshold) for c, own in zip(crops, points, strict=True)
        ]
        return {"prediction": drawn, "heatmaps": [heat(c, own) for c, own in zip(crops, maps, strict=True)]}


def _columns(boxes: list[str]) -> dict[str, Path | None]:
    """Name to file, None for the annotations. The name is the file's, without its ending."""
    columns: dict[str, Path | None] = {}
    for entry in boxes:
        path = None if entry == "gt" else Path(entry).expanduser()
        name = "gt" if path is None else path.stem
        if name in columns:
            raise UserError(f"boxes={boxes}: two columns would be called {name}; rename one of the files")
        columns[name] = path
    if not columns:
        raise UserError("boxes=[]: give gt, or files of COCO detection results, or both")
    return columns
