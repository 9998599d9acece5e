"""Key-point AP of every source of boxes, by the published protocol."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tasks.coco.scoring import score
from tasks.pose.crop import transform
from tasks.pose.heatmaps import decode, flip_merged
from tasks.pose.nms import oks_nms, rescored
from tdaf.task import Batch

# column, image id, box score, area of the frame in the image, key points (J, 3): x, y in pixels of the image, score
Record = tuple[int, int, float, float, np.ndarray]


class KeypointAP:
    """The protocol of microsoft/human-pose-estimation.pytorch (lib/core/function.py, lib/dataset/coco.py): heat maps
    averaged with the mirror image's, quarter-pixel offset, a person's score the box's times the mean of its key points'
    scores above `threshold`, then OKS-NMS of the persons of an image. COCO's evaluation takes the best 20 an image.

    columns: names of the sources of boxes. image_ids: of the split; all of them count, also those without a record.
    An image that could not be read has none, and its persons count as missed.
    category: id of persons in results. sigmas (J,): of OKS, in NMS and in the scores. flip_test: whether inputs are
    pairs, for the protocol's name, as in "gt+flip".
    """

    def __init__(
        self,
        columns: Sequence[str],
        annotations: Path,
        image_ids: Sequence[int],
        category: int,
        pairs: Sequence[tuple[int, int]],
        sigmas: Sequence[float],
        flip_test: bool,
        threshold: float = 0.2,
        nms: float = 0.9,
    ) -> None:
        self.columns, self.annotations, self.image_ids, self.category = list(columns), annotations, image_ids, category
        self.pairs, self.sigmas, self.threshold, self.nms = pairs, list(sigmas), threshold, nms
        self.protocol = "+".join([*columns, *(["flip"] if flip_test else [])])
        self._scored: tuple[list[Record], list[list[dict[str, Any]]], list[dict[str, float]]] | None = None

    def update(self, outputs: Tensor, batch: Batch) -> list[Record]:
        """outputs: heat maps (B, [2,] J, h, w)."""
        keypoints = in_image(outputs, batch, self.pairs)
        height, width = batch["input"].shape[-2:]
        areas = torch.linalg.det(batch["inverse"][..., :2].cpu()).abs() * (height * width)
        fields = (batch[key].tolist() for key in ("column", "image_id", "box_score"))
        return list(zip(*fields, areas.tolist(), keypoints, strict=True))

    def compute(self, records: list[Record]) -> dict[str, float]:
        """COCO's ten numbers in 0..1 by name, "AP" first: of the first column, and with more than one of each as well
        under "<column>/AP" and so on."""
        _, values = self._score(records)
        if len(values) == 1:
            return dict(values[0])
        named = zip(self.columns, values, strict=True)
        return {**values[0], **{f"{column}/{name}": v for column, own in named for name, v in own.items()}}

    def files(self, records: list[Record]) -> dict[str, str]:
        """keypoints-<column>.json, COCO's key-point results; columns.md, a table with a column for each source."""
        found, values = self._score(records)
        texts = {
            f"keypoints-{column}.json": json.dumps(results, separators=(",", ":"))
            for column, results in zip(self.columns, found, strict=True)
        }
        boxes = np.bincount([record[0] for record in records], minlength=len(self.columns)).tolist()
        rows = [["boxes", *map(str, boxes)], ["persons after OKS-NMS", *(str(len(results)) for results in found)]]
        rows += [[name, *(f"{own[name]:.3f}" for own in values)] for name in values[0]]
        return {**texts, "columns.md": self._table(rows)}

    def _table(self, rows: list[list[str]]) -> str:
        head = [f"{self.protocol}, {len(self.image_ids)} images", *self.columns]
        lines = [head, ["---", *["---:"] * len(self.columns)], *rows]
        return "".join(f"| {' | '.join(cell.replace('|', '/') for cell in line)} |\n" for line in lines)

    def _score(self, records: list[Record]) -> tuple[list[list[dict[str, Any]]], list[dict[str, float]]]:
        """COCO's results and numbers of each column. Digits are cut before, so that the files hold what was scored."""
        if self._scored is None or self._scored[0] is not records:
            columns: list[dict[int, list[Record]]] = [{} for _ in self.columns]
            for record in records:
                columns[record[0]].setdefault(record[1], []).append(record)
            found = [[result for own in column.values() for result in self._persons(own)] for column in columns]
            values = [
                score(self.annotations, results, "keypoints", self.image_ids, self.sigmas).values for results in found
            ]
            self._scored = records, found, values
        return self._scored[1:]

    def _persons(self, records: list[Record]) -> list[dict[str, Any]]:
        """Those of one image that are kept, the best first."""
        keypoints = np.stack([record[4] for record in records])
        areas = np.array([record[3] for record in records])
        scores = rescored(keypoints, np.array([record[2] for record in records]), self.threshold)
        kept = oks_nms(keypoints, scores, areas, self.sigmas, self.nms)
        return [
            {
                "image_id": records[0][1],
                "category_id": self.category,
                "keypoints": keypoints[place].round(3).ravel().tolist(),
                "score": round(float(scores[place]), 6),
            }
            for place in kept
        ]


def merged(outputs: Tensor, pairs: Sequence[tuple[int, int]]) -> Tensor:
    """Heat maps (B, [2,] J, h, w) -> (B, J, h, w): of the flip test the mean."""
    return flip_merged(outputs, pairs) if outputs.ndim == 5 else outputs


def in_input(outputs: Tensor, batch: Batch, pairs: Sequence[tuple[int, int]]) -> Tensor:
    """Heat maps to key points (B, J, 3): x, y in pixels of the input, and score."""
    maps = merged(outputs, pairs)
    points, scores = decode(maps)
    stride = batch["input"].shape[-1] // maps.shape[-1]
    return torch.cat([points * stride, scores[..., None]], -1)


def in_image(outputs: Tensor, batch: Batch, pairs: Sequence[tuple[int, int]]) -> np.ndarray:
    """Heat maps to key points (B, J, 3) float64 on the CPU: x, y in pixels of the image, and score."""
    found = in_input(outputs, batch, pairs).double().cpu().numpy()
    found[..., :2] = transform(found[..., :2], batch["inverse"].cpu().numpy())
    return found
