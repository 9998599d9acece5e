"""The grammar that all scripts share."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Literal

import pytest
from commands import ROOT

from tdaf.cli.script import Natural, Positive, Share, parse
from tdaf.errors import UserError


def small(
    *words: str, out: Path = Path("x"), x: Literal["epoch", "step"] = "epoch", class_: str | None = None
) -> int: ...


def large(
    *,
    checkpoint: str,
    batch: Positive = 16,
    seeds: list[Natural] | None = None,
    score: Share = 0.5,
    link: bool = False,
    gpus: int | Literal["auto"] = "auto",
    rest: list[str],
) -> int: ...


def test_words_and_types() -> None:
    assert parse(["a", "out=~/b", "x=STEP", "class=person", "b"], small) == (
        ["a", "b"],
        {"out": Path.home() / "b", "x": "step", "class_": "person"},
    )
    words, settings = parse(
        "checkpoint=c batch=3 seeds=[0,1] score=1 gpus=2 data.root=q ~a.b +c=1 link=1".split(), large
    )
    rest = ["data.root=q", "~a.b", "+c=1"]
    values = {"checkpoint": "c", "batch": 3, "seeds": [0, 1], "score": 1.0, "gpus": 2, "link": True}
    assert (words, settings) == ([], {**values, "rest": rest})


def test_dashes_are_the_same_grammar() -> None:
    assert parse(["--checkpoint", "c", "--batch=2", "--link"], large) == parse(
        "checkpoint=c batch=2 link=true".split(), large
    )


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("checkpoint=c batch=0", "batch=0: give a whole number above 0"),
        ("checkpoint=c batch=two", "batch=two: give a whole number above 0"),
        ("checkpoint=c score=nan", "score=nan: give a number from 0 to 1"),
        ("checkpoint=c gpus=some", "gpus=some: give a whole number or auto"),
        ("checkpoint=c link=maybe", "link=maybe: give true or false"),
        ("checkpoint=c seeds=1,-1", "seeds=1,-1: give a list, as [1,2]"),
        ("batch=2", "give checkpoint="),
        ("checkpoint=c word", "'word' is not a setting: write key=value"),
        ("--checkpiont c", "did you mean checkpoint?"),
        ("--batch", "batch: give its value"),
    ],
)
def test_a_mistake_is_one_line(arguments: str, said: str) -> None:
    with pytest.raises(UserError) as caught:
        parse(arguments.split(), large)
    assert said in str(caught.value) and "\n" not in str(caught.value)


def test_a_setting_that_is_nobodys_is_refused() -> None:
    with pytest.raises(UserError, match="no setting titel"):
        parse(["titel=1"], small)


def test_a_reader_that_goes_away_leaves_no_trace(tmp_path: Path) -> None:
    writer = "import sys; from tdaf.cli.script import main; sys.exit(main(lambda: print('x' * 10**6), ''))"
    command = f"'{sys.executable}' -c \"{writer}\" | head -c 1; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (141, "x", "")
