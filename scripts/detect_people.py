"""Finds the persons in the images of a key-point data set, for evaluation with boxes=[gt,people.json]:

    python scripts/detect_people.py checkpoint=RUN_FOLDER data.root=PATH [split=val] [out=people.json] [score=0.05]
                                    [class=person] [batch=8] [trust=MODULE] [key=value ...]
    python scripts/detect_people.py detector=fasterrcnn_resnet50_fpn_v2 data.root=PATH [...]

checkpoint: a run of task=coco_fcos, or its checkpoint. detector: one of torchvision's detectors with its COCO weights,
which are downloaded. data.*: as for task=coco_pose (root, val_annotations, val_images, skip_list, ...). score: boxes
with less are left out. class: what the detector calls a person. Other settings are the run's own. Writes COCO detection
results. Exit codes: 0; 1 where images could not be read, which are named; 2 a mistake in the arguments.
"""

from __future__ import annotations

import inspect
import json
import sys
import tempfile
from http.client import HTTPException
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import yaml

import tdaf.cli.ending  # noqa: F401  first: from here on Ctrl-C is a line
from tdaf.cli.evaluation import open_run, write_text, writing
from tdaf.cli.script import Positive, Share, hint, main
from tdaf.errors import RunError, UnreadableSample, UserError
from tdaf.streams import Bar

if TYPE_CHECKING:
    from tasks.coco.source import CocoSplit

Boxes = dict[int, list[tuple[list[float], float]]]  # by image: boxes (x, y, width, height) and their scores


def detect(
    *,
    checkpoint: Path | None = None,
    detector: str | None = None,
    split: Literal["val", "train"] = "val",
    out: Path = Path("people.json"),
    score: Share = 0.05,
    class_: str = "person",
    batch: Positive = 8,
    trust: list[str] | None = None,
    rest: list[str],
) -> int:
    from tasks.pose.source import CocoKeypoints, person
    from tdaf.build import checked

    if (checkpoint is None) == (detector is None):
        raise UserError("give checkpoint=RUN_FOLDER or detector=fasterrcnn_resnet50_fpn_v2, one of the two")
    overrides = [word for word in rest if not word.startswith("data.")]
    if overrides and checkpoint is None:
        own = [name.rstrip("_") for name in inspect.signature(detect).parameters if name != "rest"]
        raise UserError(f"{overrides[0]}: with detector= there is no such setting; {hint(overrides[0], own)}")
    words = [word.removeprefix("data.").partition("=") for word in rest if word.startswith("data.")]
    try:
        settings = {key: yaml.safe_load(text) for key, _, text in words}
    except yaml.YAMLError as error:
        raise UserError(f"data: {str(error).splitlines()[0]}") from error
    images = CocoKeypoints(**{"root": None, **checked(CocoKeypoints, settings, "data")}).split(split)
    with writing(out):  # a place that cannot be written shows before the detector has run for hours
        out.parent.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=out.parent).close()
    if checkpoint is not None:
        boxes, unreadable = _by_checkpoint(checkpoint, overrides, trust or [], images, class_, batch)
    else:
        boxes, unreadable = _by_torchvision(str(detector), images, class_)
    ids, category = images.annotations.image_ids.tolist(), person(images.annotations)[1]
    results = [
        {"image_id": ids[image], "category_id": category, "bbox": [round(x, 3) for x in box], "score": round(sure, 6)}
        for image in sorted(boxes)
        for box, sure in boxes[image]
        if sure >= score
    ]
    write_text(out, json.dumps(results, separators=(",", ":")) + "\n")
    for name, why in unreadable.items():
        print(f"left out {name}: {why}", file=sys.stderr)
    if len(unreadable) == len(images):
        raise RunError(f"not one of {len(images)} images could be read")
    count = len(images) - len(unreadable)
    print(f"{out}: {len(results)} boxes of {class_} with a score of {score:g} or more, {count} images")
    return 1 if unreadable else 0


def _by_checkpoint(
    checkpoint: Path, overrides: list[str], trust: list[str], split: CocoSplit, name: str, batch: int
) -> tuple[Boxes, dict[str, str]]:
    """What our own detector finds, and by name the images that cannot be read, with the reason."""
    from tdaf.engine.predict import Predictor

    predictor = Predictor(open_run(checkpoint, overrides, trust), batch=batch)
    _check_class(name, list(predictor.task.classes))
    dataset = predictor.task.predict_dataset([Path(split.path(image)) for image in range(len(split))])
    dataset.pictures.reading = split.reading  # as the boxes will be looked at
    predictions = predictor.predict(dataset, "detect")
    boxes: Boxes = {}
    for image, answers in predictions.answers.items():
        if any("detections" not in answer for answer in answers):
            raise UserError(f"checkpoint={checkpoint}: this run's task finds no boxes; give one of task=coco_fcos")
        entries = [one for answer in answers for one in answer["detections"] if one["class"] == name]
        boxes[image] = [(one["box"], one["score"]) for one in entries]
    return boxes, {predictions.name(image): why for image, why in predictions.unreadable.items()}


def _by_torchvision(detector: str, split: CocoSplit, name: str) -> tuple[Boxes, dict[str, str]]:
    """What one of torchvision's detectors finds, with the weights that its makers recommend."""
    import torch
    from torchvision import models

    known = models.list_models(module=models.detection)
    if detector not in known:
        raise UserError(f"detector={detector}: torchvision has no such detector; {hint(detector, known)}")
    weights = models.get_model_weights(detector).DEFAULT
    classes = list(weights.meta["categories"])
    _check_class(name, classes)
    try:
        network = models.get_model(detector, weights=weights)
    except (OSError, RuntimeError, HTTPException) as error:
        raise UserError(f"detector={detector}: its weights cannot be had from {weights.url}: {error}") from error
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    network = network.eval().to(device)
    boxes: Boxes = {}
    unreadable: dict[str, str] = {}
    with Bar("detect", len(split)) as bar:
        for image in range(len(split)):
            bar.advance()
            try:
                pixels = split.read(image)
            except UnreadableSample as error:
                unreadable[split.name(image)] = str(error)
                continue
            with torch.inference_mode():
                found = network([pixels.to(device).float() / 255])[0]
            chosen = found["labels"] == classes.index(name)
            corners = found["boxes"][chosen].double().cpu()
            corners[:, 2:] -= corners[:, :2]
            boxes[image] = list(zip(corners.tolist(), found["scores"][chosen].tolist(), strict=True))
    return boxes, unreadable


def _check_class(name: str, classes: list[str]) -> None:
    if name not in classes:
        more = f" and {len(classes) - 8} more" if len(classes) > 8 else ""
        raise UserError(f"class={name}: this detector knows {', '.join(classes[:8])}{more}")


if __name__ == "__main__":
    sys.exit(main(detect, __doc__))
