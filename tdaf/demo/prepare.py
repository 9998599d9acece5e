"""Demo data on disk: drawn once, found again, and never half there."""

from __future__ import annotations

import errno
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tdaf.demo import classification, shapes
from tdaf.errors import UserError

VERSION = 1  # to be raised whenever a picture, a name or a file comes out differently
MANIFEST = "demo.json"
_UNFINISHED = ".unfinished"
_ABANDONED = 3600.0  # seconds after which a temporary folder cannot belong to a living process


def prepare(kind: str, root: Path, seed: int, train: int, val: int, size: int) -> Path:
    """Draws the demo data set unless it is there, and returns its folder, which stands for `data.root`.

    kind: "imagenet" (`size` is about the short side in pixels) or "cifar10" (`size` must be 32). The folder is
    `root/<kind>-...`, named by all settings: runs with other settings do not disturb each other. It appears by one
    rename when it is whole; processes that race draw the same files, and the first to end wins.
    Raises UserError for settings that cannot work and for a root that cannot be written."""
    least = len(shapes.NAMES)
    if kind not in ("imagenet", "cifar10"):
        raise UserError(f"demo data: there is no kind {kind!r}; the kinds are imagenet and cifar10")
    if train < least or val < least:
        raise UserError(f"demo data: train={train}, val={val}: each needs at least {least} samples, one for each class")
    if seed < 0:
        raise UserError(f"demo data: seed={seed} must not be negative")
    if kind == "cifar10" and size != 32:
        raise UserError(f"demo data: size={size}: CIFAR-10's pictures are 32 pixels wide")
    if size < 24:
        raise UserError(f"demo data: size={size} is too small to tell shapes apart; use 24 or more")
    settings = {"kind": kind, "version": VERSION, "seed": seed, "train": train, "val": val, "size": size}

    def write(folder: Path) -> None:
        if kind == "imagenet":
            classification.write_imagenet(folder, seed, train, val, size)
        else:
            classification.write_cifar10(folder, seed, train, val)

    return store(Path(root), settings, write)


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
    files = [path for path in folder.rglob("*") if path.name != MANIFEST and path.is_file()]
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
