"""Where labelled images come from. A source knows its classes and gives a `LabelledImages` for each split."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor


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
