"""COCO's average precision of boxes."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from torch import Tensor

from tasks.coco.annotations import Annotations
from tasks.coco.scoring import CATEGORY_NUMBERS, Scores, score
from tdaf.errors import RunError
from tdaf.task import Batch

# image id; boxes (D, 4) float64 in the image's pixels, scores (D,) and labels (D,), all on the CPU
Record = dict[str, Any]


class CocoBoxes:
    """COCO's box AP and AR in 0..1, over exactly the images of the records; -1 where there is nothing to find.

    Args:
        annotations: those of the split.
        decode: (the network's outputs, sizes (B, 2)) -> for each image boxes (D, 4) x1, y1, x2, y2 in input pixels,
            scores (D,) and labels (D,).
    """

    protocol = "coco"

    def __init__(
        self, annotations: Annotations, decode: Callable[[Any, Tensor], Sequence[tuple[Tensor, Tensor, Tensor]]]
    ) -> None:
        self.annotations, self.decode = annotations, decode

    def update(self, outputs: Any, batch: Batch) -> list[Record]:
        scales = batch["scale"].double().cpu().repeat(1, 2)
        images = zip(batch["image_id"].tolist(), self.decode(outputs, batch["size"]), scales, strict=True)
        return [
            {"image_id": number, "boxes": boxes.double().cpu() / scale, "scores": scores.cpu(), "labels": labels.cpu()}
            for number, (boxes, scores, labels), scale in images
        ]

    def compute(self, records: list[Record]) -> tuple[dict[str, float], dict[str, str]]:
        """AP AP50 AP75 APs APm APl AR1 AR10 AR100 ARs ARm ARl; and the files detections.json, results in COCO's format,
        of which pycocotools says the same numbers, and categories.md."""
        if not records:
            raise RunError("no sample was evaluated")
        results = []
        for record in records:
            boxes = record["boxes"].clone()
            boxes[:, 2:] -= boxes[:, :2]
            columns = (boxes.tolist(), record["scores"].tolist(), record["labels"].tolist())
            for box, value, label in zip(*columns, strict=True):
                category = self.annotations.categories[label][0]
                results.append({"image_id": record["image_id"], "category_id": category, "bbox": box, "score": value})
        indices = self.annotations.indices(np.array([record["image_id"] for record in records]))
        scores = score(self.annotations.only(np.sort(indices)), results, "bbox")
        return scores.values, {"detections.json": json.dumps(results), "categories.md": table(scores)}


def table(scores: Scores) -> str:
    """Markdown, a category a line and all of them last; in percent, with a dash where there is nothing to find."""
    lines = [f"| category | {' | '.join(CATEGORY_NUMBERS)} | objects |", "|---" + "|---:" * 6 + "|"]
    total = sum(row["objects"] for row in scores.categories.values())
    for name, row in [*scores.categories.items(), ("all", {**scores.values, "objects": total})]:
        numbers = [f"{100 * row[column]:.1f}" if row[column] >= 0 else "-" for column in CATEGORY_NUMBERS]
        lines.append(f"| {name.replace('|', '/')} | {' | '.join(numbers)} | {row['objects']:.0f} |")
    return "\n".join(lines) + "\n"
