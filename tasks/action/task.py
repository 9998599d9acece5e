"""Action recognition as the engine sees it (protocols: tdaf/task.py)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tasks.action.data import Clips, Windows, evaluation_clips, training_clips
from tasks.action.evaluator import Record, VideoAccuracy, video_probabilities
from tasks.action.transforms import Transform
from tasks.action.videos import Source
from tdaf.errors import UserError
from tdaf.media.drawing import labelled
from tdaf.model.classifier import Classifier, LinearHead, Probabilities, log_probabilities
from tdaf.model.normalise import Normalise
from tdaf.model.staged import Staged
from tdaf.task import Batch

PROTOCOLS = ("clip", "hara", "30view")
STRIP = 8  # frames of a clip that its picture shows


class Action:
    """Classes of videos, through windows of their frames.

    Args:
        data: the videos.
        train_transform: from the frames of a window to an input.
        val_transforms: the same for evaluation, one for each protocol by name.
        mean, std: of the pixels, in units of 0..1.
        frames, stride: a window is `frames` frames of a video, every `stride`-th.
        protocol: "clip", three windows spread evenly over each video; "hara", all windows that do not overlap;
            "30view", ten spread evenly. Softmax probabilities are averaged over a video's windows, and over the views
            of a window.
        label_smoothing: in 0..1.
        dropout: before the linear layer.

    Raises:
        UserError: values outside these.
    """

    metric = "top1"

    def __init__(
        self,
        data: Source,
        train_transform: Transform,
        val_transforms: Mapping[str, Transform],
        mean: list[float],
        std: list[float],
        frames: int = 16,
        stride: int = 1,
        protocol: str = "clip",
        label_smoothing: float = 0.0,
        dropout: float = 0.0,
    ) -> None:
        if protocol not in PROTOCOLS or protocol not in val_transforms:
            has = ", ".join(name for name in PROTOCOLS if name in val_transforms)
            raise UserError(f"protocol={protocol}: this task has {has}")
        for name, count in (("frames", frames), ("stride", stride)):
            if count < 1:
                raise UserError(f"{name}={count}: give 1 or more")
        for name, value in (("label_smoothing", label_smoothing), ("dropout", dropout)):
            if not 0 <= value < 1:
                raise UserError(f"{name}={value}: give 0 or more and less than 1")
        if not len(mean) == len(std) == 3 or min(std) <= 0:
            raise UserError("mean, std: give three numbers each, one a colour, std above 0")
        self.data, self.train_transform, self.val_transform = data, train_transform, val_transforms[protocol]
        self.mean, self.std, self.frames, self.stride = list(mean), list(std), frames, stride
        self.protocol, self.label_smoothing, self.dropout = protocol, label_smoothing, dropout

    @property
    def classes(self) -> list[str]:
        """Names for people, in the order of the logits."""
        return self.data.classes

    def network(self, backbone: Staged, tdaf: Callable[[Staged], Staged]) -> nn.Module:
        body = tdaf(backbone)
        if body.dims != 3:
            raise UserError(f"dims={body.dims}: this task's inputs are clips; give dims=3")
        halvings = getattr(body, "flows", 1) - 1
        if self.frames <= 2 ** (halvings - 1):
            raise UserError(
                f"flows={halvings + 1}, frames={self.frames}: each flow reads half the frames of the next, and "
                f"there is not one left to halve; give fewer flows, or {2 ** (halvings - 1) + 1} frames or more"
            )
        head = LinearHead(body.widths[-1], len(self.classes), self.dropout)
        return Classifier(body, head, Normalise(self.mean, self.std, body.dims))

    def dataset(self, split: str) -> Clips:
        videos = self.data.split(split)
        if split == "train":
            return training_clips(videos, self.train_transform, self.frames, self.stride)
        return evaluation_clips(videos, self.val_transform, self.frames, self.stride, self.protocol)

    def losses(self, outputs: Tensor, batch: Batch) -> dict[str, Tensor]:
        """outputs: logits (B, K)."""
        loss = F.cross_entropy(outputs.float(), batch["label"], label_smoothing=self.label_smoothing)
        return {"cross_entropy": loss}

    def evaluator(self) -> VideoAccuracy:
        return VideoAccuracy(self.protocol, self.classes, lambda video: self.data.split("val").name(video))

    def predict_dataset(self, paths: list[Path]) -> Windows:
        """Videos of the user's, in windows one after the other, each prepared as in validation."""
        return Windows(paths, self.val_transform, self.frames, self.stride)

    def postprocess(self, outputs: Tensor, batch: Batch) -> list[dict[str, Any]]:
        """{"start", "end", "seconds", "top5": [{"class": name, "probability": p}, ...]} a window, the best first;
        start, end: its first frame and the one after its last. "text": the same for people."""
        windows, seconds = batch["frames"].tolist(), batch["seconds"].tolist()
        answers = []
        for (start, end), times, top5 in zip(windows, seconds, self._top5(outputs), strict=True):
            text = ", ".join(f"{entry['class']} {entry['probability']:.1%}" for entry in top5)
            answers.append({"start": start, "end": end, "seconds": times, "top5": top5, "text": text})
        return answers

    def draw(self, picture: Tensor, answers: list[dict[str, Any]]) -> Tensor:
        """The best class of the window that the frame is in, at its foot."""
        return labelled(picture, _best(answers[0]["top5"]) if answers else "?")

    def to_json(self, found: list[tuple[Path, int | None, list[dict[str, Any]]]]) -> dict[str, Any]:
        """{"videos": [{"file", "windows": [{"start", "end", "seconds", "top5"}, ...]}, ...]}, as in `postprocess`."""
        videos = []
        for path, pictures in groupby(found, lambda entry: entry[0]):
            windows = {answer["start"]: answer for _, _, answers in pictures for answer in answers}
            plain = [{k: v for k, v in answer.items() if k != "text"} for _, answer in sorted(windows.items())]
            videos.append({"file": str(path), "windows": plain})
        return {"videos": videos}

    def draw_targets(self, batch: Batch) -> list[Tensor]:
        """Frames of each clip side by side, with its class."""
        return [
            labelled(strip, self.classes[label])
            for strip, label in zip(_strips(batch["input"]), batch["label"].tolist(), strict=True)
        ]

    def report(self, records: Mapping[int, Record], dataset: Clips) -> dict[str, str]:
        """Of videos, each shown by the window that is surest of the video's wrong class."""
        from tdaf.engine.report import Answer, classified

        answers = []
        for _, group in groupby(sorted(records.items(), key=lambda pair: pair[1].video), lambda pair: pair[1].video):
            windows = list(group)
            mean = video_probabilities([record for _, record in windows])
            said = int(mean.argmax())
            index, record = max(windows, key=lambda pair: pair[1].probabilities[said])
            answers.append(Answer(index, record.label, said, float(mean[said])))

        def strip(index: int) -> Tensor:
            return _strips(_middle(dataset[index]["input"][None]))[0]

        return classified(answers, self.classes, strip, dataset.name, wide=True)

    def original(self, dataset: Clips, index: int) -> Tensor:
        """Frames from the whole video."""
        video, _ = dataset.locate(index)
        frames = dataset.videos.read(video, lambda total: [k * (total - 1) // (STRIP - 1) for k in range(STRIP)])
        return torch.cat(list(frames), dim=-1)

    def counts(self, dataset: Clips) -> dict[str, dict[str, int]]:
        found = Counter(dataset.videos.label(video) for video in range(len(dataset.videos)))
        return {"videos by class": {name: found[k] for k, name in enumerate(self.classes)}}

    def deployed(self, network: nn.Module, onnx: bool) -> nn.Module:
        return Probabilities(network)

    def visualize(self, outputs: Tensor, batch: Batch) -> dict[str, list[Tensor]]:
        """Frames of each clip side by side, in time from left to right, with the best class; of several views the
        middle one."""
        clips = _middle(batch["input"].cpu())
        best = map(_best, self._top5(outputs))
        return {"prediction": [labelled(strip, text) for strip, text in zip(_strips(clips), best, strict=True)]}

    def _top5(self, outputs: Tensor) -> list[list[dict[str, Any]]]:
        top = log_probabilities(outputs).exp().cpu().topk(min(5, len(self.classes)))
        return [
            [{"class": self.classes[k], "probability": p} for k, p in zip(classes, values, strict=True)]
            for classes, values in zip(top.indices.tolist(), top.values.tolist(), strict=True)
        ]


def _middle(clips: Tensor) -> Tensor:
    """(B, [V,] 3, T, H, W) -> (B, 3, T, H, W)."""
    return clips if clips.ndim == 5 else clips[:, (clips.shape[1] - 1) // 2]


def _strips(clips: Tensor) -> list[Tensor]:
    frames = torch.linspace(0, clips.shape[2] - 1, min(STRIP, clips.shape[2])).round().long()
    return [torch.cat(list(clip[:, frames].unbind(1)), dim=2) for clip in clips]


def _best(top5: list[dict[str, Any]]) -> str:
    return f"{top5[0]['class']} {top5[0]['probability']:.0%}"
