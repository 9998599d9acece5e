"""Brings ImageNet (ILSVRC 2012) as it is delivered into train/<wnid>/ and val/<wnid>/.

    python scripts/prepare_imagenet.py root=DIR train_tar=ILSVRC2012_img_train.tar
    python scripts/prepare_imagenet.py root=DIR val_tar=ILSVRC2012_img_val.tar devkit=ILSVRC2012_devkit_t12.tar.gz
    python scripts/prepare_imagenet.py root=DIR devkit=FOLDER             sorts the flat files of DIR/val

    root            the ImageNet folder, later data.root
    train_tar       ILSVRC2012_img_train.tar, unpacked into ROOT/train/<wnid>/
    val_tar         ILSVRC2012_img_val.tar, unpacked into ROOT/val/<wnid>/
    flat            folder with the flat validation images (ROOT/val)
    link=true       leaves the flat images where they are and links to them
    devkit          ILSVRC2012_devkit_t12, the folder or its .tar.gz
    ground_truth    ILSVRC2012_validation_ground_truth.txt, if not from the devkit
    synsets         text file, one wnid a line in the order of ILSVRC2012_ID, if not from the devkit's meta.mat

It may be stopped at any moment: run again, it goes on, and a finished folder is left as it is.
"""

from __future__ import annotations

import errno
import os
import shutil
import sys
import tarfile
from pathlib import Path
from typing import IO

import tdaf.cli.ending  # noqa: F401  first: from here on Ctrl-C is a line
from tasks.classification.ilsvrc import WNID, validation_wnids
from tdaf.cli.script import main
from tdaf.errors import RunError, UserError


def prepare_imagenet(
    *,
    root: Path,
    train_tar: Path | None = None,
    val_tar: Path | None = None,
    flat: Path | None = None,
    link: bool = False,
    devkit: Path | None = None,
    ground_truth: Path | None = None,
    synsets: Path | None = None,
) -> None:
    """Does what the arguments ask for (see above) and prints a line a step.

    Raises:
        UserError: before anything is written where the fault can be known by then.
        RunError: a fault while reading or writing.
    """
    labelled = devkit or ground_truth
    if not (train_tar or labelled):
        raise UserError("nothing to do: give train_tar=, or devkit= (or ground_truth= and synsets=) for val/")
    for path in (train_tar, val_tar, ground_truth, synsets):
        if path and not path.is_file():
            raise UserError(f"{path}: no such file")
    if val_tar and not labelled:
        raise UserError("val_tar holds no labels: give devkit= too")
    try:
        wnids = validation_wnids(devkit, ground_truth, synsets) if labelled else []
        if train_tar:
            unpack_train(train_tar, root)
        if val_tar:
            print(unpack_val(val_tar, root / "val", wnids))
        elif labelled:
            print(sort_val(flat or root / "val", root / "val", wnids, link))
    except tarfile.TarError as error:
        archives = " or ".join(str(path) for path in (train_tar, val_tar, devkit) if path)
        raise RunError(f"{archives} is damaged or no archive; bring it again, then run the same command") from error
    except OSError as error:
        raise RunError(f"{error}; run the same command again to go on") from error


def sort_val(flat: Path, val: Path, wnids: list[str], link: bool) -> str:
    """Moves or links each flat image into its class folder under `val`; says how many."""
    if not flat.is_dir():
        raise UserError(f"{flat}: no such folder; flat= or root= must lead to the validation images")
    targets = _targets(val, wnids)
    lying = set(os.listdir(flat))
    todo = {name: target for name, target in targets.items() if not target.exists()}
    missing = [name for name in todo if name not in lying]
    if missing:
        raise UserError(
            f"{len(missing)} of {len(wnids)} validation images are neither in {flat} nor in their class folder, "
            f"{missing[0]} first; nothing was changed"
        )
    for name, target in todo.items():
        target.parent.mkdir(parents=True, exist_ok=True)
        if link:
            target.unlink(missing_ok=True)  # a link whose image has gone does not exist, and is in the way
            target.symlink_to((flat / name).absolute())
        else:
            _move(flat / name, target)
    verb = "linked" if link else "moved"
    return f"val/: {len(todo)} images {verb}, {len(targets) - len(todo)} were in place, {len(set(wnids))} classes"


def unpack_val(archive: Path, val: Path, wnids: list[str]) -> str:
    """Unpacks the archive of flat images straight into class folders; says how many."""
    targets = _targets(val, wnids)
    written = 0
    with tarfile.open(archive) as images:
        for member in images:
            target = targets.get(Path(member.name).name)
            if member.isfile() and target and not target.exists():
                _write(images.extractfile(member), target)
                written += 1
    missing = sum(not target.exists() for target in targets.values())
    if missing:
        raise UserError(f"{archive} lacks {missing} of the {len(wnids)} images that the ground truth lists")
    return f"val/: {written} images unpacked, {len(targets) - written} were in place, {len(set(wnids))} classes"


def unpack_train(archive: Path, root: Path) -> None:
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
                for image in filter(tarfile.TarInfo.isfile, images):
                    _write(images.extractfile(image), unfinished / Path(image.name).name)
            target.parent.mkdir(parents=True, exist_ok=True)
            unfinished.rename(target)
            done += 1
            if done % 50 == 0:
                print(f"train/: {done} classes unpacked", flush=True)
    if not done + kept:
        raise UserError(f"{archive} holds no <wnid>.tar; is it ILSVRC2012_img_train.tar?")
    print(f"train/: {done} classes unpacked, {kept} were in place", flush=True)


def _targets(val: Path, wnids: list[str]) -> dict[str, Path]:
    """Where each flat validation image belongs, by its name."""
    names = {f"ILSVRC2012_val_{number:08d}.JPEG": wnid for number, wnid in enumerate(wnids, 1)}
    return {name: val / wnid / name for name, wnid in names.items()}


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


if __name__ == "__main__":
    sys.exit(main(prepare_imagenet, __doc__))
