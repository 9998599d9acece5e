"""One thread a process, torch's too: the tests run side by side (pytest-xdist) and many start processes of their own.
And Ctrl-C as a terminal has it: what starts in the background of a shell ignores it, and so would all it starts."""

import os
import signal
import sys
from pathlib import Path

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the demo data of the tiny run in commands.py lie."""
    from tdaf.demo.prepare import prepare

    root = tmp_path_factory.mktemp("demo")
    prepare("imagenet", root, 0, 40, 21, 32)
    return root


@pytest.fixture(autouse=True)
def seeded() -> None:
    """Each test draws the same numbers, whatever ran before it."""
    if torch := sys.modules.get("torch"):
        torch.manual_seed(0)
