"""FCOS (Tian et al. 2019, 2020): from pixels to outputs, from annotations to losses, from outputs to boxes.

Follows tianzhi0549/FCOS (fcos_core/modeling: backbone/fpn.py, rpn/fcos/fcos.py, loss.py, inference.py).

Outputs are a dict of lists, one entry a pyramid level, the finest first: "logits" (B, K, h, w); "boxes" (B, 4, h, w)
float32, distances from a location to the left, top, right and bottom side of its box in input pixels; "centreness"
(B, 1, h, w), logits; "strides", numbers. Boxes are x1, y1, x2, y2 in pixels of the input.
"""

from __future__ import annotations

import math
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import batched_nms, sigmoid_focal_loss

from tdaf.engine import dist
from tdaf.errors import UserError
from tdaf.model.staged import Staged
from tdaf.ranges import within

Outputs = dict[str, Any]
BACKBONE_LEVELS = 3  # pyramid levels that have a map of the backbone: C3 to C5
LEVEL_RANGE = 8  # strides: the largest distance to a box's side that a level answers for (64 pixels at stride 8)
PRIOR = 0.01  # the probability that every location starts with for every class
ALPHA, GAMMA = 0.25, 2.0  # of the focal loss (Lin et al. 2017)
BACKGROUND = -1


@dataclass(frozen=True)
class Variant:
    """What FCOS's first publication (2019) and its improved version (2020) do differently.

    Args:
        centre_sampling: a location is positive within this many strides of a box's centre, and inside the box; 0:
            anywhere inside the box.
        normalised_targets: distances are regressed in strides, through a ReLU; else in pixels, through an exponential.
        centreness_on_box_tower: the centre-ness branch stands on the tower of the boxes, else on that of the classes.
        box_loss: "iou", -log((I + 1) / (U + 1)), or "giou", 1 - GIoU (Rezatofighi et al. 2019).
    """

    centre_sampling: float
    normalised_targets: bool
    centreness_on_box_tower: bool
    box_loss: str


# fcos_core/config/defaults.py, and configs/fcos/fcos_imprv_R_50_FPN_1x.yaml. Its GIoU also adds 1 to the intersection
# and the union, in strides; this one does not (nor do torchvision and mmdetection).
VARIANTS = {
    "original": Variant(centre_sampling=0.0, normalised_targets=False, centreness_on_box_tower=False, box_loss="iou"),
    "improved": Variant(centre_sampling=1.5, normalised_targets=True, centreness_on_box_tower=True, box_loss="giou"),
}


# --- The network


class FcosNetwork(nn.Module):
    """Normalise, body, neck (the pyramid), head: (B, 3, H, W) -> outputs, for any H and W.

    Keys of the state dict: `body.stages...` (followed by torchvision's own), `neck...` and `head...`.

    Args:
        body: the backbone, with TDAF around it or not; UserError where its last three maps do not halve each.
        classes: K.
        variant: one of `VARIANTS`.
        normalise: from bytes to floats.
        channels, convs: of the pyramid and the head, a multiple of 8; convolutions of each tower of the head.
    """

    def __init__(
        self, body: Staged, classes: int, variant: Variant, normalise: nn.Module, channels: int = 256, convs: int = 4
    ) -> None:
        super().__init__()
        strides = level_strides(body)
        self.normalise, self.body = normalise, body
        self.neck = Pyramid(body.widths[-BACKBONE_LEVELS:], channels)
        self.head = Head(classes, strides, variant, channels, convs)

    def forward(self, x: Tensor) -> Outputs:
        return self.head(self.neck(self.body(self.normalise(x))[-BACKBONE_LEVELS:]))


def level_strides(body: Staged) -> list[int]:
    """The strides of P3..P7: those of the body's last three stages, then twice and four times the last; 8..128 for
    every published backbone, smaller with a stem for small inputs."""
    strides = body.strides[-BACKBONE_LEVELS:]
    halving = all(after == 2 * before for before, after in pairwise(strides))
    if body.dims != 2 or len(strides) < BACKBONE_LEVELS or not halving:
        raise UserError(
            f"backbone: detection needs images and three last stages that halve the map each (strides 8, 16, 32, say); "
            f"this one has dims={body.dims} and strides {', '.join(map(str, body.strides))}"
        )
    return [*strides, 2 * strides[-1], 4 * strides[-1]]


