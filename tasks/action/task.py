"""Action recognition as the engine sees it (protocols: tdaf/task.py)."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tasks.action.data import Clips, Timing, Windows
from tasks.action.transforms import Transform
from tasks.common import ClassTask, Source
from tdaf.errors import RunError, UserError
from tdaf.model.classifier import Classifier, LinearHead, log_probabilities
from tdaf.model.staged import Staged
from tdaf.ranges import within
from tdaf.task import Batch

WINDOWS = {"clip": 3, "hara": None, "30view": 10}  # of a video, by protocol; None: all that do not overlap
STRIP = 8  # frames of a clip that its picture shows


class Record(NamedTuple):
    """One window. rank: how many classes come before its own, of equal ones those with the smaller number.
    probabilities: (K,) float32, a numpy array since those cross between ranks faster than tensors."""

    video: int
    label: int
    rank: int
    loss: float
    probabilities: np.ndarray


class VideoAccuracy:
    """Accuracy of videos and of the windows that were cut from them (protocol: Evaluator in tdaf/task.py).

    The probabilities of a video are the mean over its windows, in each the mean over its views (Hara et al. 2018,
    Sec. 4.2: softmax first).

    Args:
        protocol: which windows there are; a name to print.
        classes: their names.
        name: what a person finds a video by, from its place in the split.
    """

    def __init__(self, protocol: str, classes: Sequence[str], name: Callable[[int], str]) -> None:
        self.protocol, self.classes, self.name = protocol, classes, name

    def update(self, outputs: Tensor, batch: Batch) -> list[Record]:
        """outputs: logits (B, K) or (B, V, K)."""
        scores = log_probabilities(outputs)
        label = batch["label"].to(scores.device)
        own = scores.gather(1, label[:, None])
        smaller = torch.arange(scores.shape[1], device=scores.device) < label[:, None]
        rank = ((scores > own) | ((scores == own) & smaller)).sum(1, keepdim=True)
        rows = torch.cat([rank.float(), -own, scores.exp()], 1).cpu().numpy()
        return [
            Record(video, label, int(row[0]), float(row[1]), row[2:])
            for video, label, row in zip(batch["video"].tolist(), label.tolist(), rows, strict=True)
        ]

    def compute(self, records: list[Record]) -> tuple[dict[str, float], dict[str, str]]:
        """In percent "top1", "top5" of videos, "clip_top1", "clip_top5" of windows (a top-5 is 100 with fewer than 6
        classes); "loss", the mean cross-entropy of the windows in nats; "videos", their number. And "videos.json", a
        line a video: its name, class, number of windows, and five best classes. RunError where there is no record."""
        if not records:
            raise RunError("no sample was evaluated")
        ranks, lines = [], []
        for video, group in groupby(sorted(records, key=lambda record: record.video), lambda record: record.video):
            windows = list(group)
            mean = video_probabilities(windows)
            order, label = np.argsort(-mean, kind="stable").tolist(), windows[0].label
            ranks.append(order.index(label))
            line = {"video": self.name(video), "class": self.classes[label], "windows": len(windows)}
            lines.append(json.dumps({**line, "top5": [self.classes[k] for k in order[:5]]}))
        by_video, by_clip = _accuracy(ranks), _accuracy([record.rank for record in records])
        loss = math.fsum(record.loss for record in records) / len(records)
        values = {"top1": by_video[0], "top5": by_video[1], "clip_top1": by_clip[0], "clip_top5": by_clip[1]}
        return {**values, "loss": loss, "videos": len(ranks)}, {"videos.json": "[\n" + ",\n".join(lines) + "\n]\n"}


def video_probabilities(windows: Sequence[Record]) -> np.ndarray:
    """(K,) float64, the mean over a video's windows."""
    return np.mean([window.probabilities for window in windows], axis=0, dtype=np.float64)


def _accuracy(ranks: list[int]) -> tuple[float, float]:
    """Top-1 and top-5 in percent."""
    return tuple(100 * sum(rank < most for rank in ranks) / len(ranks) for most in (1, 5))


class Action(ClassTask):
    """Classes of videos, through windows of their frames.

    Args:
        data: whose splits are such as `ListedVideos`.
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
        from tdaf.media.drawing import labelled  # training draws nothing

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
