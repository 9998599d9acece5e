"""The two lines of FCOS, choice by choice."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Line:
    """What FCOS's first publication (2019) and its improved version (2020) do differently.

    centre_sampling: a location counts as positive within this many strides of a box's centre, and inside the box; 0:
        anywhere inside the box.
    normalised_targets: distances are regressed in strides, through a ReLU; else in pixels, through an exponential.
    centreness_on_box_tower: the centre-ness branch stands on the tower of the boxes, else on that of the classes.
    box_loss: "iou", -log((I + 1) / (U + 1)), or "giou", 1 - GIoU (Rezatofighi et al. 2019).
    """

    centre_sampling: float
    normalised_targets: bool
    centreness_on_box_tower: bool
    box_loss: str


# tianzhi0549/FCOS: fcos_core/config/defaults.py, and configs/fcos/fcos_imprv_R_50_FPN_1x.yaml. Its GIoU also adds 1 to
# the intersection and the union, in strides; this one does not (nor do torchvision and mmdetection).
LINES = {
    "original": Line(centre_sampling=0.0, normalised_targets=False, centreness_on_box_tower=False, box_loss="iou"),
    "improved": Line(centre_sampling=1.5, normalised_targets=True, centreness_on_box_tower=True, box_loss="giou"),
}
