"""torchvision's FCOS and ours with the same weights, for tests of the improved variant.

Where torchvision's differs on purpose, the pair is built so that the difference does not count:
- Its cells lie at multiples of the stride, ours (the publication's) half a stride further; and it takes image size //
  map size for the stride, which is another number where a map was rounded up: `Centred`.
- It pads after normalising, with 0; ours before, in pixels: `PAD` is the mean colour, which becomes 0.
- It resizes images: here their short side is the one asked for.
- It has no scale a level: ours start at 1, which is the same.
- The range of a level holds both of its ends in the publication and none in torchvision: boxes are drawn at random
  fractions of pixels, so that no distance is exactly an end.
- It finds the smallest box by 10^8 - area in float32, whose steps are 8: the boxes' areas differ by more.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torchvision.models import resnet18
from torchvision.models.detection import FCOS
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.ops import FrozenBatchNorm2d
from torchvision.ops.feature_pyramid_network import LastLevelP6P7

from tasks.detection.fcos import VARIANTS, FcosNetwork
from tdaf.model.backbones.resnet import resnet
from tdaf.model.freeze import fix_batch_norm
from tdaf.model.normalise import Normalise
from tdaf.model.pretrained import load

CLASSES, STRIDES = 5, [8, 16, 32, 64, 128]
MEAN, STD, PAD = [0.4, 0.4, 0.4], [0.2, 0.25, 0.3], 102
SIZES = [(128, 224), (128, 195)]  # of two images; both are padded to the first


class Centred(AnchorGenerator):
    def grid_anchors(self, sizes: list, strides: list) -> list[Tensor]:
        found = super().grid_anchors(sizes, [[torch.tensor(stride)] * 2 for stride in STRIDES])
        return [anchors + stride // 2 for anchors, stride in zip(found, STRIDES, strict=True)]


def pair(score: float = 0.0, nms: float = 0.6, top: int = 1000, per_image: int = 100) -> tuple[FCOS, FcosNetwork]:
    """torchvision's and ours, in train mode, with weights spread far enough for many boxes of all sizes."""
    torch.manual_seed(0)
    backbone = BackboneWithFPN(
        resnet18(norm_layer=FrozenBatchNorm2d),
        {"layer2": "0", "layer3": "1", "layer4": "2"},
        [128, 256, 512],
        256,
        LastLevelP6P7(256, 256),
    )
    anchors = Centred(tuple((s,) for s in STRIDES), ((1.0,),) * 5)
    theirs = FCOS(
        backbone,
        CLASSES,
        min_size=128,
        image_mean=MEAN,
        image_std=STD,
        anchor_generator=anchors,
        score_thresh=score,
        nms_thresh=nms,
        topk_candidates=top,
        detections_per_img=per_image,
    )
    head = theirs.head.regression_head
    with torch.no_grad():
        for part in (theirs.head.classification_head.cls_logits, head.bbox_reg, head.bbox_ctrness):
            part.weight.mul_(10)
        theirs.head.classification_head.cls_logits.bias.fill_(-2)
        head.bbox_reg.bias.fill_(2)
    return theirs, copied(theirs)


def copied(theirs: FCOS) -> FcosNetwork:
    body = resnet(18)
    fix_batch_norm(body, "frozen")
    ours = FcosNetwork(body, CLASSES, VARIANTS["improved"], Normalise(MEAN, STD))
    report = load(ours.body, theirs.backbone.body.state_dict())
    assert not report.missing and not report.unexpected
    fpn, (classes, boxes) = theirs.backbone.fpn, (theirs.head.classification_head, theirs.head.regression_head)
    pairs: list[tuple[nn.Module, nn.Module]] = [
        *zip(ours.neck.lateral, (block[0] for block in fpn.inner_blocks), strict=True),
        *zip(ours.neck.smooth, (block[0] for block in fpn.layer_blocks), strict=True),
        (ours.neck.p6, fpn.extra_blocks.p6),
        (ours.neck.p7, fpn.extra_blocks.p7),
        (ours.head.class_tower, classes.conv),
        (ours.head.box_tower, boxes.conv),
        (ours.head.logits, classes.cls_logits),
        (ours.head.boxes, boxes.bbox_reg),
        (ours.head.centreness, boxes.bbox_ctrness),
    ]
    for mine, other in pairs:
        mine.load_state_dict(other.state_dict())
    loaded = sum(p.numel() for mine, _ in pairs for p in mine.parameters()) + 5
    assert loaded == sum(p.numel() for part in (ours.neck, ours.head) for p in part.parameters())
    return ours


def images() -> tuple[list[Tensor], Tensor]:
    """Two images as torchvision takes them, 0..1, and as one batch of ours, uint8 and padded."""
    drawn = torch.Generator().manual_seed(1)
    pixels = [torch.randint(0, 256, (3, *size), generator=drawn, dtype=torch.uint8) for size in SIZES]
    batch = torch.full((2, 3, *SIZES[0]), PAD, dtype=torch.uint8)
    for place, image in enumerate(pixels):
        batch[place, :, : image.shape[1], : image.shape[2]] = image
    return [image / 255 for image in pixels], batch


def objects(count: int = 12) -> tuple[list[Tensor], list[Tensor]]:
    """Boxes from 6 pixels to the whole image, many of which overlap, and their labels."""
    drawn = torch.Generator().manual_seed(2)
    boxes, labels = [], []
    for height, width in SIZES:
        limit = torch.tensor([width, height])
        sides = torch.rand(count, 2, generator=drawn) ** 2 * (limit - 6.5) + 6
        sides[0] = 0.98 * limit
        corner = torch.rand(count, 2, generator=drawn) * (limit - sides)
        boxes.append(torch.cat([corner, corner + sides], 1))
        labels.append(torch.randint(0, CLASSES, (count,), generator=drawn))
        areas = sides.prod(1).sort().values
        assert areas.diff().min() > 8
    return boxes, labels


def run_theirs(theirs: FCOS, boxes: list[Tensor], labels: list[Tensor]) -> tuple[dict[str, Tensor], dict[str, object]]:
    """Its losses, and what it gave to its head's `compute_loss`: outputs, anchors, the box of each cell."""
    given: dict[str, object] = {}
    compute: Callable = theirs.head.compute_loss

    def compute_loss(targets: list, outputs: dict, anchors: list, matched: list) -> dict[str, Tensor]:
        given.update(outputs=outputs, anchors=anchors, matched=matched)
        return compute(targets, outputs, anchors, matched)

    theirs.head.compute_loss = compute_loss
    targets = [{"boxes": b, "labels": k} for b, k in zip(boxes, labels, strict=True)]
    losses = theirs.train()(images()[0], targets)
    theirs.head.compute_loss = compute
    return losses, given
