"""A night on a real machine: limits of the system, outputs that go away, Ctrl-C at any moment, files of strangers."""

import copy
import errno
import json
import os
import re
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from commands import ROOT, call, tiny
from tiny_run import Pictures, until

from scripts import evaluate, soak
from tdaf.cli.script import main as script_main
from tdaf.engine import limits
from tdaf.engine.data import EvaluationOrder, Loader
from tdaf.engine.log import RunFolder
from tdaf.errors import RunError, UserError

ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run's folder; its demo data lie beside it."""
    folder = tmp_path_factory.mktemp("night") / "run"
    with pytest.MonkeyPatch.context() as patch:
        assert call(patch, tiny(folder.parent, f"run_dir={folder}")) == 0
    return folder


def code_of(words: list[str], folder: Path, **options: Any) -> subprocess.CompletedProcess[str]:
    how = {"cwd": folder, "env": ENVIRONMENT, "text": True, "timeout": 120, "stderr": subprocess.PIPE}
    return subprocess.run([sys.executable, *words], **{**how, **options})


# Outputs that go away


@pytest.mark.parametrize("output", ["closed", "full", "none"])
def test_a_run_goes_on_without_an_output(output: str, finished: Path, tmp_path: Path) -> None:
    command = [str(ROOT / "train.py"), *tiny(finished.parent, f"run_dir={tmp_path / 'run'}", "trainer.log_every=1")]
    if output == "closed":
        command.append("trainer.max_steps=20")
        process = subprocess.Popen(
            [sys.executable, *command], cwd=tmp_path, env=ENVIRONMENT, stdout=-1, stderr=subprocess.STDOUT
        )
        assert process.stdout.readline().startswith(b"imagenet in")
        process.stdout.close()
        assert process.wait(120) == 0
    elif output == "full":
        with open("/dev/full", "w") as full:
            assert code_of(command, tmp_path, stdout=full, stderr=full).returncode == 0
    else:
        shell = ["-c", 'exec "$@" >&- 2>&-', "sh", sys.executable, *command]
        assert subprocess.run(["sh", *shell], cwd=tmp_path, env=ENVIRONMENT, timeout=120).returncode == 0
    log = (tmp_path / "run" / "log.txt").read_text()
    assert "finished: top1" in log and "ended by" not in log
    assert log.count("standard output went away (") == (output != "none")
    assert (tmp_path / "run" / "summary.json").exists()


@pytest.mark.parametrize(
    ("command", "closed", "full"), [("train.py", 0, 0), ("scripts/predict.py", 141, 1), ("scripts/table.py", 141, 1)]
)
def test_commands_end_quietly_when_nobody_listens(command: str, closed: int, full: int, tmp_path: Path) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    done = code_of([str(ROOT / command), "--help"], tmp_path, stdout=writer)
    os.close(writer)
    assert (done.returncode, done.stderr) == (closed, "")
    with open("/dev/full", "w") as device:
        done = code_of([str(ROOT / command), "--help"], tmp_path, stdout=device)
    assert done.returncode == full and done.stderr.count("\n") == (full == 1) and "Traceback" not in done.stderr


INTERRUPTING = """
import os, signal, sys
class Finder:
    def find_spec(name, path=None, target=None):
        if name == os.environ["INTERRUPT"]:
            os.kill(os.getpid(), signal.SIGINT)
sys.meta_path.insert(0, Finder)
"""


@pytest.mark.parametrize(
    ("command", "module"),
    [("train.py", name) for name in ("tdaf.cli.main", "torch.nn", "tdaf.model.flows")]
    + [("scripts/evaluate.py", "torch.utils")],
)
def test_ctrl_c_while_a_module_is_imported_is_one_line(
    command: str, module: str, finished: Path, tmp_path: Path
) -> None:
    (tmp_path / "sitecustomize.py").write_text(INTERRUPTING)
    words = tiny(finished.parent, f"run_dir={tmp_path / 'run'}") if "train" in command else [f"checkpoint={finished}"]
    environment = {**ENVIRONMENT, "PYTHONPATH": f"{tmp_path}:{ROOT}", "INTERRUPT": module}
    done = code_of([str(ROOT / command), *words], tmp_path, env=environment)
    assert (done.returncode, done.stderr) == (130, "stopped: interrupted\n")


# Limits of the system

