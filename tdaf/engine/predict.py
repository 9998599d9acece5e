"""What a trained network says of pictures and videos.

    predictor = Predictor("runs/coco_fcos/res50-anar3-flows3-eta0.5-paper-seed0")
    (answer,) = predictor("street.jpg")

An answer is what the run's task says of a sample: {"detections": [{"class", "score", "box"}, ...], ...} here.
"""

from __future__ import annotations

import inspect
import os
import tempfile
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from tdaf.build import checked
from tdaf.engine.data import EvaluationOrder, Loader
from tdaf.engine.evaluate import forward, undefined_outputs
from tdaf.engine.precision import Precision, float32
from tdaf.engine.trained import Run, load_checkpoint
from tdaf.errors import RunError, UserError, first_line
from tdaf.streams import Bar
from tdaf.task import Media, PredictDataset

Answers = list[dict[str, Any]]  # what `task.postprocess` says of the samples of one picture


@dataclass(frozen=True)
class Predictions:
    """What the network says of the pictures of a data set.

    Attributes:
        media: the pictures: an image file is one, a video is as many as it has frames.
        answers: by picture. Of a picture without an entry there is nothing to say (no person in it, say), or it is
            among the unreadable ones.
        unreadable: pictures that cannot be read, with the reason.
    """

    media: Media
    answers: dict[int, Answers]
    unreadable: dict[int, str]

    def of(self, picture: int) -> tuple[Path, int | None, Answers]:
        """(file, frame, answers), as `task.to_json` takes it; frame from 0, None for an image file."""
        return self.media.file(picture), self.media.frame(picture), self.answers.get(picture, [])

    def name(self, picture: int) -> str:
        """What a person finds the picture by."""
        frame = self.media.frame(picture)
        return str(self.media.file(picture)) + ("" if frame is None else f", frame {frame}")


