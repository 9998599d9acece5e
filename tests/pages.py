"""What README and docs/ show, for the tests that run it."""

import re
import shlex
import sys
from pathlib import Path

import pytest
from commands import ROOT

EXTENDING = ROOT / "docs" / "extending.md"
# where the page tells users to put what it shows
FILES = {
    "backbone config": "backbone/mynet.yaml",
    "existing network config": "backbone/regnet.yaml",
    "attention config": "attention/eca.yaml",
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


def install(tmp_path: Path) -> str:
    """Puts the files of the page into a folder of the user's own; gives the override by which Hydra finds them."""
    folder = tmp_path / "mine"
    for name, place in FILES.items():
        assert not (ROOT / "configs" / place).exists()
        (folder / place).parent.mkdir(parents=True, exist_ok=True)
        (folder / place).write_text(block(name))
    return f"hydra.searchpath=[file://{folder}]"


def module(name: str, shown: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes block `shown` the importable module `name`."""
    (tmp_path / f"{name}.py").write_text(block(shown))
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, name, raising=False)