class Pyramid(nn.Module):
    """The feature pyramid (Lin et al. 2017) with RetinaNet's two coarser levels: C3, C4, C5 to P3..P7. P6 and P7 come
    from P5, with a ReLU before P7. widths: channels of C3..C5. channels: of every level."""

    def __init__(self, widths: list[int], channels: int = 256) -> None:
        super().__init__()
        self.lateral = nn.ModuleList(nn.Conv2d(width, channels, 1) for width in widths)
        self.smooth = nn.ModuleList(nn.Conv2d(channels, channels, 3, padding=1) for _ in widths)
        self.p6 = nn.Conv2d(channels, channels, 3, stride=2, padding=1)
        self.p7 = nn.Conv2d(channels, channels, 3, stride=2, padding=1)
        for part in self.modules():
            if isinstance(part, nn.Conv2d):
                nn.init.kaiming_uniform_(part.weight, a=1)
                nn.init.zeros_(part.bias)

    def forward(self, maps: list[Tensor]) -> list[Tensor]:
        """maps (B, widths[i], h, w), the finest first -> five levels (B, channels, h, w), the finest first."""
        merged = [lateral(x) for x, lateral in zip(maps, self.lateral, strict=True)]
        for fine in reversed(range(len(merged) - 1)):
            # to the size of the finer map, which is not twice the coarser one's where it is odd
            coarse = F.interpolate(merged[fine + 1], size=merged[fine].shape[2:], mode="nearest")
            merged[fine] = merged[fine] + coarse
        levels = [smooth(x) for x, smooth in zip(merged, self.smooth, strict=True)]
        levels.append(self.p6(levels[-1]))
        levels.append(self.p7(F.relu(levels[-1])))
        return levels


class Head(nn.Module):
    """Two towers that all levels share, of `convs` times 3x3 convolution, group norm, ReLU; a learnable scale a level
    before the box's activation. strides: of the levels. Starts with N(0, 0.01), biases 0 but the classes', scales 1."""

    def __init__(self, classes: int, strides: list[int], variant: Variant, channels: int = 256, convs: int = 4) -> None:
        super().__init__()
        self.strides, self.variant = list(strides), variant
        self.class_tower, self.box_tower = _tower(channels, convs), _tower(channels, convs)
        self.logits = nn.Conv2d(channels, classes, 3, padding=1)
        self.boxes = nn.Conv2d(channels, 4, 3, padding=1)
        self.centreness = nn.Conv2d(channels, 1, 3, padding=1)
        self.scales = nn.Parameter(torch.ones(len(strides)))
        for part in self.modules():
            if isinstance(part, nn.Conv2d):
                nn.init.normal_(part.weight, std=0.01)
                nn.init.zeros_(part.bias)
        nn.init.constant_(self.logits.bias, -math.log((1 - PRIOR) / PRIOR))

    def forward(self, levels: list[Tensor]) -> Outputs:
        """levels (B, channels, h, w) -> outputs."""
        logits, boxes, centreness = [], [], []
        for level, (x, stride) in enumerate(zip(levels, self.strides, strict=True)):
            for_classes, for_boxes = self.class_tower(x), self.box_tower(x)
            logits.append(self.logits(for_classes))
            centreness.append(self.centreness(for_boxes if self.variant.centreness_on_box_tower else for_classes))
            # bfloat16 would give the logarithm of a distance to 1.6 % of the distance; the meta device has no autocast
            kind = x.device.type
            available = torch.amp.is_autocast_available(kind)
            with torch.autocast(kind, enabled=False) if available else nullcontext():
                raw = self.boxes(for_boxes.to(self.boxes.weight.dtype)) * self.scales[level]
                boxes.append(raw.relu() * stride if self.variant.normalised_targets else raw.exp())
        return {"logits": logits, "boxes": boxes, "centreness": centreness, "strides": self.strides}


