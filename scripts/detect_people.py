"""Finds the persons in the images of a key-point data set, for evaluation with boxes=[gt,people.json]:

    python scripts/detect_people.py checkpoint=RUN_FOLDER data.root=PATH [split=val] [out=people.json] [score=0.05]
                                    [class=person] [batch=8] [key=value ...]
    python scripts/detect_people.py detector=fasterrcnn_resnet50_fpn_v2 data.root=PATH [...]

checkpoint: a run of task=coco_fcos, or its checkpoint. detector: one of torchvision's detectors with its COCO weights,
which are downloaded. data.*: as for task=coco_pose (root, val_annotations, val_images, skip_list, ...). score: boxes
with less are left out. class: what the detector calls a person. Other settings are the run's own. Writes COCO detection
results. Exit codes: 0; 1 where images could not be read, which are named; 2 a mistake in the arguments.
"""

from __future__ import annotations

import difflib
import json
import math
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPException
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tdaf.cli.arguments import given, main
from tdaf.errors import RunError, UnreadableSample, UserError

if TYPE_CHECKING:
    from tasks.coco.source import CocoSplit

OWN = ("checkpoint", "detector", "split", "out", "score", "class", "batch")
Found = dict[int, list[tuple[list[float], float]]]  # by image: boxes (x, y, width, height) and their scores


def detect(arguments: list[str]) -> int:
    own, rest = given(arguments, OWN)
    if (own["checkpoint"] is None) == (own["detector"] is None):
        raise UserError("give checkpoint=RUN_FOLDER or detector=fasterrcnn_resnet50_fpn_v2, one of the two")
    batch, name, out = own["batch"] or "8", own["class"] or "person", Path(own["out"] or "people.json").expanduser()
    if not batch.isdecimal() or int(batch) == 0:
        raise UserError(f"batch={batch}: give a whole number above 0")
    if own["split"] not in (None, "train", "val"):
        raise UserError(f"split={own['split']}: give train or val")
    least = _number(own["score"] or "0.05")
    split = _split(own["split"] or "val", [argument for argument in rest if argument.startswith("data.")])
    with _writing(out):  # a place that cannot be written shows before the detector has run for hours
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=out.parent):
            pass
    if own["checkpoint"] is not None:
        settings = [argument for argument in rest if not argument.startswith("data.")]
        found, bad = _by_checkpoint(own["checkpoint"], settings, split, name, int(batch))
    else:
        found, bad = _by_torchvision(str(own["detector"]), split, name)
    results = _results(found, split, least)
    with _writing(out):
        out.write_text(json.dumps(results, separators=(",", ":")) + "\n")
    for image, why in bad.items():
        print(f"left out {image}: {why}", file=sys.stderr)
    if len(bad) == len(split):
        raise RunError(f"not one of {len(split)} images could be read")
    print(f"{out}: {len(results)} boxes of {name} with a score of {least:g} or more, {len(split) - len(bad)} images")
    return 1 if bad else 0


def _number(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value <= 1:
        raise UserError(f"score={text}: give 0 to 1")
    return value


@contextmanager
def _writing(target: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UserError(f"out={target} cannot be written: {error.strerror or error}") from error


def _split(name: str, data: list[str]) -> CocoSplit:
    """The images to look at, from the `data.` settings."""
    import yaml

    from tdaf.build import checked
    from tasks.pose.source import CocoKeypoints

    try:
        settings = {key.removeprefix("data."): yaml.safe_load(v) for key, _, v in (a.partition("=") for a in data)}
    except yaml.YAMLError as error:
        raise UserError(f"{' '.join(data)}: {str(error).splitlines()[0]}") from error
    return CocoKeypoints(**{"root": None, **checked(CocoKeypoints, settings, "data")}).split(name)


def _by_checkpoint(
    checkpoint: str, overrides: list[str], split: CocoSplit, name: str, batch: int
) -> tuple[Found, dict[str, str]]:
    """What our own detector finds, and by name the images that cannot be read, with the reason."""
    from tdaf.cli import prediction, trained

    run = trained.read(checkpoint, overrides)
    task = run.task()
    _check_class(name, list(task.classes))
    inputs = task.predict_dataset([Path(split.path) / name for name in split.annotations.file_names])
    said, bad = prediction.answered(run, task, inputs, batch, False)
    found: Found = {}
    for image, answers in said.items():
        if any("detections" not in answer for answer in answers):
            raise UserError(f"checkpoint={checkpoint}: this run's task finds no boxes; give one of task=coco_fcos")
        boxes = [one for answer in answers for one in answer["detections"] if one["class"] == name]
        found[image] = [(one["box"], one["score"]) for one in boxes]
    return found, bad


def _by_torchvision(model: str, split: CocoSplit, name: str) -> tuple[Found, dict[str, str]]:
    """What one of torchvision's detectors finds, with the weights that its makers recommend."""
    import torch
    from torchvision import models

    from tdaf.engine.log import Bar

    known = models.list_models(module=models.detection)
    if model not in known:
        close = difflib.get_close_matches(model, known, n=1)
        hint = f"did you mean {close[0]}?" if close else f"torchvision has {_some(known)}"
        raise UserError(f"detector={model}: there is no such detector; {hint}")
    weights = models.get_model_weights(model).DEFAULT
    classes = list(weights.meta["categories"])
    _check_class(name, classes)
    try:
        network = models.get_model(model, weights=weights)
    except (OSError, RuntimeError, HTTPException) as error:
        raise UserError(f"detector={model}: its weights cannot be had from {weights.url}: {error}") from error
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    network = network.eval().to(device)
    found: Found = {}
    bad: dict[str, str] = {}
    bar = Bar("detect", len(split))
    for image in range(len(split)):
        bar.advance()
        try:
            pixels = split.read(image)
        except UnreadableSample as error:
            bad[split.name(image)] = str(error)
            continue
        with torch.inference_mode():
            said = network([pixels.to(device).float() / 255])[0]
        found[image] = _of_class(said, classes.index(name))
    bar.stop()
    return found, bad


def _of_class(said: dict[str, Any], label: int) -> list[tuple[list[float], float]]:
    mine = said["labels"] == label
    boxes = said["boxes"][mine].double().cpu()
    boxes[:, 2:] -= boxes[:, :2]
    return list(zip(boxes.tolist(), said["scores"][mine].tolist(), strict=True))


def _results(found: Found, split: CocoSplit, least: float) -> list[dict[str, Any]]:
    """COCO's results, the images in the order of the split."""
    from tasks.pose.source import person

    ids, category = split.annotations.image_ids.tolist(), person(split.annotations)[1]
    return [
        {
            "image_id": ids[image],
            "category_id": category,
            "bbox": [round(x, 3) for x in box],
            "score": round(score, 6),
        }
        for image in sorted(found)
        for box, score in found[image]
        if score >= least
    ]


def _check_class(name: str, classes: list[str]) -> None:
    if name not in classes:
        raise UserError(f"class={name}: this detector knows {_some(classes)}")


def _some(names: list[str]) -> str:
    return ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")


if __name__ == "__main__":
    sys.exit(main(detect, __doc__))
