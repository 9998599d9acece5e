"""Average precision and recall as COCO defines them, by pycocotools, or by faster-coco-eval where it is installed."""

from __future__ import annotations

import contextlib
import gc
import io
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tasks.coco.annotations import Annotations
from tdaf.errors import UserError

# in COCO's order; s, m, l: of small, medium and large objects; AR1, AR10, AR100: of so many results an image
BOX_NUMBERS = tuple("AP AP50 AP75 APs APm APl AR1 AR10 AR100 ARs ARm ARl".split())
POINT_NUMBERS = tuple("AP AP50 AP75 APm APl AR AR50 AR75 ARm ARl".split())
NUMBERS = {"bbox": BOX_NUMBERS, "keypoints": POINT_NUMBERS}
# those that are said of each category: IoU or OKS, and size of objects
CATEGORY_NUMBERS = {
    "AP": (None, "all"), "AP50": (0.5, "all"), "APs": (None, "small"), "APm": (None, "medium"), "APl": (None, "large"),
}  # fmt: skip
COCO_KEYPOINTS = 17  # for so many COCO publishes its sigmas


@dataclass(frozen=True)
class Scores:
    """What COCO's evaluation says, in 0..1; -1 where it is undefined, because there is no object to find.

    Args:
        values: COCO's numbers by name.
        categories: by a category's name its AP, AP50, APs (boxes only), APm and APl, and "objects", how many there are
            to find.
    """

    values: dict[str, float]
    categories: dict[str, dict[str, float]]


def score(
    annotations: Annotations, results: list[dict[str, Any]], kind: str, sigmas: Sequence[float] | None = None
) -> Scores:
    """COCO's evaluation of `results` over all images of `annotations`, by pycocotools (the numbers are its own to the
    bit), or by faster-coco-eval (within 1e-9).

    Args:
        results: in COCO's format: image_id, category_id, score, and bbox [x, y, width, height] or keypoints.
        kind: "bbox" or "keypoints".
        sigmas: one for each key point, half of COCO's constant k; None: COCO's own 17.

    Raises:
        UserError: results of an image that is not among the annotations', or another number of sigmas.
    """
    unknown = {result["image_id"] for result in results} - set(annotations.image_ids.tolist())
    if unknown:
        raise UserError(f"{annotations.path} has no image {min(unknown)}, of which there are results")
    joints = len(annotations.keypoint_names)
    if kind == "keypoints" and joints != (COCO_KEYPOINTS if sigmas is None else len(sigmas)):
        raise UserError(f"{annotations.path}: objects have {joints} key points: give as many sigmas")
    truth = _dataset(annotations, kind)
    collecting = gc.isenabled()
    gc.disable()  # to search hundreds of thousands of dictionaries for cycles takes a sixth of the whole time
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            evaluation = _evaluated(truth, [dict(result) for result in results], kind, sigmas)
            evaluation.summarize()
    finally:
        if collecting:
            gc.enable()
    values = dict(zip(NUMBERS[kind], map(float, evaluation.stats), strict=False))  # faster-coco-eval says more
    to_find = Counter(
        entry["category_id"] for entry in truth["annotations"] if not entry["iscrowd"] and entry.get("num_keypoints", 1)
    )
    repeated = len(set(annotations.classes)) < len(annotations.categories)
    categories = {}
    for index, (number, name) in enumerate(sorted(annotations.categories)):  # as COCO sorts them
        row = {key: _precision(evaluation, index, *CATEGORY_NUMBERS[key]) for key in CATEGORY_NUMBERS if key in values}
        categories[f"{name} ({number})" if repeated else name] = {**row, "objects": float(to_find[number])}
    return Scores(values, categories)


