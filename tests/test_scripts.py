"""predict and check_data, as a user calls them, and lists of files to leave out."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import videos
from commands import TINY, call, script
from PIL import Image

from scripts.check_data import check
from scripts.predict import predict
from tasks.classification.task import Classification
from tasks.common import ClassTask
from tdaf.cli.evaluation import open_to_predict
from tdaf.demo.prepare import prepare
from tdaf.errors import RunError, UserError
from tdaf.media.clip import Video
from tdaf.media.files import read_skip_list, write_skip_list


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepare("imagenet", tmp_path_factory.mktemp("demo"), seed=0, train=20, val=11, size=32)


@pytest.fixture(scope="module")
def run(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "run"
    with pytest.MonkeyPatch.context() as patch:
        assert call(patch, [*TINY, f"data.root={data}", f"run_dir={folder}"]) == 0
    return folder


def test_predict_a_folder(run: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    given = tmp_path / "given"
    shutil.copytree(data / "val" / "n00000003", given / "deep")
    (given / "broken.jpg").write_text("no picture")
    (given / "notes.txt").write_text("no picture either")
    out = given / "out"
    for _ in range(2):  # what the first call draws is no input of the second
        assert script(predict, [f"checkpoint={run}", f"input={given}", f"out={out}", "loader.workers=0"]) == 0
    said = capsys.readouterr()
    assert said.err.count("1 files that are no images or videos by their endings, left out (1 .txt)\n") == 2
    assert sum("broken.jpg" in line for line in said.err.splitlines()) == 2  # once a call
    rows = json.loads((out / "predictions.json").read_text())["predictions"]
    assert [Path(row["file"]) for row in rows] == sorted((given / "deep").iterdir())
    for row in rows:
        assert len(row["top5"]) == 5 and row["top5"][0]["class"] in said.out
        assert (out / "deep" / (Path(row["file"]).name + ".png")).is_file()
    assert len(list(out.rglob("*.*"))) == len(rows) + 1


def test_predict_a_video(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """Every frame has the answer of the same frame as an image; a damaged video counts up to its damage."""
    given, out = tmp_path / "given", tmp_path / "out"
    given.mkdir()
    film = videos.write(given / "film.mp4")
    short = videos.rewritten(film, given / "short.m4v", movflags="faststart")
    short.write_bytes(short.read_bytes()[:-600])
    videos.sound(given / "sound.mov")
    frames = videos.decoded(film)
    Image.fromarray(frames[7]).save(given / "seven.png")
    Image.fromarray(frames[0]).save(given / "moves.gif", save_all=True, append_images=[Image.fromarray(frames[5])])
    assert script(predict, [f"checkpoint={run}", f"input={given}", f"out={out}", "batch=8"]) == 0
    said = capsys.readouterr()
    assert f"left out {given}/sound.mov: " in said.err and "4 of 5 files drawn" in said.out
    assert f"in part {given}/short.m4v: cut off: 600 bytes" in said.err and "frame 15 of 30" in said.out
    rows = json.loads((out / "predictions.json").read_text())["predictions"]
    by = {(Path(row["file"]).name, row.get("frame")): row["top5"] for row in rows}
    count = sum(name == "short.m4v" for name, _ in by)
    assert len(by) == len(rows) == 33 + count and 0 < count < 30 and len(Video(out / "moves.gif.mp4")) == 2
    assert [row["frame"] for row in rows[:30]] == list(range(30))
    assert by["seven.png", None][0]["class"] == by["film.mp4", 7][0]["class"] == by["short.m4v", 7][0]["class"]
    assert by["seven.png", None][0]["probability"] == pytest.approx(by["film.mp4", 7][0]["probability"], abs=1e-4)
    for name, expected in (("film.mp4", 30), ("short.m4v.mp4", count)):
        drawn = Video(out / name)
        assert len(drawn) == expected and drawn.survey.fps == 12 and drawn.read(0).shape == (3, 192, 256)


def test_predict_nothing_that_can_be_read(run: Path, tmp_path: Path) -> None:
    (tmp_path / "a.mp4").write_text("no video")
    (tmp_path / "b.jpg").write_text("no picture")
    with pytest.raises(RunError, match="not one of 2 files"):
        script(predict, [f"checkpoint={run}", f"input={tmp_path}", f"out={tmp_path / 'out'}"])
    assert not list((tmp_path / "out").iterdir())


def test_predict_equals_evaluation(run: Path, data: Path, tmp_path: Path) -> None:
    """The share of validation pictures that predict gets right is the run's own top-1; folding does not change it."""
    names = dict(line.split() for line in (data / "classes.txt").read_text().splitlines())
    for folded in ("false", "true"):
        out = tmp_path / folded
        settings = f"checkpoint={run} input={data / 'val'} out={out} folded={folded} batch=5"
        assert script(predict, settings.split()) == 0
        rows = json.loads((out / "predictions.json").read_text())["predictions"]
        top1 = json.loads((run / "summary.json").read_text())["metric"]["last"]
        right = sum(row["top5"][0]["class"] == names[Path(row["file"]).parent.name] for row in rows)
        assert 100 * right / len(rows) == pytest.approx(top1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("checkpoint={run}", "give input="),
        ("input={empty} checkpoint={run}", "no image or video in this folder"),
        ("input={folder} checkpoint={run} out={folder}", "is the input's own folder"),
        ("input={film} checkpoint={run} out={empty}", "would be written over .*film.mp4; give another folder"),
        ("input={image} checkpoint={run} out={image}/deep", "deep cannot be written: Not a directory"),
        ("input={image} checkpoint={run} boxes=x.json", "boxes=x.json: neither this script nor .* task has .* boxes"),
        ("input={image} checkpoint={run} task.protocl=1crop", "did you mean task.protocol?"),
        ("input={image} checkpoint={run} protocol=5crop", "protocol=5crop"),
    ],
)
def test_predict_mistakes(arguments: str, message: str, run: Path, data: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    image = next((data / "val" / "n00000001").iterdir())
    places = {"empty": tmp_path / "empty", "image": image, "folder": image.parent, "run": run}
    if "{film}" in arguments:
        places["film"] = videos.write(tmp_path / "empty" / "film.mp4")
    with pytest.raises(UserError, match=message) as refused:
        script(predict, arguments.format(**places).split())
    assert "\n" not in str(refused.value)


def test_predict_says_which_folders_may_not_be_read(
    run: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    given, scandir = tmp_path / "given", os.scandir
    shutil.copytree(data / "val" / "n00000003", given / "a")
    shutil.copytree(data / "val" / "n00000003", given / "closed")

    def refusing(closed: Path) -> None:
        def scan(path: str | Path = ".") -> Any:
            if Path(path) == closed:
                raise PermissionError(13, "Permission denied", str(path))
            return scandir(path)

        monkeypatch.setattr("os.scandir", scan)

    refusing(given / "closed")
    assert script(predict, [f"checkpoint={run}", f"input={given}", f"out={tmp_path / 'out'}"]) == 0
    assert capsys.readouterr().err == f"left out {given / 'closed'}: Permission denied\n"
    refusing(given)
    with pytest.raises(UserError, match="given cannot be read: Permission denied"):
        script(predict, [f"checkpoint={run}", f"input={given}", f"out={tmp_path / 'out'}"])


def test_the_signature_decides_what_the_task_takes(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However close a name is to one of the script's own."""

    def options(*words: str) -> dict[str, Any]:
        return open_to_predict(run, words, predict)[1]

    def predict_dataset(
        self, paths: list[Path], boxes: str | list[str] = "gt", least: float = 0.1, batches: int = 1
    ): ...

    monkeypatch.setattr(Classification, "predict_dataset", predict_dataset)
    assert options("boxes=a.json", "least=0.5", "batches=3") == {"boxes": "a.json", "least": 0.5, "batches": 3}
    assert options("boxes=[gt,b.json]") == {"boxes": ["gt", "b.json"]} and options("gpus=0") == {}
    for word, message in (("boxs=x", "did you mean boxes"), ("least=much", "least=much: give a number"),
                          ("paths=x", "no.* setting paths"), ("self=x", "no.* setting self")):  # fmt: skip
        with pytest.raises(UserError, match=message):
            options(word)
    monkeypatch.setattr(Classification, "predict_dataset", lambda self, paths, **options: None)
    assert options("anything=1", "protocol=1crop") == {"anything": 1}
    monkeypatch.delattr(ClassTask, "draw")
    with pytest.raises(UserError, match="its task does not predict: it has no draw"):
        script(predict, [f"checkpoint={run}", f"input={videos.write(tmp_path / 'a.mp4')}", f"out={tmp_path / 'out'}"])
    monkeypatch.delattr(Classification, "predict_dataset")
    with pytest.raises(UserError, match="its task does not predict"):
        options()


def test_check_data_and_skip_list(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    """The list that check_data writes is what makes a damaged data set usable, with the left-out samples counted."""
    root = tmp_path / "data"
    shutil.copytree(data, root)
    first = sorted((root / "val" / "n00000001").iterdir())[0]
    first.write_bytes(first.read_bytes()[:200])
    shutil.copy(sorted((root / "val" / "n00000002").iterdir())[0], root / "val" / "n00000001" / "whole.JPEG")
    settings = [*TINY, f"data.root={root}"]
    skip = tmp_path / "skip.txt"
    assert script(check, [*settings, f"out={skip}"]) == 1
    assert skip.read_text() == f"val/n00000001/{first.name}\n"
    assert capsys.readouterr().out.count(first.name) == 1
    assert script(check, [*settings, f"data.skip_list={skip}", f"out={skip}"]) == 0
    assert "       0       1  on the skip list" in capsys.readouterr().out
    assert skip.read_text() == f"val/n00000001/{first.name}\n"
    assert call(monkeypatch, [*settings, f"data.skip_list={skip}", f"run_dir={tmp_path / 'run'}"]) == 0
    assert json.loads((tmp_path / "run/summary.json").read_text())["skipped"] == 1


def test_every_legal_file_name_comes_back(tmp_path: Path) -> None:
    """Each character and byte that a name may have, at its beginning, in its middle and at its end."""
    no_text = [chr(0xDC00 + byte) for byte in range(128, 256)]
    odd = [*map(chr, range(1, 0x120)), *"\u1680\u2028\u2029\u3000\ufeff\U0001f600", *no_text]
    names = {"val\\c/\\", '"val"', '"val/"x'}
    for letter in (letter for letter in odd if letter != "/"):
        names |= {f"{letter}/x.jpg", *(f"val/a b/{end}" for end in (f"{letter}x.jpg", f"x{letter}y.jpg", f"x{letter}"))}
    path = tmp_path / "skip.txt"
    write_skip_list(path, [*names, *sorted(names)])
    assert read_skip_list(str(path)) == names
    text = path.read_text().splitlines()
    assert len(text) == len(names) and "val/a b/xéy.jpg" in text  # one a line, and plain where that is possible


def test_a_list_that_a_person_wrote(tmp_path: Path) -> None:
    """Line ends and slashes of Windows, blank lines, bytes that are no text."""
    path = tmp_path / "skip.txt"
    path.write_bytes(b'\xef\xbb\xbftrain/a/1.jpg\r\n\n  val\\b\\2.jpg \ntrain/a/1.jpg\nval/\xff.jpg\nval/"x".jpg\n')
    names = {"train/a/1.jpg", "val/b/2.jpg", "val/\udcff.jpg", 'val/"x".jpg'}
    assert read_skip_list(str(path)) == read_skip_list(str(path), ("train/", "val/")) == names
    assert read_skip_list(None) == frozenset()


def test_faults_are_one_line(tmp_path: Path) -> None:
    path = tmp_path / "skip.txt"
    path.write_text("/images/1.jpg\n")
    assert read_skip_list(str(path), ("/images/",)) == {"/images/1.jpg"}
    folders = {"folders": ("train/", "val/")}
    for settings, like in ((folders, "train/... or val/..."), ({"example": "val/b.mp4"}, "val/b.mp4")):
        with pytest.raises(UserError) as refused:
            read_skip_list(str(path), **settings)
        said = str(refused.value)
        assert said.startswith(f"skip_list={path}: '/images/1.jpg' is not") and like in said and "\n" not in said
    with pytest.raises(UserError, match="gone.txt: No such file or directory; scripts/check_data.py writes such"):
        read_skip_list(str(tmp_path / "gone.txt"))
    with pytest.raises(UserError, match="skip.txt/below cannot be written: Not a directory"):
        write_skip_list(path / "below", ["a"])
