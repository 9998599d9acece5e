"""COCO's images and boxes as samples and batches of bytes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tasks import common
from tasks.coco.source import CocoSplit
from tasks.detection.transforms import Transform
from tdaf.errors import UserError
from tdaf.task import Batch, Dataset, Media

MULTIPLE = 32  # sides of a batch, as FCOS pads; the stages and the pyramid work with others too
MEAN_PIXEL = (124, 116, 104)  # ImageNet's, RGB


class Detections(Dataset):
    """A split with its transform. A sample is a dict of

    "input": uint8 (3, h, w). "size": (h, w). "scale": (x, y), input pixels for one of the image. "image_id".
    "boxes": (K, 4) float32 x1, y1, x2, y2 in input pixels, of no crowd and with some area inside the image.
    "labels": (K,) int64.

    Args:
        split: images and annotations.
        transform: from an image and its boxes to an input.
        keep_empty: for training, whether images without such a box are in; images of one orientation then come
            together (`groups`: 0 wide, 1 tall or square). None: for evaluation, with every image in any order.
        pad_value: the pixel around smaller images of a batch. FCOS pads with zeros after normalisation, which is the
            mean pixel; a whole number differs from that by half a grey level at most, and leaves the batch in bytes.

    Raises:
        UserError: no image is left.
    """

    def __init__(
        self,
        split: CocoSplit,
        transform: Transform,
        keep_empty: bool | None = None,
        pad_value: Sequence[int] = MEAN_PIXEL,
    ) -> None:
        self.split, self.transform, self.pad_value, self.skipped = split, transform, pad_value, split.skipped
        self.files = split
        annotations = split.annotations
        self.notes = dict(annotations.notes)
        self.images = np.arange(len(split))
        if keep_empty is None:
            empty = not annotations.rows()[1].size
            self.notes |= {"objects: there is nothing to find, and so nothing to measure": 0} if empty else {}
            return
        crowds = int(annotations.all_objects["iscrowd"][annotations.rows()[1]].sum())
        self.notes |= {"crowds, not learnt": crowds} if crowds else {}
        if not keep_empty:
            self.images = np.flatnonzero(annotations.usable_counts() > 0)
            left_out = len(split) - len(self.images)
            self.notes |= {"images without an object to learn, left out": left_out} if left_out else {}
        if not len(self.images):
            why = "; ".join(f"{count} {note}" for note, count in self.notes.items())
            raise UserError(f"{annotations.path}: none of its images has an object to learn ({why})")
        height, width = annotations.sizes[self.images].T
        self.groups = (height >= width).astype(np.uint8)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> dict[str, Any]:
        image, annotations = int(self.images[index]), self.split.annotations
        boxes, labels = map(torch.from_numpy, annotations.usable(image))
        view = self.transform(self.split.read(image), boxes)
        sample = _sample(view.image, view.scale, int(annotations.image_ids[image]))
        return {**sample, "boxes": view.boxes, "labels": labels[view.kept]}

    def name(self, index: int) -> str:
        """The path below the root, as a skip list has it."""
        return self.split.name(int(self.images[index]))

    def collate(self, samples: list[dict[str, Any]]) -> Batch:
        """As `collated`, and "boxes" and "labels", lists of B tensors."""
        counts = [len(sample["boxes"]) for sample in samples]
        # parts of one tensor: each tensor of its own would take a file descriptor on its way from a worker
        parts = {key: torch.cat([sample[key] for sample in samples]).split(counts) for key in ("boxes", "labels")}
        return {**collated(samples, self.pad_value), **{key: list(part) for key, part in parts.items()}}


class PredictDataset(common.PredictDataset):
    """Pictures of a user's as evaluation sees images; a sample is that of `Detections` without "boxes" and "labels",
    its "image_id" the picture's index."""

    def __init__(self, pictures: Media, transform: Transform, pad_value: Sequence[int] = MEAN_PIXEL) -> None:
        super().__init__(pictures, transform)
        self.pad_value = pad_value

    def __getitem__(self, index: int) -> dict[str, Any]:
        view = self.transform(self.pictures.read(index), torch.zeros(0, 4))
        return _sample(view.image, view.scale, index)

    def collate(self, samples: list[dict[str, Any]]) -> Batch:
        return collated(samples, self.pad_value)


def _sample(image: Tensor, scale: tuple[float, float], image_id: int) -> dict[str, Any]:
    return {"input": image, "size": tuple(image.shape[1:]), "scale": scale, "image_id": image_id}


def collated(samples: list[dict[str, Any]], pad_value: Sequence[int]) -> Batch:
    """A batch: "input" uint8 (B, 3, H, W) as `padded` gives it, "size" (B, 2) int64, "scale" (B, 2) float32, "image_id"
    (B,) int64."""
    kinds = {"size": torch.int64, "scale": torch.float32, "image_id": torch.int64}
    stacked = {key: torch.tensor([sample[key] for sample in samples], dtype=kind) for key, kind in kinds.items()}
    return {"input": padded([sample["input"] for sample in samples], pad_value), **stacked}


def padded(images: list[Tensor], pad_value: Sequence[int], multiple: int = MULTIPLE) -> Tensor:
    """uint8 (3, h, w) images at the upper left of (B, 3, H, W), H and W the largest h and w rounded up to `multiple`.
    The memory is (B, H, W, 3), as images are decoded and as the network's kernels want it."""
    height, width = (-(-max(image.shape[axis] for image in images) // multiple) * multiple for axis in (1, 2))
    pixel = torch.tensor(pad_value, dtype=torch.uint8)
    out = pixel.repeat(len(images), height, width, 1).permute(0, 3, 1, 2)
    for canvas, image in zip(out, images, strict=True):
        canvas[:, : image.shape[1], : image.shape[2]] = image
    return out
