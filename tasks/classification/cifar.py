"""CIFAR-10 from the python batches of its own page (cs.toronto.edu/~kriz/cifar.html)."""

from __future__ import annotations

import codecs
import io
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tasks.common import data_root
from tdaf.errors import UserError
from tdaf.media import archive

FOLDER = "cifar-10-batches-py"
ARCHIVE = "cifar-10-python.tar.gz"
AGAIN = f"bring {ARCHIVE} again"
FILES = {"train": [f"data_batch_{part}" for part in range(1, 6)], "val": ["test_batch"]}
LAYOUT = (
    f"expected {ARCHIVE} or, unpacked, {FOLDER}/ with data_batch_1 to data_batch_5, test_batch and batches.meta; "
    "without data, try recipe=demo"
)


class Cifar10:
    """The five batches are "train", the test batch is "val". Nothing is downloaded, and no checksum is asked for:
    batches of any length in this format will do.

    Args:
        root: cifar-10-batches-py, with data_batch_1..5, test_batch and batches.meta, or the folder that holds it or
            cifar-10-python.tar.gz, which is read as it is.

    Attributes:
        classes: the names in batches.meta.

    Raises:
        UserError: a file is absent or is not such a batch.
    """

    def __init__(self, root: str | None) -> None:
        given = data_root(root, "the folder of CIFAR-10", LAYOUT)
        places = (given, given / FOLDER, given / ARCHIVE)
        self.place = next((path for path in places if path.is_file() or (path / "test_batch").is_file()), places[1])
        names = _unpickled(self.place, "batches.meta", _contents(self.place, ["batches.meta"])).get("label_names")
        if not isinstance(names, list) or not names:
            raise UserError(f"{self.place / 'batches.meta'} has no label_names; {AGAIN}")
        self.classes = [str(name) for name in names]

    def split(self, name: str) -> CifarImages:
        """The images of "train" or "val"."""
        return CifarImages(self.place, FILES[name], len(self.classes))


class CifarImages:
    """Some batches in memory, one uint8 tensor of images (N, 3, 32, 32)."""

    skipped = 0

    def __init__(self, place: Path, files: list[str], classes: int) -> None:
        contents = _contents(place, files)
        batches = [_batch(place, file, contents, classes) for file in files]
        self.images = torch.from_numpy(np.concatenate([data for data, _ in batches])).view(-1, 3, 32, 32)
        self.labels = np.concatenate([labels for _, labels in batches])
        self.rows = [f"{file}[{row}]" for file, (_, own) in zip(files, batches, strict=True) for row in range(len(own))]
        if not len(self):
            raise UserError(f"the batches in {place} hold no image")

    def __len__(self) -> int:
        return len(self.labels)

    def label(self, index: int) -> int:
        return int(self.labels[index])

    def name(self, index: int) -> str:
        """The batch's file and the row in it: data_batch_2[17]."""
        return self.rows[index]

    def read(self, index: int) -> tuple[Tensor, int]:
        """uint8 RGB (3, 32, 32) and the class."""
        return self.images[index], self.label(index)


def _contents(place: Path, names: list[str]) -> dict[str, bytes]:
    found = archive.unpacked(place, names)
    for name in names:
        if name not in found:
            raise UserError(f"no {name} in {place.absolute()}; {LAYOUT}")
    return found


def _batch(place: Path, name: str, contents: dict[str, bytes], classes: int) -> tuple[np.ndarray, np.ndarray]:
    batch = _unpickled(place, name, contents)
    data, labels = batch.get("data"), np.asarray(batch.get("labels", ()))
    if not isinstance(data, np.ndarray) or data.dtype != np.uint8 or data.shape != (len(labels), 3072):
        raise UserError(f"{place / name} is not a CIFAR-10 batch (data uint8 (N, 3072) and N labels); {AGAIN}")
    if len(labels) and not (labels.dtype.kind == "i" and 0 <= labels.min() and labels.max() < classes):
        raise UserError(f"{place / name} has labels outside 0..{classes - 1}; {AGAIN}")
    return data, labels


def _unpickled(place: Path, name: str, contents: dict[str, bytes]) -> dict[str, Any]:
    try:
        return dict(_Unpickler(io.BytesIO(contents[name]), encoding="latin1").load())
    except Exception as error:  # a damaged pickle can raise nearly anything
        raise UserError(f"{place / name} is damaged or no CIFAR-10 batch; {AGAIN}") from error


class _Unpickler(pickle.Unpickler):
    """Knows numpy arrays and nothing else: a pickle from elsewhere cannot run code."""

    allowed = {
        ("numpy", "ndarray"): np.ndarray,
        ("numpy", "dtype"): np.dtype,
        # how Python 3 writes the bytes of an array under Python 2's protocol
        ("_codecs", "encode"): codecs.encode,
        **{(f"numpy.{core}.multiarray", "_reconstruct"): np.empty(0).__reduce__()[0] for core in ("core", "_core")},
    }

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self.allowed:
            raise pickle.UnpicklingError(f"{module}.{name} has no place in a CIFAR-10 batch")
        return self.allowed[module, name]