READING = """
import sys, torch
from tiny_run import Pictures
from tdaf.engine.data import EvaluationOrder, Loader
from tdaf.errors import RunError

class Large(Pictures):
    def __getitem__(self, index):
        return {"input": torch.zeros(3, int(sys.argv[1]), 100), "label": 0}

loader = Loader(Large(40), EvaluationOrder(40, 4), seed=0, workers=2, timeout=20)
try:
    print(sum(len(batch["index"]) for batch in loader))
except RunError as error:
    print(f"error: {error}")
"""


@pytest.mark.parametrize(
    ("soft", "hard", "said"),
    [
        (32, 1024, "ulimit -n is 32, .* it is 1024 for this run"),
        (32, 32, "ulimit -n is 32, .* the run reads by itself"),
        (60, 60, "ulimit -n is 60, .* tensors pass through named files"),
    ],
)
def test_few_open_files_are_made_to_do(soft: int, hard: int, said: str, tmp_path: Path) -> None:
    (tmp_path / "reading.py").write_text(READING)
    done = code_of(
        ["reading.py", "10"],
        tmp_path,
        stdout=-1,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard)),
    )
    assert done.returncode == 0 and done.stdout.strip() == "40", done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert re.search(said, done.stderr), done.stderr


@pytest.mark.parametrize(("room", "height", "said"), [(8, 10, "40"), (16, 10, "40"), (200, 400, "error: reading: ")])
def test_shared_memory_without_room_is_named(room: int, height: int, said: str, tmp_path: Path) -> None:
    """Of a room in which no worker can start, the run reads by itself; one that a batch fills ends it."""
    (tmp_path / "reading.py").write_text(READING)
    small = f"mount -t tmpfs -o size={room}k tmpfs /dev/shm"
    if subprocess.run(["unshare", "-m", "sh", "-c", small], capture_output=True).returncode:
        pytest.skip("needs the right to mount")
    shell = ["unshare", "-m", "sh", "-c", f"{small}; exec {sys.executable} reading.py {height}"]
    done = subprocess.run(shell, cwd=tmp_path, env=ENVIRONMENT, capture_output=True, text=True, timeout=120)
    assert done.stdout.startswith(said) and len(done.stdout.splitlines()) == 1, done.stderr
    assert "shared memory is full (df -h /dev/shm)" in done.stdout + done.stderr
    assert "Traceback" not in done.stderr and "Error" not in done.stderr


class Refused(Pictures):
    """Of which one sample meets a limit."""

    def __init__(self, error: Exception) -> None:
        super().__init__(9)
        self.error = error

    def __getitem__(self, index: int) -> dict[str, Any]:
        if index == 5:
            raise self.error
        return super().__getitem__(index)


@pytest.mark.parametrize(
    ("error", "said", "workers"),
    [
        (OSError(errno.EMFILE, "Too many open files", "a.jpg"), "raise ulimit -n, or give fewer workers", 1),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), "no memory is left .*fewer workers", 0),
        (MemoryError(), "no memory is left .*fewer workers", 1),
        (OSError(errno.EAGAIN, "Resource temporarily unavailable"), "ulimit -u, .*fewer workers", 0),
        (PermissionError(errno.EACCES, "Permission denied", "a.jpg"), r"picture-5\.jpg: a\.jpg: Permission", 1),
    ],
)
def test_a_limit_that_reading_meets_is_named(error: Exception, said: str, workers: int) -> None:
    with pytest.raises(RunError, match=said) as raised:
        list(Loader(Refused(error), EvaluationOrder(9, 2), seed=0, workers=workers))
    assert "\n" not in str(raised.value)


def test_fewer_workers_read_where_no_more_can_be_started(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fork, forks = os.fork, []

    def refusing() -> int:
        forks.append(1)
        if len(forks) in (3, 5):  # of four workers the third, of two the second
            raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
        return fork()

    limits.say_once.cache_clear()
    monkeypatch.setattr(os, "fork", refusing)
    loader = Loader(Pictures(9), EvaluationOrder(9, 2), seed=0, workers=4)
    assert sum(len(batch["index"]) for batch in loader) == 9
    said = capsys.readouterr().err.splitlines()
    assert [line.rpartition(": ")[2] for line in said] == ["2 workers read now, not 4", "1 workers read now, not 2"]
    assert all("ulimit -u" in line for line in said)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            "DataLoader worker (pid 7) is killed by signal: Killed. ",
            "died .killed, most likely by the system: no memory is left",
        ),
        ("DataLoader worker (pid 7) is killed by signal: Segmentation fault. ", "died .Segmentation fault.*workers=0"),
        ("DataLoader worker (pid 7) is killed by signal: Bus error. It is", "shared memory is full .*--shm-size"),
        ("DataLoader worker (pid(s) 7) exited unexpectedly", "a loader worker died"),
    ],
)
def test_why_a_worker_died_is_said(text: str, said: str) -> None:
    loader = Loader(Pictures(9), EvaluationOrder(9, 2), seed=0)
    assert re.search(said, str(loader.explained(RuntimeError(text))))
    other = RuntimeError("Cannot allocate memory of a network's")
    assert loader.explained(other) is other