def error_curves(annotations: Annotations, results: list[dict[str, Any]]) -> dict[str, np.ndarray]:
    """What boxes lose to which error, as COCO's analysis has it (Hoiem et al. 2012; cocoapi, CocoEval.m, analyze).

    Precision (101, K) over recalls 0 to 1, of categories in the order of their ids; NaN for one without an object:
    "C75" and "C50", at this IoU; "Loc", at IoU 0.1, so that errors of localisation are forgiven; "Oth", boxes on
    objects of other categories are not counted either; "BG", no false one is counted; "FN", none is missed, which is 1.
    A box is on an object of another category where a tenth of it is, as on a crowd.
    """
    truth = _dataset(annotations, "bbox")
    with contextlib.redirect_stdout(io.StringIO()):
        strict = _evaluated(truth, [dict(result) for result in results], "bbox", None, [0.1, 0.5, 0.75])
        # what boxes of a category may lie on without harm are crowds of that category
        found: dict[int, set[int]] = {}
        for result in results:
            found.setdefault(result["image_id"], set()).add(result["category_id"])
        others = [
            {**entry, "category_id": category, "iscrowd": 1}
            for entry in truth["annotations"]
            for category in found.get(entry["image_id"], ())
            if category != entry["category_id"]
        ]
        entries = [{**entry, "id": number} for number, entry in enumerate([*truth["annotations"], *others], 1)]
        lenient = _evaluated(
            {**truth, "annotations": entries}, [dict(result) for result in results], "bbox", None, [0.1]
        )
    low, mid, high = np.asarray(strict.eval["precision"])[:, :, :, 0, -1]
    other = np.asarray(lenient.eval["precision"])[0, :, :, 0, -1]
    named = {"C75": high, "C50": mid, "Loc": low, "Oth": other, "BG": np.where(other > 0, 1.0, 0.0)}
    named["FN"] = np.ones_like(other)
    return {name: np.where(mid < 0, np.nan, values) for name, values in named.items()}


def _dataset(annotations: Annotations, kind: str) -> dict[str, list[dict[str, Any]]]:
    """The annotations in COCO's format again, with the file's own digits."""
    images, rows = annotations.rows()
    objects = annotations.all_objects[rows]
    columns = {
        "id": np.arange(1, len(objects) + 1),  # pycocotools takes 0 for "nothing matched"
        "image_id": annotations.image_ids[images],
        "category_id": np.array([number for number, _ in annotations.categories])[objects["category"]],
        "bbox": objects["bbox"],
        "area": objects["area"],
        "iscrowd": objects["iscrowd"].astype(np.int64),
    }
    if kind == "keypoints":
        columns["keypoints"] = objects["keypoints"].reshape(len(objects), -1)
        columns["num_keypoints"] = objects["num_keypoints"]
    values = zip(*(column.tolist() for column in columns.values()), strict=True)
    return {
        "images": [{"id": number} for number in annotations.image_ids.tolist()],
        "annotations": [dict(zip(columns, row, strict=True)) for row in values],
        "categories": [{"id": number, "name": name} for number, name in annotations.categories],
    }


def _evaluated(
    truth: dict[str, list],
    results: list[dict[str, Any]],
    kind: str,
    sigmas: Sequence[float] | None,
    thresholds: Sequence[float] | None = None,
) -> Any:
    """The evaluator of whichever package, with its `eval` and `params` filled. thresholds: None for COCO's ten."""
    try:
        from faster_coco_eval import COCO
        from faster_coco_eval import COCOeval_faster as COCOeval
    except ImportError:
        from pycocotools.coco import COCO
        from pycocotools.cocoeval import COCOeval
    truth_index, result_index = COCO(), COCO()
    truth_index.dataset = truth
    truth_index.createIndex()
    if results:
        result_index = truth_index.loadRes(results)
    else:  # loadRes looks at the first result
        result_index.dataset = {**truth, "annotations": []}
        result_index.createIndex()
    evaluation = COCOeval(truth_index, result_index, kind)
    evaluation.params.imgIds = [image["id"] for image in truth["images"]]
    evaluation.params.catIds = [category["id"] for category in truth["categories"]]
    if sigmas is not None:
        evaluation.params.kpt_oks_sigmas = np.array(sigmas, np.float64)
    if thresholds is not None:
        evaluation.params.iouThrs = np.array(thresholds)
    evaluation.evaluate()
    evaluation.accumulate()
    return evaluation


def _precision(evaluation: Any, category: int, threshold: float | None, size: str) -> float:
    """The mean of everything that is defined; -1 where nothing is."""
    params = evaluation.params
    values = np.asarray(evaluation.eval["precision"])[:, :, category, params.areaRngLbl.index(size), -1]
    if threshold is not None:
        values = values[np.isclose(params.iouThrs, threshold, rtol=0, atol=1e-9)]
    defined = values[values > -1]
    return float(defined.mean()) if defined.size else -1.0
