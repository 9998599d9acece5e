"""Pictures that a user gives to predict, as the network takes them."""

from __future__ import annotations

from typing import Any

from torch.utils.data import default_collate

from tasks.classification.transforms import Transform
from tdaf.media.pictures import Media
from tdaf.task import Batch


class PredictDataset:
    """One sample a picture, prepared by `transform`: "input" uint8 ([V,] 3, H, W)."""

    skipped = 0
    notes: dict[str, int] = {}
    groups = None

    def __init__(self, pictures: Media, transform: Transform) -> None:
        self.pictures, self.transform = pictures, transform

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"input": self.transform(self.pictures.read(index))}

    def name(self, index: int) -> str:
        return self.pictures.name(index)

    def shown(self, index: int) -> list[int]:
        return [index]

    def collate(self, samples: list[dict[str, Any]]) -> Batch:
        return default_collate(samples)
