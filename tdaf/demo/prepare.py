"""Demo data on disk: drawn once, found again, and never half there."""

from __future__ import annotations

import errno
import json
import math
import os
import shutil
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tdaf.demo import action, classification, detection, pose, shapes
from tdaf.errors import UserError

VERSION = 1  # to be raised whenever a picture, a name or a file comes out differently
MANIFEST = "demo.json"
_LATER = "frame_counts.csv"  # what the reader of videos keeps beside them; no part of what was drawn
_UNFINISHED = ".unfinished"
_ABANDONED = 3600.0  # seconds after which a temporary folder cannot belong to a living process

Write = Callable[[Path, int, int, int, int], None]  # folder, seed, train, val, size


@dataclass(frozen=True)
class _Kind:
    """least: the samples that a split needs, and why. sizes: from, to, and what is wrong with others."""

    write: Write
    least: tuple[int, str]
    sizes: tuple[int, float, str]


def _cifar10(folder: Path, seed: int, train: int, val: int, size: int) -> None:
    classification.write_cifar10(folder, seed, train, val)


_CLASSES = len(shapes.NAMES), "samples, one for each class"
_SHAPES = 24, math.inf, " is too small to tell shapes apart; use 24 or more"
_CIFAR = 32, 32, ": CIFAR-10's pictures are 32 pixels wide"
_SCENES = len(detection.NAMES), "pictures, so that every class is in one"
_SCENE = 64, 1024, " cannot hold the scenes; use 64 to 1024, best about 128"
_ACTIONS = len(action.NAMES), "videos, one for each class"
_PERSONS = 96, 1024, " cannot hold the figures; use 96 to 1024, best about 192"
_KINDS = {
    "imagenet": _Kind(classification.write_imagenet, _CLASSES, _SHAPES),
    "cifar10": _Kind(_cifar10, _CLASSES, _CIFAR),
    "coco_fcos": _Kind(detection.write, _SCENES, _SCENE),
    "coco_pose": _Kind(pose.write, (1, "picture"), _PERSONS),
    "kinetics": _Kind(action.write_kinetics, _ACTIONS, _SHAPES),
}


def prepare(kind: str, root: Path, seed: int, train: int, val: int, size: int) -> Path:
    """Draws the demo data set unless it is there, and returns its folder, which stands for `data.root`.

    kind: "imagenet", "cifar10", "coco_fcos", "coco_pose" or "kinetics". size: about the short side in pixels, for
    "cifar10" 32. The folder is `root/<kind>-...`, named by all settings: runs with other settings do not disturb each
    other. It appears by one rename when it is whole; processes that race draw the same files, the first to end wins.
    Raises UserError for settings that cannot work and for a root that cannot be written."""
    if kind not in _KINDS:
        *names, last = _KINDS
        raise UserError(f"demo data: there is no kind {kind!r}; the kinds are {', '.join(names)} and {last}")
    chosen = _KINDS[kind]
    least, why = chosen.least
    if min(train, val) < least:
        raise UserError(f"demo data: train={train}, val={val}: each needs at least {least} {why}")
    if seed < 0:
        raise UserError(f"demo data: seed={seed} must not be negative")
    low, high, wrong = chosen.sizes
    if not low <= size <= high:
        raise UserError(f"demo data: size={size}{wrong}")
    settings = {"kind": kind, "version": VERSION, "seed": seed, "train": train, "val": val, "size": size}
    return store(Path(root), settings, lambda folder: chosen.write(folder, seed, train, val, size))


def store(root: Path, settings: dict[str, Any], write: Callable[[Path], None]) -> Path:
    """The folder under `root` that holds what `write(folder)` writes for these settings; written where it is not whole.

    settings: plain JSON values, "kind" first; they name the folder and are its manifest together with the number of
    files and bytes. Raises UserError where `root` cannot be written."""
    name = "-".join(str(value) if key == "kind" else f"{key}{value}" for key, value in settings.items())
    folder = root / name
    if _whole(folder, settings):
        return folder
    temporary = None
    try:
        root.mkdir(parents=True, exist_ok=True)
        _sweep(root)
        temporary = Path(tempfile.mkdtemp(prefix=f".{name}.", suffix=_UNFINISHED, dir=root))
        temporary.chmod(0o755)
        write(temporary)
        files, size = _measure(temporary)
        manifest = {**settings, "files": files, "bytes": size}
        (temporary / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
        _publish(temporary, folder, settings)
    except OSError as error:
        reason = error.strerror or error
        raise UserError(f"cannot write demo data to {root}: {reason}; choose another folder with data.root") from error
    finally:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)
    return folder


def _publish(temporary: Path, folder: Path, settings: dict[str, Any]) -> None:
    for _ in range(100):
        try:
            os.rename(temporary, folder)
            return
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
        if _whole(folder, settings):
            return
        # Something damaged has the name: out of the way with it, by a rename that only one of us can win.
        aside = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", suffix=_UNFINISHED, dir=folder.parent))
        try:
            os.rename(folder, aside / "damaged")
        except FileNotFoundError:
            pass
        shutil.rmtree(aside, ignore_errors=True)
    raise UserError(f"demo data: {folder} is damaged and cannot be replaced; delete it")


def _whole(folder: Path, settings: dict[str, Any]) -> bool:
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


def _sweep(root: Path) -> None:
    """Removes what killed processes left behind."""
    for path in root.glob(f".*{_UNFINISHED}"):
        try:
            abandoned = time.time() - path.stat().st_mtime > _ABANDONED
        except FileNotFoundError:
            continue
        if abandoned:
            shutil.rmtree(path, ignore_errors=True)
