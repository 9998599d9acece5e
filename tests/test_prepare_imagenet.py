"""scripts/prepare_imagenet.py on a tiny set in the official form: each image lands once, in its class."""

import shutil
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
from packing import META, WNIDS, contents, deflated, tar

from scripts.prepare_imagenet import prepare_imagenet
from tasks.classification.ilsvrc import INSIDE
from tdaf.cli.script import main

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


@pytest.fixture
def run(official: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """The script with these words after those that the tiny set needs; returns the exit code."""

    def call(*words: object) -> int:
        given = [f"root={official / 'set'}", f"devkit={official / 'devkit'}", f"synsets={official / 'order.txt'}"]
        monkeypatch.setattr("sys.argv", ["prepare_imagenet.py", *given, *map(str, words)])
        return main(prepare_imagenet, "")

    return call


def test_sorts_once_and_goes_on(official: Path, run, capsys: pytest.CaptureFixture[str]) -> None:
    (official / "set/val/n00000001").mkdir()  # as if it had been stopped after the first image
    (official / "set/val/ILSVRC2012_val_00000001.JPEG").rename(official / "set" / next(iter(PLACES)))
    for line in ("4 images moved, 1 were in place", "0 images moved, 5 were in place"):
        assert run() == 0 and contents(official / "set") == PLACES
        assert line in capsys.readouterr().out


@pytest.mark.parametrize("words", [["flat=FLAT", "link=true"], ["--flat", "FLAT", "--link"]])
def test_links_leave_the_images_where_they_are(official: Path, run, words: list[str]) -> None:
    flat = (official / "set/val").rename(official / "flat")
    for _ in range(2):
        assert run(*(word.replace("FLAT", str(flat)) for word in words)) == 0
        assert contents(official / "set") == PLACES and len(contents(flat)) == len(TRUTH)
    assert all((official / "set" / place).is_symlink() for place in PLACES)


def test_archives(official: Path, run, capsys: pytest.CaptureFixture[str]) -> None:
    tar(official / "val.tar", {f"./{Path(place).name}": content for place, content in PLACES.items()})
    for image in (official / "set/val").iterdir():
        image.unlink()
    inner = tar(official / "inner.tar", {"n00000001_5.JPEG": b"five", "./n00000001_6.JPEG": b"six"}).read_bytes()
    tar(official / "train.tar", {"n00000001.tar": inner, "n00000002.tar": inner})
    with tarfile.open(official / "devkit.tar.gz", "w:gz") as kit:
        kit.add(official / "devkit", "ILSVRC2012_devkit_t12")
    tars = [f"train_tar={official / 'train.tar'}", f"val_tar={official / 'val.tar'}"]
    train = {f"train/{wnid}/n00000001_{n}.JPEG": text for wnid in WNIDS[1:] for n, text in ((5, b"five"), (6, b"six"))}
    for line in ("train/: 4 images written, 0 were in place", "train/: 0 images written, 4 were in place"):
        assert run(*tars, f"devkit={official / 'devkit.tar.gz'}") == 0
        assert contents(official / "set") == {**PLACES, **train}
        assert line in capsys.readouterr().out


FAULTS = [
    ("synsets=HERE/sorted.txt", 2, "sorted by wnid"),
    ("synsets=HERE/words.txt", 2, "one wnid"),
    ("ground_truth=HERE/short.txt", 2, "one label 1..3 a line, found '9'"),
    ("devkit=HERE/set", 2, "no ILSVRC2012_validation_ground_truth.txt in"),
    ("flat=HERE/devkit", 2, "5 of 5 validation images are neither"),
    ("val_tar=HERE/nowhere.tar", 2, "nowhere.tar: no such file"),
    ("train_tar=HERE/words.txt", 2, "words.txt: 0 images"),
    ("devkit=null", 2, "nothing to do"),
]


@pytest.mark.parametrize(("word", "code", "message"), FAULTS)
def test_faults_change_nothing(
    word: str, code: int, message: str, official: Path, run, capsys: pytest.CaptureFixture[str]
) -> None:
    (official / "sorted.txt").write_text("\n".join(f"n{n:08d}" for n in range(1000)))
    (official / "words.txt").write_text("tench\ngoldfish\n")
    (official / "short.txt").write_text("1\n9\n")
    before = contents(official / "set")
    assert run(word.replace("HERE", str(official))) == code
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1 and error.startswith("error: ")
    assert contents(official / "set") == before


def test_lists_with_a_mark_of_byte_order_and_blanks(official: Path, run) -> None:
    (official / "order.txt").write_text("\ufeff" + " \r\n\r\n".join(WNIDS), encoding="utf-8")
    truth = "\ufeff" + " \r\n".join(map(str, TRUTH))
    (official / "devkit/data/ILSVRC2012_validation_ground_truth.txt").write_text(truth, encoding="utf-8")
    assert run() == 0 and contents(official / "set") == PLACES


def test_order_from_meta_mat(official: Path, run, capsys: pytest.CaptureFixture[str]) -> None:
    before = contents(official / "set")
    for content in (b"matlab", META[:-50], META[:200], META.replace(b"IM", b"MI"), META[:128], bytes(300)):
        (official / "devkit/data/meta.mat").write_bytes(content)
        assert run("synsets=null") == 2 and contents(official / "set") == before
        assert capsys.readouterr().err.startswith("error: the devkit's meta.mat cannot be read")
    (official / "devkit/data/meta.mat").write_bytes(META)
    assert run("synsets=null") == 0 and contents(official / "set") == PLACES


def delivered(form: str, folder: Path) -> str:
    """The set as Hugging Face or Kaggle has it; returns the word for the script."""
    train = {f"{wnid}_{n}": (wnid, b"%d of %b" % (n, wnid.encode())) for wnid in WNIDS for n in (5, 6)}
    val = {Path(place).stem: (place.split("/")[1], content) for place, content in PLACES.items()}
    if form == "kaggle":
        rows = "".join(f"{name},{wnid} 1 2 3 4\n" for name, (wnid, _) in val.items())
        files = {"LOC_val_solution.csv": f"ImageId,PredictionString\n{rows}".encode()}
        files |= {f"{INSIDE}/train/{wnid}/{name}.JPEG": content for name, (wnid, content) in train.items()}
        files |= {f"{INSIDE}/val/{name}.JPEG": content for name, (_, content) in val.items()}
        return f"kaggle={deflated(folder / 'challenge.zip', files)}"
    for name, images in (("train", train), ("validation", val)):
        rows = [
            {"image": {"bytes": content, "path": f"{stem}_{wnid}.JPEG"}, "label": sorted(WNIDS).index(wnid)}
            for stem, (wnid, content) in images.items()
        ]
        for part in range(2):
            table = pyarrow.Table.from_pylist(rows[part::2])
            pyarrow.parquet.write_table(table, folder / f"{name}-{part:05d}-of-00002.parquet")
    return f"parquet={folder}"


@pytest.mark.parametrize("form", ["kaggle", "parquet"])
def test_as_kaggle_and_hugging_face_deliver_it(form: str, official: Path, run, capsys) -> None:
    word = delivered(form, official)
    expected = {f"train/{wnid}/{wnid}_{n}.JPEG": b"%d of %b" % (n, wnid.encode()) for wnid in WNIDS for n in (5, 6)}
    shutil.rmtree(official / "set")
    for line in ("train/: 6 images written, 0 were", "val/: 0 images written, 5 were in place"):
        assert run(word) == 0 and contents(official / "set") == {**PLACES, **expected}
        assert line in capsys.readouterr().out
    shutil.rmtree(official / "set")
    for _ in range(2):
        assert run(word, "tar=true") == 0
        for split in ("train", "val"):
            with tarfile.open(official / f"set/{split}.tar") as tar:
                tar.extractall(official / "again" / split, filter="data")
        assert contents(official / "again") == {**PLACES, **expected} and len(contents(official / "set")) == 2
    assert "train.tar was in place" in capsys.readouterr().out


def test_parquet_faults(official: Path, run, capsys) -> None:
    word = delivered("parquet", official)
    one, other = sorted(official.glob("train-*.parquet"))
    content = one.read_bytes()
    one.write_bytes(content[:-40])
    assert run(word) == 1 and "train-00000-of-00002.parquet is damaged" in capsys.readouterr().err
    pyarrow.parquet.write_table(
        pyarrow.Table.from_pylist([{"image": {"bytes": b"", "path": "x.JPEG"}, "label": 0}]), one
    )
    assert run(word) == 2 and "x.JPEG does not say its class" in capsys.readouterr().err
    one.unlink()
    assert run(word) == 2 and "1 files of train, which has 2" in capsys.readouterr().err
    other.unlink()
    assert run(word) == 2 and "no train-*.parquet there" in capsys.readouterr().err


def test_imports_no_torch() -> None:
    code = "import sys, scripts.prepare_imagenet; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
