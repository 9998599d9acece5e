"""Top-1 and top-5 accuracy of videos and of the windows that were cut from them."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from itertools import groupby
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from tdaf.errors import RunError
from tdaf.model.classifier import log_probabilities
from tdaf.task import Batch


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
        """The numbers, and a file.

        Returns:
            In percent "top1" and "top5" of videos, "clip_top1" and "clip_top5" of windows (a top-5 is 100 with fewer
            than 6 classes); "loss", the mean cross-entropy of the windows in nats; "videos", their number. And
            "videos.json": a line a video, with its name, class, number of windows, and five best classes.

        Raises:
            RunError: there is no record.
        """
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
