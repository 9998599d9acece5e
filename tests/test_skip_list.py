"""Lists of files to leave out: what is written is read again, and so is what a person wrote; faults are one line."""

from __future__ import annotations

from pathlib import Path

import pytest

from tdaf.errors import UserError
from tdaf.media.files import read_skip_list, write_skip_list


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
