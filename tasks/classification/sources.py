"""Where labelled images come from. A source knows its classes and gives a `LabelledImages` for each split."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from torch import Tensor

from tasks.classification.reading import read_image


class LabelledImages(Protocol):
    """The images of one split."""

    skipped: int  # images left out by a skip list

    def __len__(self) -> int: ...

    def read(self, index: int) -> tuple[Tensor, int]:
        """(uint8 RGB image (3, H, W), class index); raises UnreadableSample."""

    def name(self, index: int) -> str:
        """What a person finds the image by."""


class Source(Protocol):
    classes: list[str]  # names for people, one a class, in the order of the network's outputs

    def split(self, name: str) -> LabelledImages:
        """The split "train" or "val"; raises UserError when it is not there."""


class Files:
    """Image files without labels (-1), as a user gives them to predict."""

    skipped = 0

    def __init__(self, paths: list[Path]) -> None:
        self.paths = paths

    def __len__(self) -> int:
        return len(self.paths)

    def read(self, index: int) -> tuple[Tensor, int]:
        return read_image(self.paths[index]), -1

    def name(self, index: int) -> str:
        return str(self.paths[index])
