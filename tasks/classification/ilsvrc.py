"""ImageNet (ILSVRC 2012) as it is delivered: where its splits lie, and the classes of its flat validation images.

These come from the devkit (ILSVRC2012_devkit_t12.tar.gz, or its folder), or from Kaggle's LOC_val_solution.csv.
"""

from __future__ import annotations

import csv
import io
import re
from pathlib import Path

from tdaf.errors import UserError
from tdaf.media import archive

WNID = re.compile(r"n\d{8}")
TRUTH = "ILSVRC2012_validation_ground_truth.txt"
DEVKITS = ("ILSVRC2012_devkit_t12", "ILSVRC2012_devkit_t12.tar.gz", "ILSVRC2012_devkit_t12.tar")
KAGGLE = "imagenet-object-localization-challenge.zip"
INSIDE = "ILSVRC/Data/CLS-LOC"  # Kaggle's folders
SOLUTION = "LOC_val_solution.csv"
PLACES = {
    split: (f"ILSVRC2012_img_{split}.tar", f"{INSIDE}/{split}", f"{KAGGLE}/{INSIDE}/{split}")
    for split in ("train", "val")
}


def place(root: Path, split: str) -> str:
    """Where the images of a split lie: `root`/train, also in an archive of that name, or ImageNet's own archives."""
    usual = archive.locate(root, split)
    places = (usual, *(str(root / name) for name in PLACES[split]))
    return next(filter(archive.is_folder, places), usual)


def val_labels(root: Path) -> dict[str, str]:
    """The wnid of each validation image by its name without an ending; none where nothing there says them."""
    for name in (SOLUTION, f"{KAGGLE}/{SOLUTION}"):
        if archive.is_file(root / name):
            return solution(root / name)
    devkit = next((root / name for name in DEVKITS if (root / name).exists()), None)
    if devkit is None:
        return {}
    wnids = validation_wnids(devkit)
    return {f"ILSVRC2012_val_{number:08d}": wnid for number, wnid in enumerate(wnids, 1)}


def validation_wnids(devkit: Path | None, ground_truth: Path | None = None, synsets: Path | None = None) -> list[str]:
    """The wnid of each validation image, in the order of their numbers.

    Args:
        devkit: its folder, or its archive.
        ground_truth: ILSVRC2012_validation_ground_truth.txt, if not the devkit's.
        synsets: a text file with one wnid a line in the order of ILSVRC2012_ID, if not as the devkit's meta.mat has it.

    Raises:
        UserError: one of these is not there, or not what it should be.
    """
    labels = _words(ground_truth.read_bytes() if ground_truth else _from_devkit(devkit, TRUTH, "ground_truth"))
    wnids = _words(synsets.read_bytes()) if synsets else _meta_wnids(_from_devkit(devkit, "meta.mat", "synsets"))
    source = synsets or "meta.mat"
    if not wnids or not all(map(WNID.fullmatch, wnids)):
        raise UserError(f"{source}: expected one wnid (n01440764) a line and nothing else")
    if len(wnids) == 1000 and wnids == sorted(wnids):
        raise UserError(
            f"{source} is sorted by wnid, but the ground truth counts in the order of ILSVRC2012_ID (its first is "
            "n02119789): all labels would be wrong; take the order from the devkit's meta.mat"
        )
    bad = [label for label in labels if not (label.isdecimal() and 1 <= int(label) <= len(wnids))]
    if bad or not labels:
        raise UserError(f"the ground truth must be one label 1..{len(wnids)} a line, found '{bad[0] if bad else ''}'")
    return [wnids[int(label) - 1] for label in labels]


def solution(file: Path) -> dict[str, str]:
    """Kaggle's table: the first word of a prediction is the class, boxes follow."""
    with archive.open_file(file) as source:
        lines = csv.DictReader(io.TextIOWrapper(source, "utf-8-sig", "replace", newline=""))
        labels = {line.get("ImageId"): (line.get("PredictionString") or "").split(" ")[0] for line in lines}
    if not labels or None in labels or not all(map(WNID.fullmatch, labels.values())):
        raise UserError(f"{file}: expected columns ImageId and PredictionString, which begins with a wnid (n01440764)")
    return labels


def _words(content: bytes) -> list[str]:
    return content.decode("utf-8-sig", "replace").split()


def _from_devkit(devkit: Path | None, name: str, setting: str) -> bytes:
    """The devkit's file of this name, be it a folder or an archive. setting: which gives such a file instead."""
    found = archive.unpacked(devkit, [name]) if devkit else {}
    if name not in found:
        raise UserError(f"no {name} in {devkit or 'any devkit'}; give devkit=PATH or {setting}=FILE")
    return found[name]


def _meta_wnids(content: bytes) -> list[str]:
    """The wnids of the leaves in the order of ILSVRC2012_ID, from the structures in the devkit's meta.mat."""
    from scipy.io import loadmat

    try:
        rows = loadmat(io.BytesIO(content), squeeze_me=True, variable_names=["synsets"])["synsets"]
        leaves = {int(row["ILSVRC2012_ID"]): str(row["WNID"]) for row in rows if row["num_children"] == 0}
    except Exception as error:  # a damaged file can raise nearly anything
        raise UserError("the devkit's meta.mat cannot be read; unpack or download the devkit again") from error
    return [leaves[number] for number in sorted(leaves)]
