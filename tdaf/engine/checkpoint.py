"""Checkpoints that survive: tensors and plain data only, written aside, fsynced, renamed; verified by CRC when read.

Under "about" they keep what its data are to a run, so that data that changed are not taken for those that were trained
on: the names of its classes, in order, and its samples, wherever they lie.
"""

from __future__ import annotations

import os
import pickle
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePath
from typing import IO, Any

import torch

from tdaf.errors import RunError, UserError, refused_files
from tdaf.task import Dataset

LAST, PREVIOUS, BEST = "last.pt", "previous.pt", "best.pt"
LOOKED_AT = 1000  # names of a split, evenly spaced
NAMED = 3  # classes of a difference
ACCEPT = "if this is meant, data.changed=true (Trainer's changed_data) accepts it"


@contextmanager
def atomic_write(path: Path, mode: str = "wb", keep: Path | None = None) -> Iterator[IO[Any]]:
    """A file that takes the place of `path` when the block ends well; a kill at any moment leaves a whole file.

    keep: where the file that stood at `path` goes; after a kill right in between, it is there that the whole file is.
    """
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with open(aside, mode) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        if keep is not None and path.exists():
            os.replace(path, keep)
        os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)


def save(state: dict[str, Any], path: Path, keep: Path | None = None) -> None:
    """Writes `state`, tensors and plain data, to `path` as `atomic_write` does.

    Raises:
        RunError: the disk refuses; what was saved before is then intact.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path, keep=keep) as file:
            torch.save(state, file)
        _sync_folder(path.parent)
    except (OSError, RuntimeError) as error:
        message = f"cannot write the checkpoint {path}: {_reason(error)}; what was saved before is untouched"
        raise RunError(message) from error


def save_among_best(state: dict[str, Any], folder: Path, value: float, count: int) -> None:
    """Saves `state`, whose evaluation gave `value`, beside the `count` - 1 highest before it, or not where all are
    higher; what is lower then goes. RunError as `save`."""
    new = folder / f"step{state['step']}-{value:.6g}.pt"
    values = {path: float(path.stem.partition("-")[2]) for path in folder.glob("step*-*.pt")} | {new: value}
    order = sorted(values, key=values.__getitem__, reverse=True)
    if new in order[:count]:
        save(state, new)
    for path in order[count:]:
        path.unlink(missing_ok=True)


def load(path: Path) -> dict[str, Any]:
    """What `save` wrote, on the CPU. UserError if the file is missing, damaged, or no checkpoint."""
    if not path.is_file():
        raise UserError(f"no checkpoint at {path}")
    try:
        # torch does not verify the CRC that each entry of its zip file carries; a flipped bit would go unnoticed
        with zipfile.ZipFile(path) as archive:
            if archive.testzip() is not None:
                raise zipfile.BadZipFile
        state = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise UserError(f"{path} holds more than tensors and plain data, so it is not loaded") from error
    except PermissionError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error
    except Exception as error:  # what a damaged file raises depends on the damaged byte
        raise UserError(f"{path} is damaged or is not a checkpoint") from error
    if not isinstance(state, dict) or "network" not in state:
        raise UserError(f"{path} is not a checkpoint of tdaf: it has no entry 'network'")
    return state


def load_last(folder: Path) -> tuple[dict[str, Any] | None, str]:
    """The newest whole checkpoint of a run, or None, and a sentence when LAST is damaged and it is PREVIOUS."""
    note = ""
    for name in (LAST, PREVIOUS):
        if not (folder / name).exists():
            continue
        try:
            return load(folder / name), note
        except UserError as error:
            note = f"{error}; falling back on the one before"
    if note:
        raise UserError(f"no whole checkpoint is left in {folder}: {LAST}, {PREVIOUS} are damaged; delete that run")
    return None, note


def of(path: str | Path) -> Path:
    """The checkpoint that a path means: a run folder's best one, or the file itself. UserError for another folder."""
    path = Path(os.path.expanduser(path))
    with refused_files(path):
        if not path.is_dir():
            return path
        best = path / "checkpoints" / BEST
        if not best.is_file():
            raise UserError(f"no checkpoint at {best}: not the folder of a run, or of one that has not evaluated yet")
        return best


def exists(folder: Path) -> bool:
    """Whether a run has a checkpoint to go on from."""
    return any((folder / name).exists() for name in (LAST, PREVIOUS))


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


def _reason(error: OSError | RuntimeError) -> str:
    """torch's writer of zip files raises a RuntimeError of its own in place of, or on top of, the disk's."""
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, OSError):
        cause = cause.__cause__ or cause.__context__
    return (cause and cause.strerror) or "writing failed (is the disk full?)"


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _checksum(dataset: Dataset) -> int:
    checksum = 0
    for index in range(0, len(dataset), -(-len(dataset) // LOOKED_AT) or 1):
        parts = PurePath(dataset.name(index)).parts[-2:]
        checksum = zlib.crc32("/".join(parts).encode(errors="surrogateescape"), checksum)
    return checksum


def _some(names: list[str]) -> str:
    return ", ".join(names[:NAMED]) + (f" and {len(names) - NAMED} more" if len(names) > NAMED else "")
