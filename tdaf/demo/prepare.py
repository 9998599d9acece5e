"""Demo data on disk: drawn once, found again, and never half there."""

from __future__ import annotations

import fcntl
import json
import math
import shutil
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from tdaf.errors import UserError

VERSION = 1  # to be raised whenever a picture, a name or a field that is read comes out differently
MANIFEST = "demo.json"
LOCK = ".lock"
_LATER = "frame_counts.csv"  # what the reader of videos keeps beside them; no part of what was drawn
_UNFINISHED = ".unfinished"

# What draws it, the samples that a split needs so that every class is in it, and the smallest and largest size in
# pixels.
_KINDS = {
    "imagenet": ("classification.write_imagenet", 10, 24, math.inf),
    "search": ("classification.write_search", 10, 48, 1024),
    "single": ("classification.write_single", 10, 48, 1024),
    "cifar10": ("classification.write_cifar10", 10, 32, 32),
    "coco_fcos": ("coco.write_detection", 6, 64, 1024),
    "coco_pose": ("coco.write_pose", 1, 96, 1024),
    "kinetics": ("action.write_kinetics", 6, 24, math.inf),
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
    if kind not in _KINDS:
        raise UserError(f"demo data: there is no kind {kind!r}; the kinds are {', '.join(_KINDS)}")
    writer, least, smallest, largest = _KINDS[kind]
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

    def write(folder: Path) -> None:
        module, _, function = writer.partition(".")  # imported here: a run with real data draws nothing
        getattr(import_module(f"tdaf.demo.{module}"), function)(folder, seed, train, val, size)

    return store(Path(root), settings, write)


def store(root: Path, settings: dict[str, Any], write: Callable[[Path], None]) -> Path:
    """The folder under `root` that holds what `write(folder)` writes for these settings, plain JSON values that name it
    and are in its manifest; written where it is not whole. Of processes that ask at the same time, one writes and the
    others wait for it. Raises UserError where `root` cannot be written."""
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
                    part = Path(temporary) / "data"
                    part.mkdir()
                    write(part)
                    manifest = json.dumps(_manifest(part, settings), indent=2) + "\n"
                    (part / MANIFEST).write_text(manifest, encoding="utf-8")
                    part.rename(folder)
    except OSError as error:
        reason = error.strerror or error
        raise UserError(f"cannot write demo data to {root}: {reason}; give another root") from error
    return folder


def _is_whole(folder: Path, settings: dict[str, Any]) -> bool:
    try:
        return json.loads((folder / MANIFEST).read_text(encoding="utf-8")) == _manifest(folder, settings)
    except (OSError, ValueError):
        return False


def _manifest(folder: Path, settings: dict[str, Any]) -> dict[str, Any]:
    drawn = (path for path in folder.rglob("*") if path.name != MANIFEST and _LATER not in path.name)
    sizes = [path.stat().st_size for path in drawn if path.is_file()]
    return {**settings, "files": len(sizes), "bytes": sum(sizes)}
