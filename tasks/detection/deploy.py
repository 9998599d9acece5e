"""FCOS as one file for others: pixels in, boxes after non-maximum suppression out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.ops import nms

from tasks.detection.fcos import Decoder, FcosNetwork


class Detector(nn.Module):
    """The network with its decoding. Protocol: `PredictionTask.deployed` in tdaf/task.py.

    `forward` takes "input", uint8 RGB (B, 3, H, W), and "size" (B, 2), height and width of each image without its
    padding, and gives "boxes" (B, N, 4) x1, y1, x2, y2 in pixels of the input, "scores" (B, N), the best first, and
    "labels" (B, N). N is the same for all images: what is beyond an image's detections has score 0 and label -1.
    """

    dynamic, raw = True, None

    def __init__(self, network: FcosNetwork, decoder: Decoder, classes: int, onnx: bool) -> None:
        super().__init__()
        self.network, self.decoder, self.classes = network, decoder, classes
        self.kept = torch.ops.tdaf.kept if onnx else kept

    def forward(self, input: Tensor, size: Tensor) -> dict[str, Tensor]:
        boxes, scores, labels = self.decoder.candidates(self.network(input), size)
        scores = torch.where(self.kept(boxes, scores, labels, self.classes, self.decoder.nms), scores, 0.0)
        scores, best = scores.topk(torch.sym_min(self.decoder.per_image, scores.shape[1]))
        boxes = boxes.gather(1, best[..., None].expand(-1, -1, 4))
        labels = torch.where(scores > 0, labels.gather(1, best), -1)
        return {"boxes": boxes * (scores > 0)[..., None], "scores": scores, "labels": labels}

    def translations(self) -> dict[Any, Callable[..., Any]]:
        return {torch.ops.tdaf.kept.default: _kept_in_onnx}

    @staticmethod
    def differences(expected: dict[str, Tensor], found: dict[str, Tensor]) -> dict[str, float]:
        """Of each detection to the nearest one of the other side, as detections of equal scores have no order: boxes in
        shares of the largest coordinate. Nothing where neither found anything."""
        if not (expected["scores"].any() or found["scores"].any()):
            return {}
        largest = expected["boxes"].max().clamp(min=1)
        sides = []
        for outputs in (expected, found):
            classes = outputs["labels"][..., None].float()
            sides.append(torch.cat([outputs["boxes"] / largest, outputs["scores"][..., None], 1e3 * classes], -1))
        apart = torch.cdist(*sides, p=torch.inf)
        return {"detections": max(apart.amin(1).max().item(), apart.amin(2).max().item())}


def kept(boxes: Tensor, scores: Tensor, labels: Tensor, classes: int, overlap: float) -> Tensor:
    """Which candidates (B, T) non-maximum suppression by class leaves, as `Decoder` has it, by torchvision's operation
    alone, which others have: all images at once, each class of each moved to a place of its own, in float64, which
    loses nothing of a box there."""
    images = torch.arange(boxes.shape[0], device=boxes.device)[:, None]
    real = scores > 0
    apart = (images * classes + labels) * (boxes.max().double() + 1)
    places = real.flatten().nonzero()[:, 0]
    moved = (boxes.double() + apart[..., None]).flatten(0, 1)[places]
    found = places[nms(moved, scores.flatten()[places].double(), overlap)]
    return torch.zeros_like(scores, dtype=torch.bool).flatten().index_fill(0, found, True).view_as(scores)


# the same as one operation, for which ONNX has one too
_operation = torch.library.custom_op("tdaf::kept", kept, mutates_args=())


@_operation.register_fake
def _(boxes: Tensor, scores: Tensor, labels: Tensor, classes: int, overlap: float) -> Tensor:
    return torch.empty_like(scores, dtype=torch.bool)


def _kept_in_onnx(boxes, scores, labels, classes: int, overlap: float):  # noqa: ANN001, ANN202  of onnxscript
    """NonMaxSuppression takes one score a box and class: all others' are below its threshold."""
    from onnxscript import opset18 as op

    numbers = op.Constant(value_ints=list(range(classes)))
    own = op.Equal(
        op.Unsqueeze(labels, op.Constant(value_ints=[1])), op.Unsqueeze(numbers, op.Constant(value_ints=[1]))
    )
    by_class = op.Where(own, op.Unsqueeze(scores, op.Constant(value_ints=[1])), op.Constant(value_float=-1.0))
    most, least = op.Constant(value_ints=[2**31 - 1]), op.Constant(value_floats=[0.0])
    chosen = op.NonMaxSuppression(boxes, by_class, most, op.Constant(value_floats=[overlap]), least)
    places = op.Gather(chosen, op.Constant(value_ints=[0, 2]), axis=1)
    ones = op.Squeeze(
        op.CastLike(op.Gather(chosen, op.Constant(value_ints=[1]), axis=1), scores), op.Constant(value_ints=[1])
    )
    marks = op.ScatterND(
        op.Mul(scores, op.Constant(value_float=0.0)),
        places,
        op.Add(op.Mul(ones, op.Constant(value_float=0.0)), op.Constant(value_float=1.0)),
    )
    return op.Greater(marks, op.Constant(value_float=0.5))
