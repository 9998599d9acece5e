"""Brings ImageNet (ILSVRC 2012) as it is delivered into train/<wnid>/ and val/<wnid>/, or one plain tar for each.

Training reads the official archives and Kaggle's zip as they are (docs/classification.md); this is for who wants files,
and for Hugging Face's parquet files, which only this reads.

    python scripts/prepare_imagenet.py root=DIR train_tar=ILSVRC2012_img_train.tar
    python scripts/prepare_imagenet.py root=DIR val_tar=ILSVRC2012_img_val.tar devkit=ILSVRC2012_devkit_t12.tar.gz
    python scripts/prepare_imagenet.py root=DIR devkit=FOLDER             sorts the flat files of DIR/val
    python scripts/prepare_imagenet.py root=DIR parquet=FOLDER            Hugging Face's (pip install 'tdaf[parquet]')
    python scripts/prepare_imagenet.py root=DIR kaggle=FILE               imagenet-object-localization-challenge.zip

    root            the ImageNet folder, later data.root
    flat            folder with the flat validation images (ROOT/val)
    link=true       leaves the flat images where they are and links to them
    devkit          ILSVRC2012_devkit_t12, the folder or its .tar.gz
    ground_truth    ILSVRC2012_validation_ground_truth.txt, if not from the devkit
    synsets         text file, one wnid a line in the order of ILSVRC2012_ID, if not from the devkit's meta.mat
    parquet         folder with train-*.parquet and validation-*.parquet
    tar=true        ROOT/train.tar and ROOT/val.tar instead of folders

It may be stopped at any moment: run again, it goes on, and a finished file is left as it is.
"""

from __future__ import annotations

import io
import os
import re
import shutil
import sys
from collections.abc import Iterable, Iterator
from contextlib import nullcontext
from pathlib import Path, PurePosixPath

import tdaf.cli.ending  # noqa: F401  first: from here on Ctrl-C is a line
from tasks.classification.ilsvrc import INSIDE, SOLUTION, WNID, solution, validation_wnids
from tdaf.cli.script import main
from tdaf.errors import RunError, UnreadableSample, UserError
from tdaf.media import archive
from tdaf.media.files import refuse_unreadable
from tdaf.media.tar import Writer

Image = tuple[str, str | bytes]  # <wnid>/<file>, and its path or content


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
    for path in (train_tar, val_tar, ground_truth, synsets, kaggle):
        if path and not path.is_file():
            raise UserError(f"{path}: no such file")
    if val_tar and not labelled:
        raise UserError("val_tar holds no labels: give devkit= too")
    try:
        if parquet or kaggle:
            for split in ("train", "val"):
                labels = solution(kaggle / SOLUTION) if kaggle and split == "val" else {}
                place = f"{kaggle}/{INSIDE}/{split}"
                write_split(root, split, parquet_images(parquet, split) if parquet else images(place, labels), tar)
            return
        wnids = validation_wnids(devkit, ground_truth, synsets) if labelled else []
        labels = {f"ILSVRC2012_val_{number:08d}": wnid for number, wnid in enumerate(wnids, 1)}
        if train_tar:
            write_split(root, "train", images(str(train_tar), {}), tar)
        if val_tar:
            write_split(root, "val", images(str(val_tar), labels), tar)
        elif labelled:
            sort_val(flat or root / "val", root / "val", labels, link)
    except (OSError, UnreadableSample) as error:
        raise RunError(f"{error}; run the same command again to go on") from error


def sort_val(flat: Path, val: Path, labels: dict[str, str], link: bool) -> None:
    """Moves or links each flat image into its class folder under `val`; prints how many."""
    if not flat.is_dir():
        raise UserError(f"{flat}: no such folder; flat= or root= must lead to the validation images")
    lying = set(os.listdir(flat))
    todo = {f"{name}.JPEG": wnid for name, wnid in labels.items() if not (val / wnid / f"{name}.JPEG").exists()}
    missing = [name for name in todo if name not in lying]
    if missing:
        raise UserError(
            f"{len(missing)} of {len(labels)} validation images are neither in {flat} nor in their class folder, "
            f"{missing[0]} first; nothing was changed"
        )
    for name, wnid in todo.items():
        source, target = flat / name, val / wnid / name
        target.parent.mkdir(parents=True, exist_ok=True)
        part = target.with_suffix(".part")
        part.unlink(missing_ok=True)
        if link:
            part.symlink_to(source.absolute())
        else:
            shutil.move(source, part)
        part.replace(target)
    print(f"val/: {len(todo)} images {'linked' if link else 'moved'}, {len(labels) - len(todo)} were in place")


def images(place: str, labels: dict[str, str]) -> Iterator[Image]:
    """The images of a split in an archive: in folders named by wnid, or flat, whose wnid `labels` has by their names
    without an ending."""
    if archive.is_folder(place):
        archive.check_whole(place, 0)
    found = {}
    for folder, _, files in archive.walk(place, refuse_unreadable) if archive.is_folder(place) else ():
        for name in files:
            wnid = labels.get(os.path.splitext(name)[0]) if folder == place else os.path.basename(folder)
            if wnid and WNID.fullmatch(wnid):
                found[f"{wnid}/{name}"] = os.path.join(folder, name)
    if not found or labels.keys() - {os.path.splitext(os.path.basename(name))[0] for name in found}:
        raise UserError(f"{place}: {len(found)} images of {len(labels) or 'some'} are in it; is it ImageNet's archive?")
    yield from found.items()


def parquet_images(folder: Path, split: str) -> Iterator[Image]:
    """The images of a split. Hugging Face puts the wnid behind the official file name."""
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


def write_split(root: Path, split: str, images: Iterable[Image], tar: bool) -> None:
    """Writes root/split/<wnid>/<file>, or root/split.tar; what is there already stays. A name is that of a whole file:
    it gets it last."""
    written = kept = 0
    if tar and (root / f"{split}.tar").exists():
        print(f"{split}.tar was in place")
        return
    with Writer(root / f"{split}.tar") if tar else nullcontext() as archived:
        for name, source in images:
            target = root / split / name
            if not tar and target.exists():
                kept += 1
                continue
            content = source if isinstance(source, bytes) else archive.read(source).tobytes()
            if tar:
                archived.add(name, io.BytesIO(content), len(content))
            else:
                target.parent.mkdir(parents=True, exist_ok=True)
                target.with_suffix(".part").write_bytes(content)
                target.with_suffix(".part").replace(target)
            written += 1
            if written % 50_000 == 0:
                print(f"{split}: {written} images", flush=True)
    print(f"{split}{'.tar' if tar else '/'}: {written} images written, {kept} were in place", flush=True)


if __name__ == "__main__":
    sys.exit(main(prepare_imagenet, __doc__))
