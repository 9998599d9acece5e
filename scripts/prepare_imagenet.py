"""Brings ImageNet (ILSVRC 2012) as it is delivered into train/<wnid>/ and val/<wnid>/.

    python scripts/prepare_imagenet.py --root DIR --train-tar ILSVRC2012_img_train.tar
    python scripts/prepare_imagenet.py --root DIR --val-tar ILSVRC2012_img_val.tar --devkit ILSVRC2012_devkit_t12.tar.gz
    python scripts/prepare_imagenet.py --root DIR --devkit FOLDER         sorts the flat files of DIR/val

It may be stopped at any moment: run again, it goes on, and a finished folder is left as it is.
"""

from __future__ import annotations

import argparse
import errno
import io
import os
import re
import shutil
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from tdaf.errors import UserError

TRUTH = "ILSVRC2012_validation_ground_truth.txt"
WNID = re.compile(r"n\d{8}")


def main(arguments: list[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    try:
        for line in prepare(options):
            print(line, flush=True)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except (OSError, tarfile.TarError) as error:
        print(f"error: {error}; run the same command again to go on", file=sys.stderr)
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, required=True, help="the ImageNet folder, later data.root")
    parser.add_argument("--train-tar", type=Path, help="ILSVRC2012_img_train.tar, unpacked into ROOT/train/<wnid>/")
    parser.add_argument("--val-tar", type=Path, help="ILSVRC2012_img_val.tar, unpacked into ROOT/val/<wnid>/")
    parser.add_argument("--flat", type=Path, help="folder with the flat validation images (default: ROOT/val)")
    parser.add_argument("--link", action="store_true", help="leave the flat images where they are and link to them")
    parser.add_argument("--devkit", type=Path, help="ILSVRC2012_devkit_t12, the folder or its .tar.gz")
    parser.add_argument("--ground-truth", type=Path, help=f"{TRUTH}, if not from --devkit")
    order = "text file, one wnid a line in the order of ILSVRC2012_ID (without it scipy must be there to read meta.mat)"
    parser.add_argument("--synsets", type=Path, help=order)
    return parser


def prepare(options: argparse.Namespace) -> Iterator[str]:
    """Does what the options ask for and says so, a line a step. Raises UserError, before anything is written where the
    fault can be known by then."""
    labelled = options.devkit or options.ground_truth
    if not (options.train_tar or labelled):
        raise UserError("nothing to do: give --train-tar, or --devkit (or --ground-truth and --synsets) for val/")
    for path in (options.train_tar, options.val_tar):
        if path and not path.is_file():
            raise UserError(f"{path}: no such file")
    if options.val_tar and not labelled:
        raise UserError("--val-tar holds no labels: give --devkit too")
    wnids = validation_wnids(options) if labelled else []
    if options.train_tar:
        yield from unpack_train(options.train_tar, options.root)
    if options.val_tar:
        yield unpack_val(options.val_tar, options.root / "val", wnids)
    elif labelled:
        yield sort_val(options.flat or options.root / "val", options.root / "val", wnids, options.link)


def validation_wnids(options: argparse.Namespace) -> list[str]:
    """The wnid of each validation image, in the order of their numbers."""
    lines = _read(options.ground_truth, options.devkit, TRUTH).decode("ascii", "replace").split()
    if options.synsets:
        wnids = _read(options.synsets, None, "").decode("ascii", "replace").split()
        source = options.synsets
    else:
        wnids, source = _meta_wnids(_read(None, options.devkit, "meta.mat")), "meta.mat"
    if not wnids or not all(WNID.fullmatch(wnid) for wnid in wnids):
        raise UserError(f"{source}: expected one wnid (n01440764) a line and nothing else")
    if len(wnids) == 1000 and wnids == sorted(wnids):
        raise UserError(
            f"{source} is sorted by wnid, but the ground truth counts in the order of ILSVRC2012_ID (its first is "
            "n02119789): all labels would be wrong; take the order from the devkit's meta.mat"
        )
    bad = [line for line in lines if not (line.isdecimal() and 1 <= int(line) <= len(wnids))]
    if bad or not lines:
        raise UserError(f"the ground truth must be one label 1..{len(wnids)} a line, found '{bad[0] if bad else ''}'")
    return [wnids[int(line) - 1] for line in lines]


def sort_val(flat: Path, val: Path, wnids: list[str], link: bool) -> str:
    """Moves or links each flat image into its class folder under `val`; says how many."""
    if not flat.is_dir():
        raise UserError(f"{flat}: no such folder; --flat or --root must lead to the validation images")
    lying = set(os.listdir(flat))
    plan = [(name, val / wnid / name) for name, wnid in _numbered(wnids)]
    todo = [(name, target) for name, target in plan if not target.exists()]
    missing = [name for name, _ in todo if name not in lying]
    if missing:
        raise UserError(
            f"{len(missing)} of {len(wnids)} validation images are neither in {flat} nor in their class folder, "
            f"{missing[0]} first; nothing was changed"
        )
    for name, target in todo:
        target.parent.mkdir(parents=True, exist_ok=True)
        if link:
            target.unlink(missing_ok=True)  # a link whose image has gone does not exist, and is in the way
            target.symlink_to((flat / name).absolute())
        else:
            _move(flat / name, target)
    verb = "linked" if link else "moved"
    return f"val/: {len(todo)} images {verb}, {len(plan) - len(todo)} were in place, {len(set(wnids))} classes"


def unpack_val(archive: Path, val: Path, wnids: list[str]) -> str:
    """Unpacks the archive of flat images straight into class folders; says how many."""
    targets = {name: val / wnid / name for name, wnid in _numbered(wnids)}
    written = 0
    with tarfile.open(archive) as images:
        for member in images:
            name = Path(member.name).name
            if member.isfile() and name in targets and not targets[name].exists():
                _write(images.extractfile(member), targets[name])
                written += 1
    missing = sum(not target.exists() for target in targets.values())
    if missing:
        raise UserError(f"{archive} lacks {missing} of the {len(wnids)} images that the ground truth lists")
    return f"val/: {written} images unpacked, {len(targets) - written} were in place, {len(set(wnids))} classes"


def unpack_train(archive: Path, root: Path) -> Iterator[str]:
    """Unpacks the archive of one archive a class; a class appears in train/ only when it is whole."""
    unfinished = root / "train.unfinished"
    done = kept = 0
    with tarfile.open(archive) as classes:
        for member in classes:
            wnid = Path(member.name).stem
            if not (member.isfile() and member.name.endswith(".tar") and WNID.fullmatch(wnid)):
                continue
            target = root / "train" / wnid
            if target.exists():
                kept += 1
                continue
            shutil.rmtree(unfinished, ignore_errors=True)
            with tarfile.open(fileobj=classes.extractfile(member)) as images:
                for image in images:
                    if image.isfile():
                        _write(images.extractfile(image), unfinished / Path(image.name).name)
            target.parent.mkdir(parents=True, exist_ok=True)
            unfinished.rename(target)
            done += 1
            if done % 50 == 0:
                yield f"train/: {done} classes unpacked"
    if not done + kept:
        raise UserError(f"{archive} holds no <wnid>.tar; is it ILSVRC2012_img_train.tar?")
    yield f"train/: {done} classes unpacked, {kept} were in place"


def _numbered(wnids: list[str]) -> Iterator[tuple[str, str]]:
    for number, wnid in enumerate(wnids, 1):
        yield f"ILSVRC2012_val_{number:08d}.JPEG", wnid


def _move(source: Path, target: Path) -> None:
    try:
        source.rename(target)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        with source.open("rb") as file:
            _write(file, target)
        source.unlink()


def _write(source: IO[bytes], target: Path) -> None:
    """A file of this name is a whole one: it gets its name last."""
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_suffix(".part")
    with part.open("wb") as file:
        shutil.copyfileobj(source, file)
    part.replace(target)


def _read(path: Path | None, devkit: Path | None, name: str) -> bytes:
    """The file at `path`, else the one called `name` in the devkit, be it a folder or an archive."""
    if path:
        if not path.is_file():
            raise UserError(f"{path}: no such file")
        return path.read_bytes()
    if devkit and devkit.is_dir():
        found = next(devkit.rglob(name), None)
        if found:
            return found.read_bytes()
    elif devkit and devkit.is_file():
        with tarfile.open(devkit) as archive:
            for member in archive:
                if member.isfile() and Path(member.name).name == name:
                    return archive.extractfile(member).read()
    option = "--ground-truth FILE" if name == TRUTH else "--synsets FILE"
    raise UserError(f"no {name} in {devkit or 'any --devkit'}; give --devkit PATH or {option}")


def _meta_wnids(content: bytes) -> list[str]:
    try:
        from scipy.io import loadmat
    except ImportError as error:
        raise UserError(
            "meta.mat can only be read with scipy: pip install scipy, or give --synsets FILE, "
            "a text file with the 1000 wnids in the order of ILSVRC2012_ID"
        ) from error
    try:
        synsets = loadmat(io.BytesIO(content), squeeze_me=True)["synsets"]
        leaves = {int(row["ILSVRC2012_ID"]): str(row["WNID"]) for row in synsets if int(row["num_children"]) == 0}
    except (ValueError, TypeError, KeyError, IndexError) as error:
        raise UserError(f"the devkit's meta.mat cannot be read ({error}); unpack the devkit again") from error
    return [leaves[number] for number in sorted(leaves)]


if __name__ == "__main__":
    sys.exit(main())
