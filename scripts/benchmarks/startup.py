"""How long train.py takes to answer when it has nothing to train, against the time that torch's import takes."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import torch

from benchmarks.settings import Settings
from benchmarks.timing import Result, interleaved
from tdaf.errors import RunError

ROOT = Path(__file__).parents[2]
ROUNDS = 15
IMPORT = "import torch"
COMMANDS = {
    IMPORT: (["-c", "import torch"], 0),
    "help": (["train.py", "--help"], 0),
    "cfg": (["train.py", "--cfg", "job"], 0),
    "mistake": (["train.py", "backbne=res50"], 2),
}


def starting(settings: Settings) -> dict[str, Result]:
    """Wall time of a whole process / of `python -c 'import torch'`."""
    candidates = {name: _process(*command) for name, command in COMMANDS.items()}
    times = interleaved(candidates, settings.rounds(ROUNDS), torch.device("cpu"), warm=1)

    def against_import(name: str) -> Result:
        return times.result(name, IMPORT, {each: f"{times.median(each):.2f} s" for each in (name, IMPORT)})

    return {f"start_{name}": against_import(name) for name in COMMANDS if name != IMPORT}


def _process(arguments: list[str], code: int) -> Callable[[], None]:
    def call() -> None:
        done = subprocess.run([sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True)
        if done.returncode != code:
            command = " ".join(["python", *arguments])
            raise RunError(f"{command} ended with {done.returncode}, not {code}: {done.stderr[-200:]}")

    return call
