"""COCO's average precision of boxes."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from tasks.coco.annotations import Annotations
from tasks.coco.scoring import Scores, score
from tdaf.errors import RunError
from tdaf.task import Batch

# image id; boxes (D, 4) float64 in the image's pixels, scores (D,) and labels (D,), all on the CPU
Record = dict[str, Any]
# (outputs, sizes (B, 2)) -> for each image boxes (D, 4) x1, y1, x2, y2 in input pixels, scores (D,), labels (D,)
Decode = Callable[[Any, Tensor], Sequence[tuple[Tensor, Tensor, Tensor]]]


class CocoBoxes:
    """annotations: those of the split. decode: from the network's outputs to detections in input pixels.

    The numbers are COCO's, in 0..1, over exactly the images of the records; -1 where there is nothing to find.
    """

    protocol = "coco"

    def __init__(self, annotations: Annotations, decode: Decode) -> None:
        self.annotations, self.decode = annotations, decode
        self._scored: tuple[list[Record], list[dict[str, Any]], Scores] | None = None

    def update(self, outputs: Any, batch: Batch) -> list[Record]:
        found = self.decode(outputs, batch["size"])
        scales = batch["scale"].double().cpu().repeat(1, 2)
        images = zip(batch["image_id"].tolist(), found, scales, strict=True)
        return [
            {"image_id": number, "boxes": boxes.double().cpu() / scale, "scores": scores.cpu(), "labels": labels.cpu()}
            for number, (boxes, scores, labels), scale in images
        ]

    def compute(self, records: list[Record]) -> dict[str, float]:
        """AP AP50 AP75 APs APm APl AR1 AR10 AR100 ARs ARm ARl."""
        if not records:
            raise RunError("no sample was evaluated")
        return self._scores(records)[1].values

    def files(self, records: list[Record]) -> dict[str, str]:
        """detections.json: results in COCO's format, of which pycocotools says the same numbers. categories.md."""
        results, scores = self._scores(records)
        return {"detections.json": json.dumps(results), "categories.md": table(scores)}

    def _scores(self, records: list[Record]) -> tuple[list[dict[str, Any]], Scores]:
        """Computed once for the same records."""
        if self._scored is None or self._scored[0] is not records:
            results = self._results(records)
            ids = [record["image_id"] for record in records]
            self._scored = records, results, score(self.annotations.path, results, "bbox", ids)
        return self._scored[1:]

    def _results(self, records: list[Record]) -> list[dict[str, Any]]:
        results = []
        for record in records:
            boxes = record["boxes"].clone()
            boxes[:, 2:] -= boxes[:, :2]
            rows = zip(boxes.tolist(), record["scores"].tolist(), record["labels"].tolist(), strict=True)
            for box, value, label in rows:
                category = self.annotations.categories[label][0]
                results.append({"image_id": record["image_id"], "category_id": category, "bbox": box, "score": value})
        return results


def table(scores: Scores) -> str:
    """Markdown, a category a line and all of them last; in percent, with a dash where there is nothing to find."""
    columns = ("AP", "AP50", "APs", "APm", "APl")
    lines = [f"| category | {' | '.join(columns)} | objects |", "|---" + "|---:" * (len(columns) + 1) + "|"]
    total = sum(row["objects"] for row in scores.categories.values())
    for name, row in [*scores.categories.items(), ("all", {**scores.values, "objects": total})]:
        numbers = [f"{100 * row[column]:.1f}" if row[column] >= 0 else "-" for column in columns]
        lines.append(f"| {name.replace('|', '/')} | {' | '.join(numbers)} | {row['objects']:.0f} |")
    return "\n".join(lines) + "\n"
