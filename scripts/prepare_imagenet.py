"""Brings ImageNet (ILSVRC 2012) as it is delivered into train/<wnid>/ and val/<wnid>/, or one plain tar for each.

Training reads the official archives and Kaggle's zip as they are (docs/classification.md); this is for who wants files,
and for Hugging Face's parquet files, which only this reads.

    python scripts/prepare_imagenet.py root=DIR train_tar=ILSVRC2012_img_train.tar
    python scripts/prepare_imagenet.py root=DIR val_tar=ILSVRC2012_img_val.tar devkit=ILSVRC2012_devkit_t12.tar.gz
    python scripts/prepare_imagenet.py root=DIR devkit=FOLDER             sorts the flat files of DIR/val
    python scripts/prepare_imagenet.py root=DIR parquet=FOLDER            Hugging Face's (pip install 'tdaf[parquet]')
    python scripts/prepare_imagenet.py root=DIR kaggle=FILE               imagenet-object-localization-challenge.zip

    root            the ImageNet folder, later data.root
    train_tar       ILSVRC2012_img_train.tar, unpacked into ROOT/train/<wnid>/
    val_tar         ILSVRC2012_img_val.tar, unpacked into ROOT/val/<wnid>/
    flat            folder with the flat validation images (ROOT/val)
    link=true       leaves the flat images where they are and links to them
    devkit          ILSVRC2012_devkit_t12, the folder or its .tar.gz
    ground_truth    ILSVRC2012_validation_ground_truth.txt, if not from the devkit
    synsets         text file, one wnid a line in the order of ILSVRC2012_ID, if not from the devkit's meta.mat
    parquet         folder with train-*.parquet and validation-*.parquet
    kaggle          Kaggle's zip
    tar=true        with parquet or kaggle: ROOT/train.tar and ROOT/val.tar instead of folders

It may be stopped at any moment: run again, it goes on, and a finished folder or tar is left as it is.
"""

from __future__ import annotations

import errno
import io
import os
import re
import shutil
import sys
import tarfile
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path, PurePosixPath
from typing import IO

import tdaf.cli.ending  # noqa: F401  first: from here on Ctrl-C is a line
from tasks.classification.ilsvrc import INSIDE, KAGGLE, SOLUTION, WNID, solution, validation_wnids
from tdaf.cli.script import main
from tdaf.errors import RunError, UnreadableSample, UserError
from tdaf.media import archive
from tdaf.media.tar import Writer


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
    parquet: Path | None = None,
    kaggle: Path | None = None,
    tar: bool = False,
) -> None:
    """Does what the arguments ask for (see above) and prints a line a step.

    Raises:
        UserError: before anything is written where the fault can be known by then.
        RunError: a fault while reading or writing.
    """
    labelled = devkit or ground_truth
    if not (train_tar or labelled or parquet or kaggle):
        raise UserError("nothing to do: give train_tar=, parquet=, kaggle=, or devkit= (or ground_truth= and synsets=)")
    if tar and not (parquet or kaggle):
        raise UserError("tar=true: this is for parquet= and kaggle=; the official tars are trained from as they are")
    for path in (train_tar, val_tar, ground_truth, synsets, kaggle):
        if path and not path.is_file():
            raise UserError(f"{path}: no such file")
    if val_tar and not labelled:
        raise UserError("val_tar holds no labels: give devkit= too")
    try:
        if parquet or kaggle:
            for split in ("train", "val"):
                write_split(
                    root, split, parquet_images(parquet, split) if parquet else kaggle_images(kaggle, split), tar
                )
            return
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
    except (OSError, UnreadableSample) as error:
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


def parquet_images(folder: Path, split: str) -> Iterator[tuple[str, bytes]]:
    """<wnid>/<file> and content of each image of a split. Hugging Face puts the wnid behind the official file name."""
    try:
        import pyarrow
        from pyarrow.parquet import ParquetFile
    except ImportError as error:
        raise UserError("parquet files are read with pyarrow: pip install 'tdaf[parquet]'") from error
    split = "train" if split == "train" else "validation"
    files = sorted(folder.rglob(f"{split}-*.parquet"))
    if not files:
        raise UserError(
            f"parquet={folder}: no {split}-*.parquet there; expected the files of imagenet-1k's data/ folder"
        )
    of = re.search(r"-of-(\d+)\.", files[0].name)
    if of and int(of[1]) != len(files):
        raise UserError(f"parquet={folder}: {len(files)} files of {split}, which has {int(of[1])}; bring the others")
    wnids: dict[int, str] = {}
    for file in files:
        try:
            for batch in ParquetFile(file).iter_batches(64, columns=["image", "label"]):
                for row in batch.to_pylist():
                    stem, ending = os.path.splitext(PurePosixPath(row["image"]["path"] or "").name)
                    name, _, wnid = stem.rpartition("_")
                    if not WNID.fullmatch(wnid):
                        name, wnid = stem, stem.partition("_")[0]
                    if not WNID.fullmatch(wnid) or wnids.setdefault(row["label"], wnid) != wnid:
                        raise UserError(f"{file}: {stem}{ending} does not say its class as imagenet-1k's files do")
                    yield f"{wnid}/{name}{ending}", row["image"]["bytes"]
        except (pyarrow.ArrowException, KeyError, TypeError) as error:
            said = str(error).partition("\n")[0]
            raise RunError(f"{file} is damaged or has not imagenet-1k's columns ({said}); bring it again") from error


def kaggle_images(file: Path, split: str) -> Iterator[tuple[str, bytes]]:
    """<wnid>/<file> and content of each image of a split."""
    base = f"{file}/{INSIDE}/{split}"
    folders, flat = archive.inside(base)
    labels = solution(file / SOLUTION) if split == "val" else {}
    names = {
        f"{folder}/{name}": f"{folder}/{name}" for folder in folders for name in archive.inside(f"{base}/{folder}")[1]
    }
    names |= {f"{label}/{name}": name for name in flat if (label := labels.get(os.path.splitext(name)[0]))}
    if not names:
        raise UserError(f"kaggle={file}: no {INSIDE}/{split} in it; is it {KAGGLE}?")
    for target, name in names.items():
        yield target, archive.read(f"{base}/{name}").tobytes()


def write_split(root: Path, split: str, images: Iterator[tuple[str, bytes]], tar: bool) -> None:
    """Writes root/split/<wnid>/<file>, or root/split.tar; what is there already stays."""
    written = kept = 0
    if tar and (root / f"{split}.tar").exists():
        print(f"{split}.tar was in place")
        return
    with Writer(root / f"{split}.tar") if tar else nullcontext() as target:
        for name, content in images:
            if tar:
                target.add(name, io.BytesIO(content), len(content))
            elif (root / split / name).exists():
                kept += 1
                continue
            else:
                _write(io.BytesIO(content), root / split / name)
            written += 1
            if written % 50_000 == 0:
                print(f"{split}: {written} images", flush=True)
    print(f"{split}{'.tar' if tar else '/'}: {written} images written, {kept} were in place", flush=True)


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
