"""The run folder: what a killed run left is cleared away, and a fault is the last line of its log."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from tdaf import env
from tdaf.engine.log import RunFolder
from tdaf.errors import Preempted, RunError


def fill(folder: Path) -> None:
    with RunFolder(folder) as run:
        run.start(0, 0)
        for step in (3, 6, 9):
            run.event("train", step, step / 3, {"loss": 1.0 / step})
            run.event("val", step, step / 3, {"top1": float(step)})
        run.say("hello")


def kept(folder: Path) -> list[tuple[str, int]]:
    return [(e["split"], e["step"]) for e in map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())]


def test_going_on_drops_what_came_after(tmp_path: Path) -> None:
    fill(tmp_path)
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"step": 6, "split": "tr')
    (tmp_path / ".config.yaml.77").write_text("half")
    (tmp_path / "checkpoints" / ".last.pt.77").write_text("half")
    (tmp_path / ".lock").write_text("")
    with RunFolder(tmp_path) as run:
        run.start(6, 3)
        run.event("val", 6, 2.0, {"top1": 0.0})
    assert kept(tmp_path) == [("train", 3), ("val", 3), ("train", 6), ("val", 6)]
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"metrics.jsonl", "log.txt", "tensorboard", "checkpoints", ".lock"}
    assert not list((tmp_path / "checkpoints").iterdir())


def test_a_quiet_folder_writes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with RunFolder(tmp_path / "run", quiet=True) as run:
        run.start(0, 0)
        run.say("hello")
        run.event("train", 1, 0.1, {"loss": 1.0})
        run.write("summary.json", "{}")
    assert not (tmp_path / "run").exists() and capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (RunError("the disk is full"), "ended by RunError: the disk is full"),
        (Preempted(), "ended by Preempted: told to stop; everything is saved and the same command goes on"),
        (KeyboardInterrupt(), "ended by KeyboardInterrupt"),
    ],
)
def test_what_ended_a_run_is_the_last_line_of_its_log(tmp_path: Path, error: BaseException, line: str) -> None:
    with pytest.raises(type(error)), RunFolder(tmp_path) as run:
        run.start(0, 0)
        run.say("hello")
        raise error
    lines = (tmp_path / "log.txt").read_text().splitlines()
    assert lines[0].endswith(" hello") and lines[-1][20:] == line


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = RunFolder(tmp_path)
    run.write("config.yaml", "first")

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(RunError, match=r"^.*config\.yaml cannot be written: No space left on device$"):
        run.write("config.yaml", "second")
    assert (tmp_path / "config.yaml").read_text() == "first"
    assert [path.name for path in tmp_path.iterdir()] == ["config.yaml"]


def test_the_commit_is_of_tdafs_own_checkout_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def git(*words: str) -> None:
        subprocess.run(["git", "-c", "user.name=a", "-c", "user.email=a@b", *words], cwd=tmp_path, check=True)

    git("init", "-q")
    (tmp_path / "tdaf").mkdir()
    (tmp_path / "tdaf" / "__init__.py").write_text("")
    git("add", "-A")
    git("commit", "-qm", "one")
    installed = tmp_path / "venv" / "site-packages" / "tdaf"
    for package, is_ours in ((tmp_path / "tdaf", True), (installed, False)):
        package.mkdir(parents=True, exist_ok=True)
        monkeypatch.setattr(env, "ROOT", package.parent)
        assert (env.commit() is not None) == is_ours
    (tmp_path / "tdaf" / "__init__.py").write_text("changed")
    monkeypatch.setattr(env, "ROOT", tmp_path)
    assert env.commit().endswith("+")
