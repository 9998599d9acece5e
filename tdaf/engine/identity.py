"""What its data are to a run: the names of its classes, in order, and its samples, wherever they lie.

A checkpoint keeps both under "about", so that data that changed are not taken for those that were trained on.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from pathlib import PurePath
from typing import Any

from tdaf.errors import UserError
from tdaf.task import Dataset

LOOKED_AT = 1000  # names of a split, evenly spaced
NAMED = 3  # classes of a difference
ACCEPT = "if this is meant, data.changed=true (Trainer's changed_data) accepts it"


def samples_of(splits: Mapping[str, Dataset]) -> dict[str, dict[str, int]]:
    """By split "count", and "names", a checksum of some samples' file names and of the folders that these lie in: they
    stay what they are when a data set moves."""
    return {name: {"count": len(dataset), "names": _checksum(dataset)} for name, dataset in splits.items()}


def class_difference(before: Sequence[str], now: Sequence[str]) -> str:
    """What two lists of classes differ in, for people; "" where they are the same."""
    before, now = list(before), list(now)
    if before == now:
        return ""
    gone, new = ([name for name in a if name not in b] for a, b in ((before, now), (now, before)))
    if not gone and not new and len(before) == len(now):
        first = next(k for k, (a, b) in enumerate(zip(before, now, strict=True)) if a != b)
        return f"the same classes in another order (number {first + 1} was {before[first]} and is {now[first]})"
    sides = (("only in the checkpoint", gone), ("only in the data", new))
    parts = "; ".join(f"{side}: {_some(names)}" for side, names in sides if names)
    return f"{len(before)} classes were trained and the data have {len(now)}{parts and '; '}{parts}"


def check_unchanged(about: Mapping[str, Any], now: Mapping[str, Any], where: str) -> None:
    """Raises UserError where a checkpoint's "about" is of other classes or samples. What an older version did not keep
    is not compared."""
    difference = class_difference(about.get("classes", now["classes"]), now["classes"])
    if difference:
        raise UserError(f"{where} was made with other classes: {difference}; {ACCEPT}")
    for split, before in about.get("samples", {}).items():
        after = now["samples"].get(split, before)
        if before != after:
            why = f"{before['count']} samples in {split} then, {after['count']} now"
            if before["count"] == after["count"]:
                why = f"as many samples in {split}, but other files"
            raise UserError(f"{where} was made with other data: {why}; {ACCEPT}, or give another run_dir")


def _checksum(dataset: Dataset) -> int:
    checksum = 0
    for index in range(0, len(dataset), -(-len(dataset) // LOOKED_AT) or 1):
        parts = PurePath(dataset.name(index)).parts[-2:]
        checksum = zlib.crc32("/".join(parts).encode(errors="surrogateescape"), checksum)
    return checksum


def _some(names: list[str]) -> str:
    return ", ".join(names[:NAMED]) + (f" and {len(names) - NAMED} more" if len(names) > NAMED else "")
