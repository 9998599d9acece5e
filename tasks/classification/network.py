"""The classification network: pixels to logits through any staged body."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tdaf.model.staged import Staged


class Normalise(nn.Module):
    """Pixels 0..255, uint8 or float, (B, 3, ...) to (pixel / 255 - mean) / std a colour, in the module's own precision.

    mean, std: in units of 0..1. Holds no parameter and adds nothing to the state dict.
    """

    def __init__(self, mean: list[float], std: list[float], dims: int = 2) -> None:
        super().__init__()
        shape = (1, len(mean)) + (1,) * dims
        mean_, std_ = torch.tensor(mean, device="cpu"), torch.tensor(std, device="cpu")
        self.register_buffer("factor", (1 / (255 * std_)).view(shape), persistent=False)
        self.register_buffer("offset", (-mean_ / std_).view(shape), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return torch.addcmul(self.offset, x.to(self.factor.dtype), self.factor)


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
    """Normalise, body, head: (B, 3, H, W) -> logits (B, classes); (B, V, 3, H, W), V views a sample -> (B, V, classes).

    Keys of the state dict: `body.stages...` and `head...`, each followed by torchvision's own.
    """

    def __init__(self, body: Staged, head: nn.Module, normalise: nn.Module) -> None:
        super().__init__()
        self.normalise, self.body, self.head = normalise, body, head

    def forward(self, x: Tensor) -> Tensor:
        views = x.shape[:-3] if self.body.dims == 2 else x.shape[:-4]
        logits = self.head(self.body(self.normalise(x.flatten(0, len(views) - 1)))[-1])
        return logits.view(*views, -1)