def test_a_missing_compiler_is_said_before_the_run(finished: Path, tmp_path: Path) -> None:
    command = tiny(finished.parent, f"run_dir={tmp_path / 'run'}", "trainer.compile=true")
    environment = {**ENVIRONMENT, "CXX": "none", "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "cache")}
    done = code_of([str(ROOT / "train.py"), *command], tmp_path, env=environment)
    assert done.returncode == 2 and done.stderr.splitlines()[-1].startswith("error: compile=true: this machine cannot")
    assert "Traceback" not in done.stderr and not (tmp_path / "run").exists()


def test_a_folder_that_may_not_be_read_is_one_line(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As root, whom nothing is forbidden, the refusal has to be made."""

    def refused(self: object, split: str) -> list[str]:
        raise PermissionError(errno.EACCES, "Permission denied", split)

    monkeypatch.setattr("tasks.classification.folder.ImageFolder._class_folders", refused)
    assert call(monkeypatch, tiny(finished.parent, f"run_dir={tmp_path / 'run'}")) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and said.endswith(": Permission denied\n"), said


# Ranks whose launcher is gone

LAUNCHER = """
from tdaf.engine.spawn import spawn
def work():
    import time, torch, torchvision
    time.sleep(600)
    return 0
if __name__ == "__main__":
    spawn(work, (), 2)
"""


@pytest.mark.parametrize("moment", [0.05, 0.4, 1.5])
def test_no_rank_outlives_a_launcher_that_is_killed(moment: float, tmp_path: Path) -> None:
    (tmp_path / "launcher.py").write_text(LAUNCHER)
    mark = f"NIGHT={tmp_path}".encode()

    def alive() -> list[str]:
        found = []
        for path in Path("/proc").glob("[0-9]*"):
            try:
                if mark in (path / "environ").read_bytes() and (path / "cmdline").read_bytes():
                    found.append(path.name)
            except OSError:
                continue
        return found

    environment = {**ENVIRONMENT, "NIGHT": str(tmp_path)}
    launcher = subprocess.Popen([sys.executable, "launcher.py"], cwd=tmp_path, env=environment, stderr=-3)
    assert until(lambda: len(alive()) >= 3, launcher)  # itself, multiprocessing's tracker, ranks
    time.sleep(moment)
    os.kill(launcher.pid, signal.SIGKILL)
    launcher.wait()
    assert until(lambda: not alive(), seconds=5), alive()


# Finished runs


def test_a_finished_run_is_lengthened(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    longer = tiny(finished.parent, "trainer.max_steps=3")
    assert call(monkeypatch, [*longer, f"run_dir={finished}"]) == 2
    said = capsys.readouterr().err
    assert "trainer.max_steps: 2 there, 3 here" in said and f"pretrained={finished}" in said
    assert call(monkeypatch, [*longer, f"run_dir={tmp_path / 'run'}", f"pretrained={finished}"]) == 0
    log = (tmp_path / "run" / "log.txt").read_text()
    assert f"begins with the weights of {finished}" in log
    loaded = re.search(r"loaded (\d+) of (\d+) tensors", log)
    assert loaded and loaded[1] == loaded[2]


def test_an_evaluation_that_cannot_be_kept_is_printed(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write = RunFolder.write

    def refused(self: RunFolder, name: str, text: str) -> None:
        if self.folder == finished:
            raise RunError(f"cannot write {self.folder / name}: Read-only file system")
        write(self, name, text)

    monkeypatch.setattr(RunFolder, "write", refused)
    command, where = [f"checkpoint={finished}"], tmp_path / "deep" / "out"
    assert call(monkeypatch, command, lambda: script_main(evaluate.evaluate, "")) == 0
    said = capsys.readouterr()
    assert "top1" in said.out and "Read-only file system; out=FOLDER says where else" in said.err
    assert call(monkeypatch, [*command, f"out={where}"], lambda: script_main(evaluate.evaluate, "")) == 0
    assert json.loads((where / "evaluation-1crop.json").read_text())["samples"] == 21


@pytest.mark.parametrize("summary", ["[]", '{"metric": 3}', '{"metric": {"name": "top1"}}', "{", '"metric"'])
def test_a_summary_of_another_shape_is_none(summary: str, tmp_path: Path) -> None:
    (tmp_path / "summary.json").write_text(summary)
    assert RunFolder(tmp_path).finished() is None


# Files of strangers


def copied(run: Path, folder: Path, settings: dict) -> Path:
    """The run's folder and best checkpoint with other settings in both."""
    state = torch.load(run / "checkpoints" / "best.pt", weights_only=True)
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(settings))
    torch.save({**state, "about": {**state["about"], "config": settings}}, folder / "checkpoints" / "best.pt")
    return folder


NODES = ("optim.factory", "schedule", "schedule.decay", "demo", "loader", "trainer", "task", "backbone.attention")


@pytest.mark.parametrize("command", ["evaluate", "resume"])  # the other scripts open a checkpoint as evaluate does
def test_no_command_runs_what_a_file_names(
    command: str, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = yaml.safe_load((finished / "config.yaml").read_text())
    mark = tmp_path / "mark"
    bombs = (
        {"_target_": "os.mkdir", "path": str(mark)},
        {"_target_": "torch.optim.swa_utils.torch.save", "obj": 1, "f": str(mark)},
        {"_target_": "torch.optim.swa_utils.update_bn", "loader": [], "model": 1},
        {"_target_": "tdaf.model.pretrained.torchvision_weights", "name": "ResNet50_Weights.IMAGENET1K_V1"},
    )
    for place, node in enumerate(NODES):
        config = copy.deepcopy(settings)
        *parents, last = node.split(".")
        inside = config
        for name in parents:
            inside = inside[name]
        before = inside.get(last)
        inside[last] = {**(before if isinstance(before, dict) else {}), **bombs[place % len(bombs)]}
        folder = copied(finished, tmp_path / f"{place}", config)
        if command == "resume":
            code = call(monkeypatch, [f"resume={folder}"])
        else:
            code = call(monkeypatch, [f"checkpoint={folder}"], lambda: script_main(evaluate.evaluate, ""))
        said = capsys.readouterr().err
        assert code == 2 and said.count("\n") == 1 and "asks to run" in said, (node, said)
        assert not mark.exists()


def test_a_file_does_not_choose_where_demo_data_are_drawn(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = yaml.safe_load((finished / "config.yaml").read_text())
    elsewhere, here = tmp_path / "elsewhere", tmp_path / "here"
    settings["demo"]["root"] = str(elsewhere)
    folder = copied(finished, tmp_path / "run", settings)
    here.mkdir()
    monkeypatch.chdir(here)
    assert call(monkeypatch, [f"resume={folder}"]) == 2
    assert f"asks to draw demo data in {elsewhere}" in capsys.readouterr().err
    assert call(monkeypatch, [f"checkpoint={folder}"], lambda: script_main(evaluate.evaluate, "")) == 0
    assert (here / "data" / "demo").is_dir() and not elsewhere.exists()


def test_errors_of_files_have_two_kinds() -> None:
    from tdaf.errors import explain_file

    assert isinstance(explain_file(PermissionError(errno.EACCES, "Permission denied", "a")), UserError)
    assert isinstance(explain_file(OSError(errno.EIO, "Input/output error", "a")), RunError)
    assert explain_file(OSError(errno.EPIPE, "Broken pipe")) is None


def test_soak_tells_what_differs(finished: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="tasks=imagnet: there is no such task; choose from cifar10"):
        soak.soak(tasks=["imagnet"])
    state = torch.load(finished / "checkpoints" / "last.pt", weights_only=True)
    name = next(iter(state["network"]))
    state["network"][name] = torch.nextafter(state["network"][name], torch.tensor(torch.inf))
    (tmp_path / "checkpoints").mkdir()
    torch.save(state, tmp_path / "checkpoints" / "last.pt")
    assert soak._differences(finished, finished) == []
    assert soak._differences(finished, tmp_path) == ["network"]