def _tower(channels: int, convs: int) -> nn.Sequential:
    groups = math.gcd(32, channels // 8)  # 32 at 256 channels; 8 or more channels a group with fewer
    layers: list[nn.Module] = []
    for _ in range(convs):
        layers += [nn.Conv2d(channels, channels, 3, padding=1), nn.GroupNorm(groups, channels), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers)


# --- Which location answers for which box (Sec. 3.1 and 3.2)


class Locations(NamedTuple):
    """All N cells of all levels, the finest level first and each level row by row."""

    points: Tensor  # (N, 2) float32, x and y in input pixels
    strides: Tensor  # (N,) float32
    ranges: Tensor  # (N, 2) float32: the smallest and largest furthest distance to a side, pixels, both included


def locations(outputs: Outputs) -> Locations:
    """The cells of the outputs. At strides 8..128 the ranges are those published: to 64, 128, 256, 512, inf."""
    strides = outputs["strides"]
    limits = [-1.0, *[float(LEVEL_RANGE * stride) for stride in strides[:-1]], math.inf]
    points, cells, ranges = [], [], []
    for level, (logits, stride) in enumerate(zip(outputs["logits"], strides, strict=True)):
        y, x = (torch.arange(size, device=logits.device) * stride + stride // 2 for size in logits.shape[2:])
        grid = torch.stack(torch.meshgrid(x, y, indexing="xy"), 2).flatten(0, 1).float()
        points.append(grid)
        cells.append(grid.new_full(grid.shape[:1], stride))
        ranges.append(torch.stack([grid.new_full(grid.shape[:1], limit) for limit in limits[level : level + 2]], 1))
    return Locations(torch.cat(points), torch.cat(cells), torch.cat(ranges))


class Targets(NamedTuple):
    labels: Tensor  # (B, N) int64, BACKGROUND where no box
    distances: Tensor  # (B, 4, N) float32, to the left, top, right and bottom side in pixels; 1 in the background


def assign(where: Locations, boxes: list[Tensor], labels: list[Tensor], radius: float) -> Targets:
    """A location answers for the smallest box by area of those which hold it (strictly), whose furthest side lies in
    its level's range, and, where radius > 0, whose centre is nearer than `radius` strides on both axes.

    boxes: for each image (K, 4); labels: (K,) int64; K may be 0.
    """
    images = [_assigned(where, *image, radius) for image in zip(boxes, labels, strict=True)]
    return Targets(*[torch.stack(parts) for parts in zip(*images, strict=True)])


def _assigned(where: Locations, boxes: Tensor, labels: Tensor, radius: float) -> tuple[Tensor, Tensor]:
    # One box of no size, which holds no location, lets an image without boxes go the way of all others.
    boxes, labels = F.pad(boxes, (0, 0, 0, 1)), F.pad(labels, (0, 1))
    distances = _distances(where.points[:, None], boxes)
    furthest = distances.amax(2)
    matches = distances.amin(2) > 0
    if radius:
        offsets = (where.points[:, None] - (boxes[:, :2] + boxes[:, 2:]) / 2).abs().amax(2)
        matches &= offsets < radius * where.strides[:, None]
    smallest, largest = where.ranges.split(1, dim=1)
    matches &= (furthest >= smallest) & (furthest <= largest)
    area = (boxes[:, 2:] - boxes[:, :2]).prod(1)
    least, index = torch.where(matches, area, math.inf).min(1)
    positive = least.isfinite()
    own = _distances(where.points, boxes[index])
    return torch.where(positive, labels[index], BACKGROUND), torch.where(positive[:, None], own, 1.0).T


def _distances(points: Tensor, boxes: Tensor) -> Tensor:
    return torch.cat([points - boxes[..., :2], boxes[..., 2:] - points], -1)


def centreness(distances: Tensor) -> Tensor:
    """(B, 4, N) -> (B, N) in 0..1: 1 in the middle of the box, 0 at its sides (Eq. 3)."""
    left, top, right, bottom = distances.unbind(1)
    across = torch.minimum(left, right) / torch.maximum(left, right)
    down = torch.minimum(top, bottom) / torch.maximum(top, bottom)
    return (across * down).sqrt()


# --- The losses: the same operations whatever the images hold, so that ranks cannot fall out of step


def losses(outputs: Outputs, boxes: list[Tensor], labels: list[Tensor], variant: Variant) -> dict[str, Tensor]:
    """The losses "classification", "box" and "centreness". outputs: in float32. boxes, labels: as `assign` takes them.

    "classification" and "centreness" are divided by the number of positive locations, "box", weighted by the
    centre-ness of its target, by the sum of these weights; both are means over all ranks, so that an object counts the
    same on every rank.
    """
    where = locations(outputs)
    targets = assign(where, boxes, labels, variant.centre_sampling)
    positive = targets.labels != BACKGROUND
    weight = centreness(targets.distances) * positive
    count, total = dist.mean(torch.stack([positive.sum(), weight.sum()])).unbind()
    count = count.clamp(min=1)

    logits = flat(outputs["logits"])
    one_hot = torch.zeros_like(logits)
    one_hot.scatter_(1, targets.labels.clamp(min=0)[:, None], positive[:, None].to(one_hot.dtype))
    classification = sigmoid_focal_loss(logits, one_hot, ALPHA, GAMMA, reduction="sum")

    unit = where.strides if variant.normalised_targets else 1.0
    # elsewhere a box equal to its target, so that no rounding and no infinity of theirs counts
    predicted = torch.where(positive[:, None], flat(outputs["boxes"]), 1.0)
    box = BOX_LOSSES[variant.box_loss](predicted / unit, targets.distances / unit)

    predicted_centreness = flat(outputs["centreness"])[:, 0]
    centre = F.binary_cross_entropy_with_logits(
        predicted_centreness, weight, positive.to(weight.dtype), reduction="sum"
    )
    return {
        "classification": classification / count,
        "box": (box * weight).sum() / total.clamp(min=1e-6),
        "centreness": centre / count,
    }


def flat(maps: list[Tensor]) -> Tensor:
    """One map (B, C, h, w) a level -> (B, C, N), in the order of `Locations`."""
    return torch.cat([x.flatten(2) for x in maps], 2)


def iou_loss(predicted: Tensor, target: Tensor) -> Tensor:
    """-log((I + 1) / (U + 1)) of distances (B, 4, N) >= 0 from one point each -> (B, N)."""
    intersection, union, _ = _areas(predicted, target)
    return -torch.log((intersection + 1) / (union + 1))


def giou_loss(predicted: Tensor, target: Tensor) -> Tensor:
    """1 - GIoU of distances (B, 4, N) >= 0 from one point each -> (B, N). torchvision's indexes by a mask, for which
    the host waits."""
    intersection, union, hull = _areas(predicted, target)
    tiny = 1e-7
    return 1 - intersection / (union + tiny) + (hull - union) / (hull + tiny)


BOX_LOSSES = {"iou": iou_loss, "giou": giou_loss}


def _areas(one: Tensor, other: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Of the intersection, the union and the smallest box around both."""

    def area(distances: Tensor) -> Tensor:
        left, top, right, bottom = distances.unbind(1)
        return (left + right) * (top + bottom)

    intersection, hull = area(torch.minimum(one, other)), area(torch.maximum(one, other))
    return intersection, area(one) + area(other) - intersection, hull


# --- From outputs to boxes


class DetectedBoxes(NamedTuple):
    """The detections of one image, the best first."""

    boxes: Tensor  # (D, 4) float32, inside the image
    scores: Tensor  # (D,) float32, the root of class probability times centre-ness
    labels: Tensor  # (D,) int64


@dataclass(frozen=True)
class Decoder:
    """Outputs to detections: the best candidates of each level, then non-maximum suppression by class.

    Args:
        score_threshold: a class probability must be above it, before centre-ness counts.
        nms: overlap (IoU) above which the lower of two boxes of a class goes.
        top: candidates of a level that are kept, by score.
        per_image: detections.

    Raises:
        UserError: a value out of range.
    """

    score_threshold: float = 0.05
    nms: float = 0.6
    top: int = 1000
    per_image: int = 100

    def __post_init__(self) -> None:
        within("[0, 1]", score_threshold=self.score_threshold, nms=self.nms)
        within("[1, inf)", top=self.top, per_image=self.per_image)

    @torch.no_grad()
    def __call__(self, outputs: Outputs, sizes: Tensor) -> list[DetectedBoxes]:
        """outputs: in float32, or what an exported file has made of them (`deploy.Detector`). sizes (B, 2): height and
        width of each image without its padding."""
        if "scores" in outputs:
            images = zip(*(outputs[name] for name in DetectedBoxes._fields), strict=True)
            return [DetectedBoxes(boxes[s > 0], s[s > 0], labels[s > 0]) for boxes, s, labels in images]
        return [self._suppressed(*image) for image in zip(*self.candidates(outputs, sizes), strict=True)]

    def candidates(self, outputs: Outputs, sizes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The best `top` of each level, T together: boxes (B, T, 4) inside the image, scores (B, T), labels (B, T). A
        score of -1 is no candidate."""
        points = locations(outputs).points.split([x.shape[2] * x.shape[3] for x in outputs["logits"]])
        levels = zip(outputs["logits"], outputs["boxes"], outputs["centreness"], points, strict=True)
        parts = [self._of_level(*level) for level in levels]
        boxes, scores, labels = (torch.cat(part, 1) for part in zip(*parts, strict=True))
        limit = sizes.to(boxes.device).flip(1).repeat(1, 2)[:, None].to(boxes.dtype)
        boxes = torch.minimum(boxes.clamp(min=0), limit)
        # a box that lies in the padding has no area left; the publication keeps it
        return boxes, torch.where((boxes[..., 2:] > boxes[..., :2]).all(-1), scores, -1.0), labels

    def _of_level(self, logits: Tensor, boxes: Tensor, centre: Tensor, points: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        probability = logits.flatten(2).sigmoid()
        score = (probability * centre.flatten(2).sigmoid()).sqrt()
        score = torch.where(probability > self.score_threshold, score, -1.0).flatten(1)
        score, index = score.topk(torch.sym_min(self.top, score.shape[1]))
        label = index // points.shape[0]
        cell = index - label * points.shape[0]  # and no remainder, which ONNX has of fixed numbers only
        point = points[cell]
        distances = boxes.flatten(2).gather(2, cell[:, None].expand(-1, 4, -1)).transpose(1, 2)
        corners = torch.cat([point - distances[..., :2], point + distances[..., 2:]], 2)
        return corners, score, label

    def _suppressed(self, boxes: Tensor, scores: Tensor, labels: Tensor) -> DetectedBoxes:
        real = scores >= 0
        boxes, scores, labels = boxes[real], scores[real], labels[real]
        best = batched_nms(boxes, scores, labels, self.nms)[: self.per_image]
        return DetectedBoxes(boxes[best], scores[best], labels[best])
