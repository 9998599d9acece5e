"""What a layout of a data set comes to: a list of videos with their classes."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from tdaf.errors import UserError
from tdaf.media.files import VIDEOS


@dataclass
class Listing:
    """names: paths below the data set's root, with /. labels: classes, one a name. notes: as a Dataset has them."""

    names: list[str] = field(default_factory=list)
    labels: list[int] = field(default_factory=list)
    notes: dict[str, int] = field(default_factory=dict)


class Layout(Protocol):
    classes: list[str]

    def listing(self, split: str) -> Listing:
        """The split "train" or "val"; raises UserError where it cannot be had."""


def videos_in(folder: str | os.PathLike[str], frames: bool) -> list[str]:
    """Sorted names of the video files in a folder; frames: of the folders in it, each a video's frames."""
    with os.scandir(folder) as entries:
        if frames:
            return sorted(entry.name for entry in entries if entry.is_dir())
        return sorted(entry.name for entry in entries if entry.name.lower().endswith(VIDEOS))


def folders_in(folder: str | os.PathLike[str]) -> list[str]:
    with os.scandir(folder) as entries:
        return sorted(entry.name for entry in entries if entry.is_dir())


def located(root: Path, given: str | None, usual: tuple[str, ...], sign: str, setting: str, layout: str) -> Path:
    """The folder below `root` that holds something like `sign` (a glob): the one given, else one of the usual ones."""
    for name in (given,) if given is not None else usual:
        if any((root / name).glob(sign)):
            return root / name
    tried = ", ".join(str(root / name) for name in ((given,) if given is not None else usual))
    raise UserError(f"no {sign} in {tried}; {layout}, or name its folder with data.{setting}")


def some(names: Iterable[str]) -> str:
    listed = sorted(names)
    return ", ".join(listed[:3]) + (f" and {len(listed) - 3} more" if len(listed) > 3 else "")


def missing(found: int, listed: int) -> dict[str, int]:
    """The note that says how many of the annotated videos are there."""
    gone = listed - found
    return {f"of the {listed} annotated videos are missing and left out, {found} are there": gone} if gone else {}
