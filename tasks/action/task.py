"""Action recognition as the engine sees it (protocols: tdaf/task.py)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tasks.action.data import Clips, Timing, Windows
from tasks.action.evaluator import Record, VideoAccuracy, video_probabilities
from tasks.action.transforms import Transform
from tasks.common import ClassTask, Source
from tdaf.errors import UserError
from tdaf.media.drawing import labelled
from tdaf.model.classifier import Classifier, LinearHead
from tdaf.model.staged import Staged
from tdaf.ranges import within
from tdaf.task import Batch

WINDOWS = {"clip": 3, "hara": None, "30view": 10}  # of a video, by protocol; None: all that do not overlap
STRIP = 8  # frames of a clip that its picture shows


class Action(ClassTask):
    """Classes of videos, through windows of their frames.

    Args:
        data: whose splits are `Videos`.
        train_transform, val_transforms: from the frames of a window to an input.
        frames, stride: a window is `frames` frames of a video, every `stride`-th.
        protocol: "clip", three windows spread evenly over each video; "hara", all windows that do not overlap;
            "30view", ten spread evenly. Softmax probabilities are averaged over a video's windows, and over the views
            of a window.
        mean, std, label_smoothing, dropout: see `ClassTask`.

    Raises:
        UserError: values outside these.
    """

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
        known = {name: val_transforms[name] for name in WINDOWS if name in val_transforms}
        super().__init__(data, train_transform, known, mean, std, protocol, label_smoothing, dropout)
        within("[1, inf)", frames=frames, stride=stride)
        self.frames, self.stride = frames, stride

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
        return Classifier(body, head, self.normalise(body))

    def dataset(self, split: str) -> Clips:
        """Of "train" a random window of each video."""
        train = split == "train"
        timing = Timing(self.frames, self.stride, 1 if train else WINDOWS[self.protocol], random=train)
        return Clips(self.data.split(split), timing, self.train_transform if train else self.val_transform)

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
        rows = zip(
            batch["frames"].tolist(), batch["seconds"].tolist(), super().postprocess(outputs, batch), strict=True
        )
        return [{"start": start, "end": end, "seconds": times, **answer} for (start, end), times, answer in rows]

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
        rows = zip(batch["input"], batch["label"].tolist(), strict=True)
        return [labelled(_strip(clip), self.classes[label]) for clip, label in rows]

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

        return classified(answers, self.classes, lambda k: _strip(dataset[k]["input"]), dataset.name, wide=True)

    def original(self, dataset: Clips, index: int) -> Tensor:
        """Frames from the whole video."""
        video, _ = dataset.locate(index)
        frames = dataset.videos.read(video, lambda total: [k * (total - 1) // (STRIP - 1) for k in range(STRIP)])
        return torch.cat(list(frames), dim=-1)

    def counts(self, dataset: Clips) -> dict[str, dict[str, int]]:
        return {"videos by class": self.by_class(map(dataset.videos.label, range(len(dataset.videos))))}

    def visualize(self, outputs: Tensor, batch: Batch) -> dict[str, list[Tensor]]:
        """Frames of each clip side by side, in time from left to right, with the best class."""
        rows = zip(map(_strip, batch["input"].cpu()), super().postprocess(outputs, batch), strict=True)
        return {"prediction": [self.draw(strip, [answer]) for strip, answer in rows]}


def _strip(clips: Tensor) -> Tensor:
    """([V,] 3, T, H, W) -> (3, H, frames * W), of several views the middle one."""
    clip = clips if clips.ndim == 4 else clips[(len(clips) - 1) // 2]
    frames = torch.linspace(0, clip.shape[1] - 1, min(STRIP, clip.shape[1])).round().long()
    return torch.cat(list(clip[:, frames].unbind(1)), dim=2)
