"""What predict does with a trained network: answers to every picture first, then the pictures again, drawn on."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from fractions import Fraction
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
import yaml
from PIL import Image
from torch import Tensor

from tdaf.cli.run import loader_settings
from tdaf.build import checked
from tdaf.cli.trained import Trained
from tdaf.engine.data import EvaluationOrder, Loader
from tdaf.engine.log import Bar
from tdaf.engine.precision import Precision, float32
from tdaf.errors import UnreadableSample, UserError
from tdaf.media.suffixes import is_video
from tdaf.media.video import VideoWriter
from tdaf.model.fold import fold
from tdaf.task import PredictDataset, Task

Answers = dict[int, list[dict[str, Any]]]  # by picture
Found = list[tuple[Path, int | None, list[dict[str, Any]]]]  # (file, frame, answers) of every picture drawn


def taken(task: Task, options: dict[str, str]) -> dict[str, Any]:
    """The task's own options, as typed, in the kinds that its `inputs` takes. UserError for what it does not take."""
    takes = [name for name in inspect.signature(task.predict_dataset).parameters if name != "paths"]
    values = {}
    for name, value in options.items():
        if not takes:
            raise UserError(f"{name}={value}: predict has no such setting for this checkpoint; see --help")
        try:
            values[name] = yaml.safe_load(value)
        except yaml.YAMLError:
            values[name] = value
    return checked(task.predict_dataset, values, "predict", ("paths",))


def answered(run: Trained, task: Task, inputs: PredictDataset, batch: int, folded: bool) -> tuple[Answers, dict[str, str]]:
    """What the network says of each picture, and by name the pictures of which it can say nothing, with the reason."""
    network = run.network(task)
    device = torch.device("cuda" if torch.cuda.is_available() and run.config["gpus"] != 0 else "cpu")
    precision = Precision("auto", device, run.config["trainer"]["channels_last"])
    network = precision.place(fold(network) if folded else network)
    # a video is read in order, by one process
    workers = {"workers": 0} if inputs.pictures.videos or len(inputs) <= 4 * batch else {}
    how = {**vars(loader_settings(run.config)), **workers, "max_bad": None, "pin": device.type == "cuda"}
    loader = Loader(inputs, EvaluationOrder(len(inputs), batch), seed=run.config["seed"], **how)
    said: Answers = {}
    with _bar("predict", -(-len(inputs) // batch)) as bar:
        for part in loader:
            bar.advance()
            if not len(part["index"]):
                continue
            moved = precision.move(part)
            with torch.inference_mode():
                with precision.autocast():
                    outputs = network(moved["input"])
                answers = task.postprocess(float32(outputs), moved)
            for index, answer in zip(part["index"].tolist(), answers, strict=True):
                for picture in inputs.shown(index):
                    said.setdefault(picture, []).append(answer)
    bad = {picture: why for index, (_, why) in loader.bad.items() for picture in inputs.shown(index)}
    return said, {_name(inputs, picture): why for picture, why in bad.items() if picture not in said}


def drawn(task: Task, inputs: PredictDataset, said: Answers, bad: dict[str, str], targets: dict[Path, Path]) -> Found:
    """Draws every picture that is not in `bad`, which takes up those that cannot be read again."""
    pictures, found = inputs.pictures, []
    with _bar("draw", len(pictures)) as bar:
        for path, group in groupby(range(len(pictures)), pictures.file):
            with _canvas(targets[path], pictures.fps(path) if is_video(path) else None) as write:
                for picture in group:
                    bar.advance()
                    name = _name(inputs, picture)
                    try:
                        image = None if name in bad else pictures.read(picture)
                    except UnreadableSample as error:
                        bad[name] = str(error)
                        continue
                    if image is not None:
                        answers = said.get(picture, [])
                        write(task.draw(image, answers))
                        found.append((path, pictures.frame(picture), answers))
    return found


@contextmanager
def _bar(title: str, total: int) -> Iterator[Bar]:
    bar = Bar(title, total)
    try:
        yield bar
    finally:
        bar.stop()


@contextmanager
def _canvas(target: Path, fps: Fraction | None) -> Iterator[Callable[[Tensor], None]]:
    """What writes pictures to `target`: a video of them with `fps`, else the one image."""
    with writing(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        if fps is None:
            yield lambda picture: Image.fromarray(picture.permute(1, 2, 0).contiguous().numpy()).save(target)
        else:
            with VideoWriter(target, fps) as video:
                yield video.write


@contextmanager
def writing(target: Path) -> Iterator[None]:
    """Turns a disk's refusal into one line."""
    try:
        yield
    except OSError as error:
        raise UserError(f"out: {target} cannot be written: {error.strerror or error}") from error


def _name(inputs: PredictDataset, picture: int) -> str:
    frame = inputs.pictures.frame(picture)
    return str(inputs.pictures.file(picture)) + ("" if frame is None else f", frame {frame}")
