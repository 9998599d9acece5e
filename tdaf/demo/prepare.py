"""Demo data on disk: drawn once, found again, and never half there."""

from __future__ import annotations

import fcntl
import json
import math
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from tdaf.errors import UserError

VERSION = 1  # to be raised whenever a picture, a name or a field that is read comes out differently
MANIFEST = "demo.json"
LOCK = ".lock"
_LATER = "frame_counts.csv"  # what the reader of videos keeps beside them; no part of what was drawn
_UNFINISHED = ".unfinished"

# The samples that a split needs so that every class is in it, and the smallest and largest size in pixels.
_LIMITS = {
    "imagenet": (10, 24, math.inf),
    "search": (10, 48, 1024),
    "single": (10, 48, 1024),
    "cifar10": (10, 32, 32),
    "coco_fcos": (6, 64, 1024),
    "coco_pose": (1, 96, 1024),
    "kinetics": (6, 24, math.inf),
}


def prepare(kind: str, root: Path, seed: int, train: int, val: int, size: int) -> Path:
    """Draws a demo data set unless it is there already.

    Args:
        kind: "imagenet", "search", "single", "cifar10", "coco_fcos", "coco_pose" or "kinetics".
        root: where the data sets lie. This one's folder is `root/<kind>-...`, named by all settings: runs with other
            settings do not disturb each other. It appears by one rename when it is whole.
        seed: 0 or more.
        train, val: samples of each split.
        size: about the short side in pixels; for "cifar10" 32.

    Returns:
        The folder, which stands for `data.root`.

    Raises:
        UserError: settings that cannot work, or a root that cannot be written.
    """
    if kind not in _LIMITS:
        raise UserError(f"demo data: there is no kind {kind!r}; the kinds are {', '.join(_LIMITS)}")
    least, smallest, largest = _LIMITS[kind]
    if min(train, val) < least:
        raise UserError(
            f"demo data: train={train}, val={val}: each needs at least {least}, so that every class is there"
        )
    if seed < 0:
        raise UserError(f"demo data: seed={seed} must not be negative")
    if not smallest <= size <= largest:
        sizes = f"{smallest} or more" if largest == math.inf else f"{smallest} to {largest}"
        raise UserError(f"demo data: size={size}: {kind} can be drawn in {sizes} pixels")
    settings = {"kind": kind, "version": VERSION, "seed": seed, "train": train, "val": val, "size": size}
    return store(Path(root), settings, lambda folder: _write(kind, folder, seed, train, val, size))


def _write(kind: str, folder: Path, seed: int, train: int, val: int, size: int) -> None:
    from tdaf.demo import action, classification, coco  # a run with real data draws nothing

    write = {
        "imagenet": classification.write_imagenet,
        "search": partial(classification.write_imagenet, kind="search"),
        "single": partial(classification.write_imagenet, kind="single"),
        "cifar10": classification.write_cifar10,
        "coco_fcos": coco.write_detection,
        "coco_pose": coco.write_pose,
        "kinetics": action.write_kinetics,
    }[kind]
    write(folder, seed, train, val, size)


def store(root: Path, settings: dict[str, Any], write: Callable[[Path], None]) -> Path:
    """The folder under `root` that holds what `write(folder)` writes for these settings; written where it is not whole.

    settings: plain JSON values, "kind" first; they name the folder and are its manifest together with the number of
    files and bytes. Of processes that ask at the same time, one writes and the others wait for it.
    Raises UserError where `root` cannot be written."""
    folder = root / "-".join(str(value) if key == "kind" else f"{key}{value}" for key, value in settings.items())
    if _is_whole(folder, settings):
        return folder
    try:
        root.mkdir(parents=True, exist_ok=True)
        with open(root / LOCK, "w") as lock:
            fcntl.lockf(lock, fcntl.LOCK_EX)  # ends with the process, however that ends
            if not _is_whole(folder, settings):
                for rest in (folder, *root.glob(f".*{_UNFINISHED}")):  # damaged, or left by processes that were killed
                    if rest.exists():
                        shutil.rmtree(rest)
                with TemporaryDirectory(prefix=f".{folder.name}.", suffix=_UNFINISHED, dir=root) as temporary:
                    _write_whole(Path(temporary) / "data", settings, write).rename(folder)
    except OSError as error:
        reason = error.strerror or error
        raise UserError(f"cannot write demo data to {root}: {reason}; give another root") from error
    return folder


def _write_whole(folder: Path, settings: dict[str, Any], write: Callable[[Path], None]) -> Path:
    folder.mkdir()
    write(folder)
    files, size = _measure(folder)
    manifest = {**settings, "files": files, "bytes": size}
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
    return folder


def _is_whole(folder: Path, settings: dict[str, Any]) -> bool:
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        files, size = _measure(folder)
    except (OSError, ValueError):
        return False
    return manifest == {**settings, "files": files, "bytes": size}


def _measure(folder: Path) -> tuple[int, int]:
    drawn = (path for path in folder.rglob("*") if path.name != MANIFEST and _LATER not in path.name)
    files = [path for path in drawn if path.is_file()]
    return len(files), sum(path.stat().st_size for path in files)
