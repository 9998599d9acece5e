"""Top-1 and top-5 accuracy."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from tdaf.errors import RunError
from tdaf.model.classifier import log_probabilities
from tdaf.task import Batch

# best classes, best first; label; cross-entropy; probability of the best class
Record = tuple[list[int], int, float, float]


class Accuracy:
    """Accuracy and cross-entropy of single labels.

    Args:
        protocol: "1crop", one view a sample; "10crop", ten views whose softmax probabilities are averaged.
    """

    def __init__(self, protocol: str) -> None:
        self.protocol = protocol

    def update(self, outputs: Tensor, batch: Batch) -> list[Record]:
        """One record a sample. Of equal probabilities the class with the smaller number comes first.

        Args:
            outputs: logits (B, K) or (B, V, K).
            batch: "label" (B,).
        """
        scores = log_probabilities(outputs)
        label = batch["label"].to(scores.device)
        ordered = scores.sort(dim=1, descending=True, stable=True)
        best, probability = ordered.indices[:, :5], ordered.values[:, :1].exp()
        loss = -scores.gather(1, label[:, None])
        # one transfer from the device for everything; class numbers are exact in float64
        rows = torch.cat([loss.double(), probability.double(), label[:, None].double(), best.double()], 1).tolist()
        return [([int(k) for k in row[3:]], int(row[2]), row[0], row[1]) for row in rows]

    def compute(self, records: list[Record]) -> dict[str, float]:
        """The numbers of a split.

        Returns:
            "top1" and "top5" (100 with fewer than 6 classes) in percent, and "loss", the mean cross-entropy in nats.

        Raises:
            RunError: there is no record.
        """
        if not records:
            raise RunError("no sample was evaluated")
        count = len(records)
        top1 = sum(label == best[0] for best, label, *_ in records)
        top5 = sum(label in best for best, label, *_ in records)
        loss = math.fsum(loss for _, _, loss, _ in records) / count
        return {"top1": 100 * top1 / count, "top5": 100 * top5 / count, "loss": loss}
