"""A list of files to leave out: what it may hold, and what is said of one that cannot be used."""

from __future__ import annotations

from pathlib import Path

import pytest

from tdaf.errors import UserError
from tdaf.media.skip_list import read_skip_list


def written(folder: Path, text: str) -> str:
    path = folder / "skip.txt"
    path.write_text(text)
    return str(path)


def test_a_list_is_read_whatever_its_line_ends_and_slashes(tmp_path: Path) -> None:
    path = written(tmp_path, "train/a/1.jpg\r\n\n  val\\b\\2.jpg \ntrain/a/1.jpg\n")
    found = {"train/a/1.jpg", "val/b/2.jpg"}
    assert read_skip_list(path) == read_skip_list(path, ("train/", "val/")) == found
    assert read_skip_list(None) == frozenset()


def test_names_that_are_no_text_are_kept(tmp_path: Path) -> None:
    """As Python gives the names of such files."""
    (tmp_path / "skip.txt").write_bytes(b"val/\xff.jpg\n")
    assert read_skip_list(str(tmp_path / "skip.txt")) == {"val/\udcff.jpg"}


def test_a_path_from_elsewhere_is_refused(tmp_path: Path) -> None:
    path = written(tmp_path, "images/1.jpg\n")
    assert read_skip_list(path) == {"images/1.jpg"} == read_skip_list(path, ("images/",))
    with pytest.raises(UserError) as refused:
        read_skip_list(path, ("train/", "val/"))
    said = f"data.skip_list={path}: 'images/1.jpg' is not a path below data.root"
    assert str(refused.value) == f"{said} (train/... or val/...)"
    with pytest.raises(UserError, match=r"'/images/1.jpg' is not a path below data.root \(val/a/b.mp4\)"):
        read_skip_list(written(tmp_path, "/images/1.jpg\n"), example="val/a/b.mp4")
    assert read_skip_list(path, ("/images/",)) == {"/images/1.jpg"}


def test_a_list_that_is_not_there_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="gone.txt: No such file or directory; scripts/check_data.py writes such"):
        read_skip_list(str(tmp_path / "gone.txt"))
