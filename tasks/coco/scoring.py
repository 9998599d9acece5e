"""Average precision and recall as COCO defines them, by pycocotools, or by faster-coco-eval where it is installed."""

from __future__ import annotations

import contextlib
import gc
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tasks.coco.annotations import Annotations, read
from tdaf.errors import UserError

# name: (precision or recall, IoU or OKS threshold, sizes of objects, results an image), the order COCO prints them in
BOX_NUMBERS = {
    "AP": ("precision", None, "all", 100),
    "AP50": ("precision", 0.5, "all", 100),
    "AP75": ("precision", 0.75, "all", 100),
    "APs": ("precision", None, "small", 100),
    "APm": ("precision", None, "medium", 100),
    "APl": ("precision", None, "large", 100),
    "AR1": ("recall", None, "all", 1),
    "AR10": ("recall", None, "all", 10),
    "AR100": ("recall", None, "all", 100),
    "ARs": ("recall", None, "small", 100),
    "ARm": ("recall", None, "medium", 100),
    "ARl": ("recall", None, "large", 100),
}
POINT_NUMBERS = {
    "AP": ("precision", None, "all", 20),
    "AP50": ("precision", 0.5, "all", 20),
    "AP75": ("precision", 0.75, "all", 20),
    "APm": ("precision", None, "medium", 20),
    "APl": ("precision", None, "large", 20),
    "AR": ("recall", None, "all", 20),
    "AR50": ("recall", 0.5, "all", 20),
    "AR75": ("recall", 0.75, "all", 20),
    "ARm": ("recall", None, "medium", 20),
    "ARl": ("recall", None, "large", 20),
}
NUMBERS = {"bbox": BOX_NUMBERS, "keypoints": POINT_NUMBERS}
SIGMAS = 17  # key points for which COCO publishes its sigmas


@dataclass(frozen=True)
class Scores:
    """values: COCO's numbers by name, in 0..1; -1 where there is no object to find.
    categories: by name, each one's AP, AP50, APs (boxes only), APm, APl, and "objects", how many there are to find.
    """

    values: dict[str, float]
    categories: dict[str, dict[str, float]]


def score(
    annotations_file: Path,
    results: list[dict[str, Any]],
    kind: str,
    image_ids: Sequence[int],
    sigmas: Sequence[float] | None = None,
) -> Scores:
    """What COCO's evaluation says of `results` over these images of the file.

    results: in COCO's format (image_id, category_id, score, and bbox [x, y, width, height] or keypoints); those of
    other images of the file do not count. kind: "bbox" or "keypoints". sigmas: one for each key point, half of COCO's
    constant k; None: COCO's own 17. The numbers are pycocotools's to the bit, or faster-coco-eval's within 1e-9.
    Raises UserError for results of an image that the file does not have, and where sigmas are missing.
    """
    annotations = read(annotations_file)
    places = annotations.places(np.unique(np.asarray(image_ids, np.int64)))
    if not len(places) or places.min() < 0:
        raise UserError(f"{annotations_file}: images to score that are not in it")
    if kind == "keypoints" and len(annotations.keypoint_names) != (SIGMAS if sigmas is None else len(sigmas)):
        count = len(annotations.keypoint_names)
        raise UserError(f"{annotations_file}: objects have {count} key points: give as many sigmas")
    chosen = annotations.only(places)
    ids = set(chosen.image_ids.tolist())
    kept = [dict(result) for result in results if result["image_id"] in ids]
    if len(kept) < len(results):
        _check_known(annotations, results)
    truth = _dataset(chosen, kind)
    with contextlib.redirect_stdout(io.StringIO()), _no_collection():
        found = _evaluated(truth, kept, kind, sigmas)
    return _scores(found, chosen, truth["annotations"], kind)


