"""The real command line, killed and told to stop at any moment: it goes on to the bits of an uninterrupted run."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from commands import call, tiny
from tiny_run import numbers, same, start, trained, until

from tdaf.cli.run import loader_settings

COMMAND = "task.head=linear task.dropout=0.2 task.mixup=0.4 trainer.ema=0.9 trainer.checkpoint_every=1 gpus=0".split()
Starts = Callable[..., subprocess.Popen]


@pytest.fixture(scope="module")
def commands(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Starts]:
    """A folder, and what starts the command for the run folder `name` in it; "whole" has run there uninterrupted."""
    root = tmp_path_factory.mktemp("commands")

    def begin(name: str, *overrides: str) -> subprocess.Popen:
        return start([*COMMAND, f"demo.root={root}", f"run_dir={root / name}", *overrides], root / f"{name}.txt")

    process = begin("whole")
    assert process.wait(300) == 0, (root / "whole.txt").read_text()
    return root, begin


def test_a_run_cut_in_every_way_is_the_whole_run(commands: tuple[Path, Starts]) -> None:
    """Kill -9 in training, in the middle of saving and in an evaluation, then Ctrl-C, then SIGTERM, then to the end."""
    root, begin = commands
    run, output = root / "cut", root / "cut.txt"
    log, checkpoints = run / "log.txt", run / "checkpoints"

    def text() -> str:
        return log.read_text() if log.exists() else ""

    def said(words: str) -> bool:
        return words in text()[before:]

    cuts: list[tuple[Callable[[], bool], int, int]] = [
        (lambda: said("images/s"), signal.SIGKILL, -signal.SIGKILL),
        (lambda: said("images/s") and any(checkpoints.glob(".last.pt.*")), signal.SIGKILL, -signal.SIGKILL),
        # an epoch: it is saved, evaluated, saved
        (lambda: said("step 5/12") or said("step 10/12"), signal.SIGKILL, -signal.SIGKILL),
        (lambda: said("images/s"), signal.SIGINT, 130),
        (lambda: said("images/s"), signal.SIGTERM, 75),
    ]
    for place, (moment, number, code) in enumerate(cuts):
        before = len(text())
        process = begin("cut", f"loader.workers={int(place > 1)}")
        assert until(moment, process), output.read_text()
        os.killpg(process.pid, number)  # the reading workers hear it too, as they do of scancel, torchrun and Ctrl-C
        assert process.wait(60) == code, output.read_text()
    lines = output.read_text().splitlines()
    assert "stopped: interrupted; the same command goes on from the last checkpoint" in lines
    assert lines[-1] == "stopped: told to stop; everything is saved and the same command goes on"
    assert sum("going on from step" in line for line in lines) >= 2
    before = len(text())
    process = begin("cut")
    assert until(lambda: said("going on from step"), process), output.read_text()
    os.killpg(process.pid, signal.SIGSTOP)
    second = begin("cut")
    assert second.wait(60) == 2
    assert output.read_text().splitlines()[-1].startswith(f"error: another process is training in {run}; ")
    os.killpg(process.pid, signal.SIGCONT)
    assert process.wait(120) == 0, output.read_text()
    assert "Traceback" not in output.read_text()
    assert same(trained(run), trained(root / "whole"))
    assert (run / "summary.json").exists()
    last = {(e["split"], e["step"]): e for e in numbers(run)}
    assert len(last) == len(numbers(run)), "an event was logged twice"
    # a run that was told to stop logs at that step too, so the means of the losses around it are over other steps
    vals = [e for e in numbers(root / "whole") if e["split"] == "val"]
    assert [e for e in numbers(run) if e["split"] == "val"] == vals


def test_where_a_run_cannot_start_is_said_in_one_line(commands: tuple[Path, Starts]) -> None:
    """In a finished run's folder, in one of a run with other settings, and where nothing can be written."""
    root, begin = commands
    (root / "file").write_text("")
    before = {path: path.stat().st_mtime_ns for path in (root / "whole").rglob("*") if path.is_file()}
    finished, other = begin("whole"), begin("other", f"run_dir={root / 'whole'}", "optim.lr=0.7")
    nowhere = begin("nowhere", f"run_dir={root / 'file' / 'run'}")
    assert [process.wait(120) for process in (finished, other, nowhere)] == [0, 2, 2]
    said = {name: (root / f"{name}.txt").read_text().splitlines()[-1] for name in ("whole", "other", "nowhere")}
    assert "is finished: top1" in said["whole"]
    assert said["other"].startswith(f"error: {root / 'whole'} holds a run with other settings (optim.lr: 0.002")
    assert said["nowhere"] == f"error: run_dir={root / 'file' / 'run'} cannot be written: Not a directory"
    assert before == {path: path.stat().st_mtime_ns for path in (root / "whole").rglob("*") if path.is_file()}


def test_a_task_that_says_nothing_of_unreadable_samples_allows_none() -> None:
    assert loader_settings({"loader": {"workers": 0}, "data": {}}).max_bad == 0


READING = """
from tasks.classification.task import Classification

class Reading(Classification):
    def network(self, backbone, tdaf):
        network = super().network(backbone, tdaf)
        network.register_forward_pre_hook(lambda module, inputs: print("sum", inputs[0].sum().item()))
        return network
"""


def test_a_network_that_reads_a_value_is_trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It cannot run on the meta device, where mistakes in shapes are looked for and costs are counted."""
    (tmp_path / "reading.py").write_text(READING)
    monkeypatch.syspath_prepend(tmp_path)
    run = tmp_path / "run"
    command = tiny(tmp_path, "task._target_=reading.Reading", f"run_dir={run}")
    assert call(monkeypatch, command) == 0
    assert json.loads((run / "summary.json").read_text())["gflops"] > 0


def test_a_network_that_cannot_take_the_samples_is_refused_before_there_is_a_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "reading.py").write_text(READING.replace("inputs[0].sum().item()", "inputs[0].view(-1, 7, 5, 3)"))
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "reading", raising=False)
    run = tmp_path / "run"
    assert call(monkeypatch, tiny(tmp_path, "task._target_=reading.Reading", f"run_dir={run}")) == 2
    assert "the network cannot take training samples of 3x24x24" in capsys.readouterr().err and not run.exists()
