"""Where labelled videos come from. A source knows its classes and gives a `Videos` for each split."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

import numpy as np
from torch import Tensor

from tdaf.media.clip import Wanted


class Videos(Protocol):
    """The videos of one split."""

    skipped: int  # videos left out by a skip list
    notes: Mapping[str, int]  # what was found wrong in the annotations and handled: how often

    def __len__(self) -> int: ...

    def read(self, index: int, wanted: Wanted) -> Tensor:
        """Frames of video `index` as uint8 RGB (T, 3, H, W); raises UnreadableSample."""

    def check(self, index: int, full: bool) -> None:
        """Raises UnreadableSample where not all of video `index` can be decoded; full=False: where its frames cannot
        be counted, which takes a fraction of the time."""

    def counts(self) -> np.ndarray:
        """The number of frames of each video, 0 where it cannot be told: (N,) int64."""

    def label(self, index: int) -> int: ...

    def path(self, index: int) -> Path: ...

    def name(self, index: int) -> str:
        """What a person finds the video by: its path below the root, as a skip list has it."""


class Source(Protocol):
    classes: list[str]  # names for people, one a class, in the order of the network's outputs

    def split(self, name: str) -> Videos:
        """The split "train" or "val"; raises UserError when it is not there."""