@contextlib.contextmanager
def _no_collection() -> Iterator[None]:
    """Searching hundreds of thousands of dictionaries for cycles again and again takes a sixth of the whole time."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _check_known(annotations: Annotations, results: list[dict[str, Any]]) -> None:
    ids = np.array([result["image_id"] for result in results], np.int64)
    unknown = ids[annotations.places(ids) < 0]
    if unknown.size:
        raise UserError(f"{annotations.path} has no image {unknown[0]}, of which there are results")


def _dataset(annotations: Annotations, kind: str) -> dict[str, list[dict[str, Any]]]:
    """The annotations in COCO's format again, with the file's own digits."""
    table = annotations.table
    spans = annotations.object_spans
    rows = np.concatenate([np.arange(begin, end) for begin, end in spans])
    columns = {
        "id": table.ids[rows],
        "image_id": np.repeat(annotations.image_ids, spans[:, 1] - spans[:, 0]),
        "category_id": np.array([number for number, _ in annotations.categories])[table.labels[rows]],
        "bbox": table.boxes[rows],
        "area": table.areas[rows],
        "iscrowd": table.crowd[rows].astype(np.int64),
    }
    if kind == "keypoints" and table.keypoints is not None and table.labelled is not None:
        columns["keypoints"] = table.keypoints[rows].reshape(len(rows), -1)
        columns["num_keypoints"] = table.labelled[rows]
    values = zip(*(column.tolist() for column in columns.values()), strict=True)
    objects = [dict(zip(columns, row, strict=True)) for row in values]
    images = [
        {"id": number, "height": height, "width": width}
        for number, (height, width) in zip(annotations.image_ids.tolist(), annotations.sizes.tolist(), strict=True)
    ]
    categories = [{"id": number, "name": name} for number, name in annotations.categories]
    return {"images": images, "annotations": objects, "categories": categories}


def _evaluated(truth: dict[str, list], results: list[dict[str, Any]], kind: str, sigmas: Sequence[float] | None) -> Any:
    """The evaluator of whichever package, with its `eval` and `params` filled."""
    try:
        from faster_coco_eval import COCO
        from faster_coco_eval import COCOeval_faster as COCOeval
    except ImportError:
        from pycocotools.coco import COCO
        from pycocotools.cocoeval import COCOeval
    known, found = COCO(), COCO()
    known.dataset = truth
    known.createIndex()
    if results:
        found = known.loadRes(results)
    else:  # loadRes looks at the first result
        found.dataset = {**truth, "annotations": []}
        found.createIndex()
    evaluation = COCOeval(known, found, kind)
    evaluation.params.imgIds = [image["id"] for image in truth["images"]]
    evaluation.params.catIds = [category["id"] for category in truth["categories"]]
    if sigmas is not None:
        evaluation.params.kpt_oks_sigmas = np.array(sigmas, np.float64)
    evaluation.evaluate()
    evaluation.accumulate()
    return evaluation


def _scores(evaluation: Any, annotations: Annotations, objects: list[dict[str, Any]], kind: str) -> Scores:
    names = NUMBERS[kind]
    values = {name: _mean(evaluation, *number) for name, number in names.items()}
    counted = [entry for entry in objects if not entry["iscrowd"] and entry.get("num_keypoints", 1)]
    places = {number: place for place, (number, _) in enumerate(annotations.categories)}
    totals = np.bincount([places[entry["category_id"]] for entry in counted], minlength=len(places))
    repeated = len(set(annotations.classes)) < len(places)
    categories = {}
    for place, (number, name) in enumerate(annotations.categories):
        shown = {key: names[key] for key in ("AP", "AP50", "APs", "APm", "APl") if key in names}
        row = {key: _mean(evaluation, *asked, place) for key, asked in shown.items()}
        categories[f"{name} ({number})" if repeated else name] = {**row, "objects": float(totals[place])}
    return Scores(values, categories)


def _mean(
    evaluation: Any, kind: str, threshold: float | None, sizes: str, most: int, category: int | None = None
) -> float:
    """Of everything that is defined; -1 where nothing is."""
    params = evaluation.params
    values = np.asarray(evaluation.eval[kind])  # thresholds, [recalls,] categories, sizes, results an image
    values = values[..., params.areaRngLbl.index(sizes), list(params.maxDets).index(most)]
    if threshold is not None:
        values = values[np.isclose(params.iouThrs, threshold, rtol=0, atol=1e-9)]
    if category is not None:
        values = values[..., category]
    defined = values[values > -1]
    return float(defined.mean()) if defined.size else -1.0
