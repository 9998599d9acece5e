"""What README and docs/ show, for the tests that run it."""

from __future__ import annotations

import functools
import re
import shlex
import shutil
import sys
from pathlib import Path

import pytest
from commands import ROOT

from tdaf.cli import compose, overrides

EXTENDING = ROOT / "docs" / "extending.md"
# where the page tells users to put what it shows
FILES = {
    "backbone config": "backbone/mynet.yaml",
    "existing network config": "backbone/regnet.yaml",
    "data set config": "task/mydata.yaml",
    "task config": "task/myseg.yaml",
}


def block(name: str, page: Path = EXTENDING) -> str:
    """The fenced block below <!-- test: NAME -->."""
    found = re.search(rf"<!-- test: {name} -->\n```\w*\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)
    assert found, f"{page.name} has no block {name}"
    return found[1]


def commands(name: str, **words: object) -> list[list[str]]:
    """The arguments of each command of such a block, with placeholders replaced: PATH="/data"."""
    text = block(name)
    for word, value in words.items():
        text = text.replace(word, str(value))
    return [shlex.split(line)[1:] for line in text.splitlines()]


def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A copy of configs/ with the files of the page in it takes the place of the real one."""
    folder = tmp_path / "configs"
    shutil.copytree(ROOT / "configs", folder, ignore=shutil.ignore_patterns("*.py", "__pycache__"))
    for name, place in FILES.items():
        assert not (folder / place).exists()
        (folder / place).write_text(block(name))
    monkeypatch.setattr(compose, "FOLDER", folder)
    monkeypatch.setattr(overrides, "FOLDER", folder)
    monkeypatch.setattr(compose, "_composed", functools.cache(compose._composed.__wrapped__))
    monkeypatch.setattr(compose, "ATTENTION", (*compose.ATTENTION, "eca"))


def module(name: str, shown: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes block `shown` the importable module `name`."""
    (tmp_path / f"{name}.py").write_text(block(shown))
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, name, raising=False)
