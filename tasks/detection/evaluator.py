"""COCO's average precision of boxes."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from torch import Tensor

from tasks.coco.annotations import Annotations
from tasks.coco.scoring import CATEGORY_NUMBERS, Scores, error_curves, score
from tdaf.errors import RunError
from tdaf.task import Batch

# image id; boxes (D, 4) float64 in the image's pixels, scores (D,) and labels (D,), all on the CPU
Record = dict[str, Any]

ERRORS = ("localisation", "confusion", "background", "missed")  # steps from one of `error_curves` to the next
EXPLAINED = {
    "C75": "C75: IoU 0.75",
    "C50": "C50: IoU 0.5",
    "Loc": "Loc: IoU 0.1",
    "Oth": "Oth: without boxes on other categories",
    "BG": "BG: without background and doubles",
    "FN": "FN: and none missed",
}


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
        results = self.results(records)
        scores = score(self._measured(records), results, "bbox")
        return scores.values, {"detections.json": json.dumps(results), "categories.md": table(scores)}

    def report(self, records: list[Record]) -> dict[str, str]:
        """What AP is lost to, by COCO's analysis of errors: curves of all categories, and a line a category."""
        from tdaf.engine.report import bar, curves, legend, paragraph
        from tdaf.engine.report import table as html_table

        measured = self._measured(records)
        found = error_curves(measured, self.results(records))
        names = [name for _, name in sorted(measured.categories)]
        defined = ~np.isnan(found["C50"][0])
        if not defined.any():
            return {"Errors": paragraph("There is no object to find.")}
        whole = {name: values[:, defined].mean(1) for name, values in found.items()}
        rows = [("category", *found, *ERRORS, "")]
        for label in [None, *sorted(np.flatnonzero(defined), key=lambda k: found["C50"][:, k].mean())]:
            areas = [
                float((whole[name] if label is None else values[:, label]).mean()) for name, values in found.items()
            ]
            lost = np.diff(areas[1:]).tolist()
            numbers = (100 * value for value in (*areas, *lost))
            rows.append(("all" if label is None else names[label], *numbers, bar([areas[1], *lost])))
        said = {EXPLAINED[name]: values for name, values in whole.items()}
        heading = "Percent of area under each curve, and what lies between them; the worst categories first."
        return {
            "Precision and recall": curves(said, "recall", "precision"),
            "Errors by category": paragraph(heading) + legend(["AP at IoU 0.5", *ERRORS]) + html_table(rows),
        }

    def _measured(self, records: list[Record]) -> Annotations:
        return self.annotations.only(np.sort(self.annotations.indices(np.array([r["image_id"] for r in records]))))

    def results(self, records: list[Record]) -> list[dict[str, Any]]:
        """In COCO's format."""
        results = []
        for record in records:
            boxes = record["boxes"].clone()
            boxes[:, 2:] -= boxes[:, :2]
            columns = (boxes.tolist(), record["scores"].tolist(), record["labels"].tolist())
            for box, value, label in zip(*columns, strict=True):
                category = self.annotations.categories[label][0]
                results.append({"image_id": record["image_id"], "category_id": category, "bbox": box, "score": value})
        return results


def table(scores: Scores) -> str:
    """Markdown, a category a line and all of them last; in percent, with a dash where there is nothing to find."""
    lines = [f"| category | {' | '.join(CATEGORY_NUMBERS)} | objects |", "|---" + "|---:" * 6 + "|"]
    total = sum(row["objects"] for row in scores.categories.values())
    for name, row in [*scores.categories.items(), ("all", {**scores.values, "objects": total})]:
        numbers = [f"{100 * row[column]:.1f}" if row[column] >= 0 else "-" for column in CATEGORY_NUMBERS]
        lines.append(f"| {name.replace('|', '/')} | {' | '.join(numbers)} | {row['objects']:.0f} |")
    return "\n".join(lines) + "\n"
