"""The run folder: what a killed run left is cleared away, and a fault is the last line of its log. And log=[...]: the
same numbers to each logger, the same run when a run goes on, and no training stopped by one."""

import csv
import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
from tiny_run import DrawingTask, trainer

from tdaf import env
from tdaf.engine import loggers
from tdaf.engine.log import RunFolder
from tdaf.errors import Preempted, RunError, UserError


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


def train_in_two_parts(folder: Path, *log: str) -> list[dict[str, Any]]:
    """Cut at step 9 and gone on with to step 20; what metrics.jsonl has then."""
    for cut in (9, None):
        made = trainer(folder, task=DrawingTask(), max_steps=20, pictures=1, log=log)
        one = made._one_step

        def step(batches: Any, made: Any = made, one: Any = one, cut: int | None = cut) -> None:
            if made.step == cut:
                raise KeyboardInterrupt
            one(batches)

        made._one_step = step
        if cut is None:
            made.fit()
        else:
            with pytest.raises(KeyboardInterrupt):
                made.fit()
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_the_table_has_every_number_once(tmp_path: Path) -> None:
    events = train_in_two_parts(tmp_path, "csv")
    with open(tmp_path / "metrics.csv", newline="") as file:
        rows = [(int(r["step"]), r["split"], r["name"], float(r["value"])) for r in csv.DictReader(file)]
    assert rows == [
        (event["step"], event["split"], name, value)
        for event in events
        for name, value in event.items()
        if name not in ("step", "split", "epoch")
    ]
    assert not (tmp_path / "tensorboard").exists()


def test_a_logger_that_fails_is_told_of_once_and_stops_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    def fails(self: Any, split: str, step: int, *more: Any) -> None:
        if step > 4:
            raise ConnectionError("no route to host\nat all")

    monkeypatch.setattr(loggers.Table, "event", fails)
    made = trainer(tmp_path, log=["csv"])
    made.fit()
    assert made.step == 12 and capsys.readouterr().out.count("log: csv failed and is left out") == 1
    assert "no route" in (tmp_path / "log.txt").read_text()


def test_mistakes_are_told_before_anything_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="there is no wandbb; give some of tensorboard, csv, wandb, mlflow"):
        trainer(tmp_path, log=["wandbb"])
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"wandb is not installed: pip install -e '.\[wandb\]'"):
        trainer(tmp_path, log=["wandb"])


def test_wandb_offline_goes_on_in_the_same_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    train_in_two_parts(tmp_path / "task" / "run", "wandb")
    own = json.loads((tmp_path / "task" / "run" / "loggers.json").read_text())["wandb"]
    parts = list((tmp_path / "task" / "run" / "wandb").glob("offline-run-*"))
    written = [part / f"run-{own}.wandb" for part in parts]
    assert len({*parts}) >= 1 and all(path.is_file() for path in written)
    content = b"".join(path.read_bytes() for path in written)
    assert all(text in content for text in (b"val/accuracy", b"train/loss", b"task/run", b"images_per_second"))
    assert any(path.suffix == ".png" for part in parts for path in part.rglob("*"))


def test_mlflow_goes_on_in_the_same_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mlflow import MlflowClient

    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    events = train_in_two_parts(tmp_path / "task" / "run", "mlflow")
    client = MlflowClient((tmp_path / "task" / "mlruns").as_uri())
    (found,) = client.search_runs([client.get_experiment_by_name("tdaf").experiment_id])
    assert (found.info.run_name, found.info.status, found.data.params["name"]) == ("task/run", "FINISHED", "little")
    history = {entry.step: entry.value for entry in client.get_metric_history(found.info.run_id, "val/accuracy")}
    assert history == {event["step"]: event["accuracy"] for event in events if event["split"] == "val"}
    names = [entry.path for entry in client.list_artifacts(found.info.run_id)]
    assert sorted(names) == ["pictures", "summary.json"]