class Predictor:
    """A trained network and its task, ready for pictures.

    Args:
        checkpoint: what `load_checkpoint` gave, or takes: a run folder, a checkpoint's path, or an exported file's.
        device: where the network runs; by default a GPU where there is one and the run's `gpus` is not 0.
        folded: with every batch norm folded into its convolution, which is faster.
        batch: samples at a time.
        trust: see `load_checkpoint`.
        detector: of a task that takes boxes, as that of key points does: whose boxes it takes, a Predictor, or what
            `checkpoint` may be.

    Raises:
        UserError: see `load_checkpoint`; or the task takes no boxes.
    """

    def __init__(
        self,
        checkpoint: Run | str | Path,
        device: str | torch.device | None = None,
        folded: bool = False,
        batch: int = 16,
        trust: Sequence[str] = (),
        detector: Predictor | Run | str | Path | None = None,
    ) -> None:
        self.run = checkpoint if isinstance(checkpoint, Run) else load_checkpoint(checkpoint, trust=trust)
        self.task, self.batch = self.run.task(), batch
        if device is None:
            device = "cuda" if torch.cuda.is_available() and self.run.settings.get("gpus") != 0 else "cpu"
        channels_last = self.run.settings["trainer"].get("channels_last", True)
        self.precision = Precision("auto", torch.device(device), channels_last)
        self.network = self.precision.place(self.run.network(self.task, folded))
        if detector is not None:
            if "boxes" not in inspect.signature(self.task.predict_dataset).parameters:
                raise UserError(f"detector: the task of {self.run.path} takes no boxes")
            if not isinstance(detector, Predictor):
                detector = Predictor(detector, device, folded, batch, trust)
        self.detector = detector

    def __call__(self, inputs: Any, **options: Any) -> list:
        """What the task says of pictures and videos.

        Args:
            inputs: an array, uint8 RGB (H, W, 3); an image of PIL's; the path of an image or a video; or a list of
                such. Pictures in memory go through files without loss, which is what tasks read.
            options: what the task's `predict_dataset` takes besides: boxes=FILE.json for poses, say.

        Returns:
            The answers of an image, a list of plain dicts as `task.postprocess` gives them: one of its class, one with
            all its boxes, or one a person. Of a video a list of such lists, one a frame. Of a list of inputs the list
            of what each of them alone would give.

        Raises:
            UserError: an input that is none of these, or an option that the task does not take.
            RunError: a picture that cannot be read. Of a video that is damaged on its way the frames before the damage
                are returned, with a warning.
        """
        several = isinstance(inputs, (list, tuple))
        with tempfile.TemporaryDirectory() as folder:
            given = inputs if several else [inputs]
            paths = [_file(one, Path(folder) / f"{place}.bmp") for place, one in enumerate(given)]
            once = list(dict.fromkeys(paths))
            options = checked(self.task.predict_dataset, options, "predict", ("paths",))
            if self.detector is not None:
                self.detector.check_knows(options.get("person") or "person")
                options["boxes"] = self.detector.document(once)
            found = self.predict(self.task.predict_dataset(once, **options))
        for picture, reason in found.unreadable.items():
            raise RunError(f"cannot read {found.name(picture)}: {reason}")
        by_file: dict[Path, list] = {path: [] for path in paths}
        for picture in range(len(found.media)):
            path, frame, answers = found.of(picture)
            by_file[path] += answers if frame is None else [answers]
        for path, reason in found.media.faults.items():
            if not by_file[path]:
                raise RunError(f"cannot read {path}: {reason}")
            warnings.warn(f"{path}: {reason}", stacklevel=2)
        return [by_file[path] for path in paths] if several else by_file[paths[0]]

    def check_knows(self, person: str) -> None:
        """Raises UserError where this is no class of the network."""
        classes = list(self.task.classes)
        if person not in classes:
            known = ", ".join(classes[:8]) + (", ..." if len(classes) > 8 else "")
            raise UserError(f"boxes: {self.run.path}: this run knows no {person}; give person=NAME, one of {known}")

    def document(self, paths: list[Path], title: str = "detect") -> Any:
        """What the task's `to_json` says of files: of a detector the boxes that `predict_dataset` of others takes."""
        found = self.predict(self.task.predict_dataset(paths), title)
        return self.task.to_json([found.of(picture) for picture in range(len(found.media))])

    def predict(self, dataset: PredictDataset, title: str = "predict") -> Predictions:
        """Runs the network over `task.predict_dataset(paths)`.

        Args:
            dataset: its samples; several may be of one picture, and one of several.
            title: of the progress bar.

        Raises:
            RunError: a batch does not fit into the GPU's memory, or an output of the network is NaN.
        """
        answers: dict[int, Answers] = {}
        loader = self._loader(dataset)
        with Bar(title, -(-len(dataset) // self.batch)) as bar:
            for batch in loader:
                bar.advance()
                if len(batch["index"]):
                    for index, answer in zip(batch["index"].tolist(), self._postprocessed(batch, dataset), strict=True):
                        for picture in dataset.shown(index):
                            answers.setdefault(picture, []).append(answer)
        bad = {picture: reason for index, (_, reason) in loader.bad.items() for picture in dataset.shown(index)}
        return Predictions(dataset.pictures, answers, {k: why for k, why in bad.items() if k not in answers})

    @torch.inference_mode()
    def _postprocessed(self, batch: dict[str, Any], dataset: PredictDataset) -> Answers:
        moved = self.precision.move(batch)
        try:
            with self.precision.autocast():
                outputs = forward(self.network, moved)
        except torch.OutOfMemoryError as error:
            raise RunError(f"out of GPU memory, with batch={self.batch}: {first_line(error)}") from error
        wrong = undefined_outputs(outputs, len(batch["index"]))
        if wrong:
            names = ", ".join(dataset.name(batch["index"][place].item()) for place in wrong[:3])
            raise RunError(f"the network's output is NaN for {names}: its weights or these pictures are not usable")
        return self.task.postprocess(float32(outputs), moved)

    def _loader(self, dataset: PredictDataset) -> Loader:
        """All samples in order, unreadable ones left out."""
        own = self.run.settings["loader"]
        workers = own["workers"]
        if dataset.pictures.videos or len(dataset) <= 4 * self.batch:
            workers = 0  # a video is read in order, by one process; and a few pictures are not worth more
        return Loader(
            dataset,
            EvaluationOrder(len(dataset), self.batch, rank=0, ranks=1),
            seed=0,
            workers=workers,
            timeout=own["timeout"],
            prefetch=own["prefetch"],
            max_bad=None,
            pin=self.precision.device.type == "cuda",
        )


def _file(given: Any, target: Path) -> Path:
    """The path of one input; what is in memory is written to `target`."""
    if isinstance(given, (str, Path)):
        path = Path(given).expanduser()
        if not os.path.isfile(path):
            raise UserError(f"{path}: there is no such file")
        return path
    pixels = np.array(given.convert("RGB")) if isinstance(given, Image.Image) else np.asarray(given)
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3:
        raise UserError(f"a picture is uint8 (height, width, 3), and this has {pixels.dtype} {pixels.shape}")
    Image.fromarray(pixels).save(target)
    return target
