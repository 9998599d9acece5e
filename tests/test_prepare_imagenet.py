"""scripts/prepare_imagenet.py on a tiny set in the official form: each image lands once, in its class."""

from __future__ import annotations

import io
import subprocess
import sys
import tarfile
import types
from pathlib import Path

import numpy as np
import pytest

from scripts.prepare_imagenet import main

WNIDS = ["n00000003", "n00000001", "n00000002"]  # by ILSVRC2012_ID, which is not the order of the wnids
TRUTH = [2, 3, 1, 2, 2]
PLACES = {f"val/{WNIDS[label - 1]}/ILSVRC2012_val_{n:08d}.JPEG": b"image %d" % n for n, label in enumerate(TRUTH, 1)}


@pytest.fixture
def official(tmp_path: Path) -> Path:
    (tmp_path / "devkit/data").mkdir(parents=True)
    truth = "".join(f"{label}\n" for label in TRUTH)
    (tmp_path / "devkit/data/ILSVRC2012_validation_ground_truth.txt").write_text(truth)
    (tmp_path / "order.txt").write_text("\n".join(WNIDS))
    (tmp_path / "set/val").mkdir(parents=True)
    for n in range(1, len(TRUTH) + 1):
        (tmp_path / f"set/val/ILSVRC2012_val_{n:08d}.JPEG").write_bytes(b"image %d" % n)
    return tmp_path


def arguments(folder: Path, *more: object) -> list[str]:
    given = ["--root", folder / "set", "--devkit", folder / "devkit", "--synsets", folder / "order.txt", *more]
    return [str(item) for item in given]


def files(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def archive(path: Path, members: dict[str, bytes]) -> bytes:
    with tarfile.open(path, "w") as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path.read_bytes()


def test_sorts_once_and_goes_on(official: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (official / "set/val/n00000001").mkdir()  # as if it had been stopped after the first image
    (official / "set/val/ILSVRC2012_val_00000001.JPEG").rename(official / "set" / next(iter(PLACES)))
    assert main(arguments(official)) == 0 and files(official / "set") == PLACES
    assert "4 images moved, 1 were in place" in capsys.readouterr().out
    assert main(arguments(official)) == 0 and files(official / "set") == PLACES
    assert "0 images moved, 5 were in place" in capsys.readouterr().out


def test_links_leave_the_images_where_they_are(official: Path) -> None:
    flat = (official / "set/val").rename(official / "flat")
    for _ in range(2):
        assert main(arguments(official, "--flat", flat, "--link")) == 0
        assert files(official / "set") == PLACES and len(files(flat)) == len(TRUTH)
    assert all((official / "set" / place).is_symlink() for place in PLACES)


def test_archives(official: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flat = {f"x/../{Path(place).name}": content for place, content in PLACES.items()}
    archive(official / "val.tar", flat)
    for image in (official / "set/val").iterdir():
        image.unlink()
    inner = archive(official / "inner.tar", {"n00000001_5.JPEG": b"five", "../n00000001_6.JPEG": b"six"})
    archive(official / "train.tar", {"n00000001.tar": inner, "n00000002.tar": inner})
    (official / "set/train.unfinished").mkdir()
    (official / "set/train.unfinished/rest.JPEG").write_bytes(b"from a stopped run")
    with tarfile.open(official / "devkit.tar.gz", "w:gz") as tar:
        tar.add(official / "devkit", "ILSVRC2012_devkit_t12")
    tars = ["--train-tar", official / "train.tar", "--val-tar", official / "val.tar"]
    tars += ["--devkit", official / "devkit.tar.gz"]
    train = {f"train/{wnid}/n00000001_{n}.JPEG": text for wnid in WNIDS[1:] for n, text in ((5, b"five"), (6, b"six"))}
    for said in ("2 classes unpacked, 0 were in place", "0 classes unpacked, 2 were in place"):
        assert main(arguments(official, *tars)) == 0
        assert files(official / "set") == {**PLACES, **train}
        assert said in capsys.readouterr().out


def test_faults_change_nothing(official: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sorted_order = official / "sorted.txt"
    sorted_order.write_text("\n".join(f"n{n:08d}" for n in range(1000)))
    words = official / "words.txt"
    words.write_text("tench\ngoldfish\n")
    short = official / "short.txt"
    short.write_text("1\n9\n")
    before = files(official / "set")
    cases = [
        (["--synsets", sorted_order], "sorted by wnid"),
        (["--synsets", words], "one wnid"),
        (["--synsets", official / "none.txt"], "none.txt: no such file"),
        (["--ground-truth", short], "one label 1..3 a line, found '9'"),
        (["--devkit", official / "set"], "no ILSVRC2012_validation_ground_truth.txt in"),
        (["--flat", official / "nowhere"], "nowhere: no such folder"),
        (["--flat", official / "devkit"], "5 of 5 validation images are neither"),
        (["--val-tar", official / "nowhere.tar"], "nowhere.tar: no such file"),
    ]
    for more, message in cases:
        assert main(arguments(official, *more)) == 2, message
        error = capsys.readouterr().err
        assert message in error and error.count("\n") == 1 and error.startswith("error: ")
    assert main(["--root", str(official / "set")]) == 2 and "nothing to do" in capsys.readouterr().err
    assert main(arguments(official, "--train-tar", words)) == 1 and "words.txt" not in files(official / "set")
    assert files(official / "set") == before


def test_order_from_meta_mat(
    official: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (official / "devkit/data/meta.mat").write_bytes(b"matlab")
    given = ["--root", str(official / "set"), "--devkit", str(official / "devkit")]
    monkeypatch.setitem(sys.modules, "scipy.io", None)
    assert main(given) == 2 and "pip install scipy, or give --synsets FILE" in capsys.readouterr().err
    kinds = [("ILSVRC2012_ID", int), ("WNID", "U9"), ("num_children", int)]
    rows = [(4, "n00000009", 3), (3, WNIDS[2], 0), (1, WNIDS[0], 0), (2, WNIDS[1], 0)]  # 4: no leaf
    scipy = types.ModuleType("scipy.io")
    scipy.loadmat = lambda file, squeeze_me: {"synsets": np.array(rows, kinds)}
    monkeypatch.setitem(sys.modules, "scipy", types.ModuleType("scipy"))
    monkeypatch.setitem(sys.modules, "scipy.io", scipy)
    assert main(given) == 0 and files(official / "set") == PLACES


def test_imports_no_torch() -> None:
    code = "import sys, scripts.prepare_imagenet; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
