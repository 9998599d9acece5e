"""SimplePose's loss."""

from __future__ import annotations

from torch import Tensor


def heatmap_loss(maps: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
    """Half the squared error, the mean over persons, key points and pixels; weights multiply error, not square.

    maps, targets (B, J, h, w), weights (B, J) -> a scalar in float32. Key points of weight 0 count in the mean
    (microsoft/human-pose-estimation.pytorch, lib/core/loss.py, JointsMSELoss with target weights).
    """
    error = (maps.float() - targets) * weights[..., None, None]
    return error.square().mean() / 2
