"""Archives as folders: what lies in a tar or zip file is listed and read where it is, as if it had been unpacked.

A path may lead through an archive: /data/train.tar/n01440764/n01440764_18.JPEG. The functions here take such a path and
any other. A tar within a tar is a folder of its name without the ending, which is how ImageNet's classes are delivered.
"""

from __future__ import annotations

import os
import re
import sys
import tarfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import numpy as np

from tdaf.errors import UserError

if TYPE_CHECKING:  # imported with the first archive
    from tdaf.media.members import Archive

AnyPath = str | os.PathLike[str]
ENDING = re.compile(r"\.(?:tar|zip)(?=/|$)", re.IGNORECASE)


def through(path: AnyPath) -> tuple[Archive, bytes] | None:
    """The archive that a path leads into, and the rest of the path; None for a path of a usual kind."""
    text = os.fspath(path)
    for match in ENDING.finditer(text):
        file = text[: match.end()]
        if file in _opened or os.path.isfile(file):
            return _open(file), os.fsencode(text[match.end() + 1 :].strip("/"))
    return None


def read(path: AnyPath) -> np.ndarray:
    """The content of a file, uint8. Raises OSError, and UnreadableSample for a member that is damaged."""
    found = through(path)
    return np.fromfile(path, np.uint8) if found is None else found[0].read(found[1])


def open_file(path: AnyPath) -> BinaryIO:
    """A file to read and seek in; raises as `read` does."""
    found = through(path)
    return open(path, "rb") if found is None else found[0].open(found[1])


def about(path: AnyPath) -> tuple[int, int]:
    """Bytes of a file, and the time of its last change in ns; of a member that of its archive, and no bytes of a folder
    there. Raises OSError."""
    found = through(path)
    if found is None:
        status = os.stat(path)
        return status.st_size, status.st_mtime_ns
    return 0 if found[0].is_folder(found[1]) else found[0].length(found[1]), found[0].changed


def is_file(path: AnyPath) -> bool:
    found = through(path)
    return os.path.isfile(path) if found is None else found[0].find(found[1]) is not None


def is_folder(path: AnyPath) -> bool:
    """An archive is one too."""
    found = through(path)
    return os.path.isdir(path) if found is None else found[0].is_folder(found[1])


def exists(path: AnyPath) -> bool:
    return is_file(path) or is_folder(path)


def inside(folder: AnyPath, onerror: Callable[[OSError], None] | None = None) -> tuple[list[str], list[str]]:
    """The sorted names of the folders and of the files in a folder. onerror: told where it cannot be read; by default
    that is raised."""
    found = through(folder)
    if found is None:
        _, folders, files = next(walk(folder, onerror or _raised), ("", [], []))
        return sorted(folders), sorted(files)
    return found[0].inside(found[1])


def walk(folder: AnyPath, onerror: Callable[[OSError], None]) -> Iterator[tuple[str, list[str], list[str]]]:
    """As os.walk, with links followed."""
    if through(folder) is None:
        yield from os.walk(folder, onerror=onerror, followlinks=True)
        return
    folders, files = inside(folder)
    yield os.fspath(folder), folders, files
    for name in folders:
        yield from walk(os.path.join(folder, name), onerror)


def locate(root: AnyPath, name: str) -> str:
    """Where the file or folder lies that would be `root`/`name` if all were unpacked.

    That is itself, where it is there. Else, for train/cat, the folder cat in train.tar or train.zip, or, where such an
    archive holds train/ and nothing else, in that; or train/cat in an archive called train_... or train-....
    """
    from tdaf.media.files import is_data  # which lists archives too

    plain = os.path.join(root, name)
    parts = name.strip("/").split("/")
    for depth, part in enumerate([] if os.path.exists(plain) else parts):
        for archive in _archives(os.path.join(root, *parts[:depth]), part):
            is_named_so = os.path.splitext(os.path.basename(archive))[0] == part
            folders = [n for names in inside(archive) for n in names if is_data(n)]
            if part in folders and (not is_named_so or folders == [part]):
                archive = os.path.join(archive, part)
            elif not is_named_so:
                continue
            place = os.path.join(archive, *parts[depth + 1 :])
            if exists(place):
                return place
    return plain


def hint(root: AnyPath, name: str) -> str:
    """What to say where `name` is missing: that a compressed tar lies in its place, or nothing."""
    path = os.path.join(root, name.split("/")[0])
    packers = {".tar.gz": "gzip", ".tgz": "gzip", ".tar.bz2": "bzip2", ".tar.xz": "xz", ".tar.zst": "zstd"}
    found = ((path + ending, packer) for ending, packer in packers.items() if os.path.isfile(path + ending))
    from tdaf.media.members import to_convert

    return "".join(f"; {file} {to_convert(packer, file, path + '.tar')}" for file, packer in found)


def check_whole(path: AnyPath, max_bad: int) -> None:
    """Before a data set is used: raises UserError where the path leads into an archive that is cut off, unless
    `max_bad` allows for it, which is said. One that has changed since it was listed is listed again."""
    found = through(path)
    if found is not None:
        _forget_if_changed(found[0].path)
        found = through(path)
    if found is None or not found[0].fault:
        return
    archive = found[0]
    fault = f"{archive.path} {archive.fault}"
    if not max_bad:
        raise UserError(f"{fault}; bring it again, or use the {len(archive)} members before that with data.max_bad=1")
    print(f"{fault}: only the {len(archive)} members before that are used", file=sys.stderr, flush=True)


def forget() -> None:
    """Closes the archives that this process has open."""
    _opened.clear()


_opened: dict[str, Archive] = {}


def _open(file: str) -> Archive:
    if file not in _opened:
        from tdaf.media.members import Archive

        _opened[file] = Archive(file)
    return _opened[file]


def _archives(folder: str, part: str) -> list[str]:
    """The archives in a folder that are called `part`, or begin so; those that changed are listed again."""
    if not os.path.isdir(folder):
        return []
    names = [name for name in sorted(os.listdir(folder)) if ENDING.search(name)]
    stems = {name: os.path.splitext(name)[0] for name in names}
    longer = [name for name in names if stems[name].startswith((f"{part}_", f"{part}-"))]
    fitting = [*(name for name in names if stems[name] == part), *longer]
    files = [path for name in fitting if os.path.isfile(path := os.path.join(folder, name))]
    for path in files:
        _forget_if_changed(path)
    return files


def _forget_if_changed(file: str) -> None:
    """Reading does not ask; whoever begins to use a data set does."""
    known = _opened.get(file)
    with suppress(FileNotFoundError):
        status = os.stat(file)
        if not known or (known.size, known.changed) == (status.st_size, status.st_mtime_ns):
            return
    _opened.pop(file, None)


def _raised(error: OSError) -> None:
    raise error


def unpacked(place: Path, names: Sequence[str]) -> dict[str, bytes]:
    """The files of these names that there are somewhere in a folder or in a tar, compressed or not. Raises UserError
    where that cannot be read."""
    found: dict[str, bytes] = {}
    try:
        if place.is_file():
            with tarfile.open(place) as members:
                for member in filter(tarfile.TarInfo.isfile, members):
                    if os.path.basename(member.name) in names:
                        found[os.path.basename(member.name)] = members.extractfile(member).read()
        else:
            found = {name: path.read_bytes() for name in names for path in list(place.rglob(name))[:1]}
    except (tarfile.TarError, OSError, EOFError, zlib.error) as error:
        raise UserError(f"{place} is damaged, cut off or no archive ({error}); bring it again") from error
    return found
