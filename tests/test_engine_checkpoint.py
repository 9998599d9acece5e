"""Checkpoints: whole or not there, verified when read, and never more than tensors and plain data."""

import errno
import os
import random
import signal
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from commands import ROOT, process
from tiny_run import run, same, trainer

from tdaf.engine import checkpoint
from tdaf.errors import RunError, UserError


def state(value: float, size: int = 500) -> dict[str, Any]:
    about = {"list": [1, None, "x", 0.5, True]}
    return {"network": {"w": torch.full((size,), value)}, "step": int(value), "about": about}


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_what_was_saved_is_loaded_and_the_one_before_is_kept(tmp_path: Path) -> None:
    last, previous = tmp_path / "deep" / "last.pt", tmp_path / "deep" / "previous.pt"
    for value in (1.0, 2.0, 3.0):
        checkpoint.save(state(value), last, previous)
    assert same(checkpoint.load(last), state(3.0))
    assert same(checkpoint.load(previous), state(2.0))
    assert names(last.parent) == {"last.pt", "previous.pt"}


@pytest.mark.parametrize("fails", ["first", "second", "fsync"])
def test_a_refusing_disk_leaves_what_was_saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails: str) -> None:
    last, previous = tmp_path / "last.pt", tmp_path / "previous.pt"
    for value in (1.0, 2.0):
        checkpoint.save(state(value), last, previous)
    replace, calls = os.replace, []

    def refuse(*arguments: Any) -> None:
        calls.append(arguments)
        if len(calls) == (2 if fails == "second" else 1):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        replace(*arguments)

    monkeypatch.setattr(os, "fsync" if fails == "fsync" else "replace", refuse)
    with pytest.raises(RunError, match="cannot write the checkpoint .*last.pt: No space left on device"):
        checkpoint.save(state(3.0), last, previous)
    assert calls
    found, said = checkpoint.load_last(tmp_path)
    assert same(found, state(2.0)) and said == ""
    assert names(tmp_path) <= {"last.pt", "previous.pt"}


def _save_until(stop: int, folder: Path) -> bool:
    """Saves in a process that is killed before its `stop`-th change of the folder. Whether it came so far."""
    child = os.fork()
    if child == 0:
        count = 0

        def count_down(event: str, arguments: tuple[Any, ...]) -> None:
            nonlocal count
            if event in ("open", "os.rename", "os.remove") and str(folder) in str(arguments[0]):
                count += 1
                if count == stop:
                    os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(count_down)
        checkpoint.save(state(3.0), folder / "last.pt", folder / "previous.pt")
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL


def test_a_kill_at_any_step_of_saving_leaves_a_whole_checkpoint(tmp_path: Path) -> None:
    kills = 0
    for stop in range(1, 20):
        for value in (1.0, 2.0):
            checkpoint.save(state(value), tmp_path / "last.pt", tmp_path / "previous.pt")
        killed = _save_until(stop, tmp_path)
        found, _ = checkpoint.load_last(tmp_path)
        assert same(found, state(2.0)) or same(found, state(3.0))
        if not killed:
            assert same(found, state(3.0))
            break
        kills += 1
    assert kills >= 4, "open, two renames and the opening of the folder"


def test_a_damaged_last_falls_back_on_the_one_before(tmp_path: Path) -> None:
    last, previous = tmp_path / "last.pt", tmp_path / "previous.pt"
    for value in (1.0, 2.0):
        checkpoint.save(state(value), last, previous)
    last.write_bytes(last.read_bytes()[:-100])
    found, said = checkpoint.load_last(tmp_path)
    assert same(found, state(1.0))
    assert said == f"{last} is damaged or is not a checkpoint; falling back on the one before"
    previous.write_bytes(b"")
    with pytest.raises(UserError, match=r"no whole checkpoint is left in .*delete that run"):
        checkpoint.load_last(tmp_path)


def test_a_fresh_folder_has_no_checkpoint(tmp_path: Path) -> None:
    assert checkpoint.load_last(tmp_path / "none") == (None, "")


def test_a_flipped_bit_is_noticed_or_harmless(tmp_path: Path) -> None:
    path = tmp_path / "last.pt"
    checkpoint.save(state(2.0), path)
    whole, noticed = path.read_bytes(), 0
    draw = random.Random(0)
    tensor = whole.index(b"\x00\x00\x00\x40" * 10)
    for place in [tensor + 1, *(draw.randrange(len(whole)) for _ in range(150))]:
        damaged = bytearray(whole)
        damaged[place] ^= 1 << draw.randrange(8)
        path.write_bytes(damaged)
        try:
            assert same(checkpoint.load(path), state(2.0))
        except UserError:
            noticed += 1
        assert noticed, "a bit of a tensor was flipped unnoticed"
    assert noticed > 75


class Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("true",)


def test_what_is_no_checkpoint_is_refused_in_one_line(tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    with pytest.raises(UserError, match=f"^no checkpoint at {path}$"):
        checkpoint.load(path)
    torch.save({"network": Evil()}, path)
    with pytest.raises(UserError, match="^.*a.pt holds more than tensors and plain data, so it is not loaded$"):
        checkpoint.load(path)
    torch.save({"weights": 1}, path)
    with pytest.raises(UserError, match="^.*a.pt is not a checkpoint of tdaf: it has no entry 'network'$"):
        checkpoint.load(path)
    for junk in (b"", b"hello\n" * 100):
        path.write_bytes(junk)
        with pytest.raises(UserError, match="^.*a.pt is damaged or is not a checkpoint$"):
            checkpoint.load(path)


LIMITED = """
import resource, signal, sys
from pathlib import Path
import torch
sys.path.insert(0, "tests")
from tiny_run import run, trainer
from tdaf.cli.run import run_rank
folder = Path(sys.argv[1])
made = trainer(folder, max_steps=12, checkpoint_every=3, evaluate_every=0)

def job(config, device):
    train = made._one_step
    def step(batches):
        if made.step == 7:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
        train(batches)
    made._one_step = step
    run(made)

sys.exit(run_rank(job, {"loader": {"timeout": 60}, "trainer": {"hang_timeout": 0}}, 0))
"""


def test_a_disk_that_refuses_ends_the_run_in_one_line(tmp_path: Path) -> None:
    """A limit on the size of files stands for a full disk; what was saved before is sound."""
    done = process(["-c", LIMITED, str(tmp_path / "run")], ROOT)
    said = [line for line in done.stderr.splitlines() if "Warning" not in line]
    assert done.returncode == 1 and len(said) == 1 and said[0].startswith("error: cannot write "), said
    assert checkpoint.load_last(tmp_path / "run" / "checkpoints")[0]["step"] == 6
    assert not list(tmp_path.rglob(".*.pt.*"))
    run(trainer(tmp_path / "run", checkpoint_every=3, evaluate_every=0))  # with room again it goes on


def test_saving_interrupted_by_a_person_leaves_no_half_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*arguments: Any) -> None:
        os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        checkpoint.save(state(1.0), tmp_path / "last.pt")
    assert names(tmp_path) == set()
