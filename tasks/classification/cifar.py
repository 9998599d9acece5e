"""CIFAR-10 from the python batches of its own page (cs.toronto.edu/~kriz/cifar.html)."""

from __future__ import annotations

import codecs
import io
import pickle
import tarfile
import zlib
from pathlib import Path, PurePath
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tdaf.errors import UserError

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
        if not root:
            raise UserError(f"root is not set; give the folder of CIFAR-10: {LAYOUT}")
        given = Path(root).expanduser()
        self.folder = given if (given / "test_batch").is_file() else given / FOLDER
        if not self.folder.is_dir() and (given / ARCHIVE).is_file():
            self.folder = given / ARCHIVE
        needed = [*FILES["train"], *FILES["val"], "batches.meta"]
        contents = _contents(self.folder, needed, needed[-1:])
        missing = next((name for name in needed if name not in contents), None)
        if missing:
            raise UserError(f"root={root}: no {missing} in {self.folder.absolute()}; {LAYOUT}")
        names = _unpickled(self.folder / "batches.meta", contents["batches.meta"]).get("label_names")
        if not isinstance(names, list) or not names:
            raise UserError(f"{self.folder / 'batches.meta'} has no label_names; {AGAIN}")
        self.classes = [str(name) for name in names]

    def split(self, name: str) -> CifarImages:
        """The images of "train" or "val"."""
        return CifarImages(self.folder, FILES[name], len(self.classes))


class CifarImages:
    """Some batches in memory, one uint8 tensor of images (N, 3, 32, 32)."""

    skipped = 0

    def __init__(self, folder: Path, files: list[str], classes: int) -> None:
        contents = _contents(folder, files, files)
        batches = [_batch(folder / file, contents[file], classes) for file in files]
        self.images = torch.from_numpy(np.concatenate([data for data, _ in batches])).view(-1, 3, 32, 32)
        self.labels = np.concatenate([labels for _, labels in batches])
        self.rows = [
            (file, row) for file, (_, labels) in zip(files, batches, strict=True) for row in range(len(labels))
        ]
        if not len(self):
            raise UserError(f"the batches in {folder} hold no image")

    def __len__(self) -> int:
        return len(self.labels)

    def label(self, index: int) -> int:
        return int(self.labels[index])

    def name(self, index: int) -> str:
        """The batch's file and the row in it: data_batch_2[17]."""
        file, row = self.rows[index]
        return f"{file}[{row}]"

    def read(self, index: int) -> tuple[Tensor, int]:
        """uint8 RGB (3, 32, 32) and the class."""
        return self.images[index], self.label(index)


def _contents(folder: Path, names: list[str], read: list[str]) -> dict[str, bytes]:
    """Those of these files that there are, in the folder or in the archive that it was packed into; read: which of them
    with their content."""
    try:
        if folder.is_file():
            with tarfile.open(folder) as packed:
                members = ((PurePath(member.name), member) for member in packed if member.isfile())
                wanted = (pair for pair in members if pair[0].name in names and pair[0].parent.name == FOLDER)
                return {p.name: packed.extractfile(m).read() if p.name in read else b"" for p, m in wanted}
        there = (name for name in names if (folder / name).is_file())
        return {name: (folder / name).read_bytes() if name in read else b"" for name in there}
    except (tarfile.TarError, EOFError, zlib.error) as error:
        raise UserError(f"{folder} is damaged, cut off or no archive; bring it again") from error
    except OSError as error:
        raise UserError(f"{error.filename or folder}: {error.strerror or error}") from error


def _batch(path: Path, content: bytes, classes: int) -> tuple[np.ndarray, np.ndarray]:
    batch = _unpickled(path, content)
    data, labels = batch.get("data"), np.asarray(batch.get("labels", ()))
    if not isinstance(data, np.ndarray) or data.dtype != np.uint8 or data.shape != (len(labels), 3072):
        raise UserError(f"{path} is not a CIFAR-10 batch (data uint8 (N, 3072) and N labels); {AGAIN}")
    if len(labels) and not (labels.dtype.kind == "i" and 0 <= labels.min() and labels.max() < classes):
        raise UserError(f"{path} has labels outside 0..{classes - 1}; {AGAIN}")
    return data, labels


def _unpickled(path: Path, content: bytes) -> dict[str, Any]:
    try:
        batch = _Unpickler(io.BytesIO(content), encoding="latin1").load()
    # A damaged pickle can raise nearly anything.
    except Exception as error:
        raise UserError(f"{path} is damaged or no CIFAR-10 batch; {AGAIN}") from error
    if not isinstance(batch, dict):
        raise UserError(f"{path} is no CIFAR-10 batch; {AGAIN}")
    return batch


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
