"""The network of a task that names one class a sample: pixels to logits through any staged body."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from tdaf.model.staged import Staged


class LinearHead(nn.Module):
    """The mean over space (and time), dropout, one linear layer `fc`, as torchvision's ResNet ends."""

    def __init__(self, width: int, classes: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        self.fc = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        """(B, width, [T,] H, W) -> (B, classes)."""
        return self.fc(self.dropout(x.mean(tuple(range(2, x.ndim)))))


class Classifier(nn.Module):
    """Normalise, body, head: (B, 3, [T,] H, W) -> logits (B, classes); V views a sample, (B, V, 3, [T,] H, W), to
    (B, V, classes).

    Keys of the state dict: `body.stages...` and `head...`, each followed by torchvision's own.
    """

    def __init__(self, body: Staged, head: nn.Module, normalise: nn.Module) -> None:
        super().__init__()
        self.normalise, self.body, self.head = normalise, body, head

    def forward(self, x: Tensor) -> Tensor:
        views, last = self.features(x)
        return self.head(last).view(*views, -1)

    def features(self, x: Tensor) -> tuple[torch.Size, Tensor]:
        """The body's last map (views, width, [t,] h, w) of all views, and their shape, (B,) or (B, V)."""
        views = x.shape[:-3] if self.body.dims == 2 else x.shape[:-4]
        return views, self.body(self.normalise(x.flatten(0, len(views) - 1)))[-1]


class Probabilities(nn.Module):
    """A classifier with its softmax, as one file for others. Protocol: `PredictionTask.deployed` in tdaf/task.py."""

    def __init__(self, network: Classifier) -> None:
        super().__init__()
        self.network, self.raw = network, "logits"
        self.dynamic = network.body.dims == 2 and isinstance(network.head, LinearHead)

    def forward(self, input: Tensor) -> dict[str, Tensor]:
        """uint8 RGB (B, 3, [T,] H, W) -> "probabilities" and "logits" (B, classes)."""
        logits = logits_of(self.network(input))
        return {"probabilities": logits.softmax(-1), "logits": logits}


def logits_of(outputs: Tensor | dict[str, Tensor]) -> Tensor:
    """The logits of a network that may have other outputs besides."""
    return outputs["logits"] if isinstance(outputs, dict) else outputs


def log_probabilities(outputs: Tensor | dict[str, Tensor]) -> Tensor:
    """Logits (B, K), or (B, V, K) for V views, to float32 log-probabilities (B, K), the softmax averaged over views."""
    scores = logits_of(outputs).float().log_softmax(-1)
    if scores.ndim == 3:
        scores = scores.logsumexp(1) - math.log(scores.shape[1])
    return scores
