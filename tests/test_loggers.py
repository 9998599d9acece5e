"""log=[...]: the same numbers to each logger, the same run when a run goes on, and no training stopped by one."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
from tiny_run import DrawingTask, trainer

from tdaf.engine import loggers
from tdaf.errors import UserError


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
    said = capsys.readouterr().out
    assert (
        made.step == 12 and said.count("log: csv failed and is left out from here on: ConnectionError: no route") == 1
    )
    assert "no route" in (tmp_path / "log.txt").read_text() and "at all" not in said


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
    assert all(
        text in content for text in (b"val/accuracy", b"train/loss", b"task/run", b"little", b"images_per_second")
    )
    assert any(path.suffix == ".png" for part in parts for path in part.rglob("*"))


def test_mlflow_goes_on_in_the_same_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mlflow import MlflowClient

    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    events = train_in_two_parts(tmp_path / "task" / "run", "mlflow")
    client = MlflowClient((tmp_path / "task" / "mlruns").as_uri())
    (found,) = client.search_runs([client.get_experiment_by_name("tdaf").experiment_id])
    assert (
        found.info.run_name == "task/run" and found.info.status == "FINISHED" and found.data.params["name"] == "little"
    )
    history = {entry.step: entry.value for entry in client.get_metric_history(found.info.run_id, "val/accuracy")}
    assert history == {event["step"]: event["accuracy"] for event in events if event["split"] == "val"}
    names = [entry.path for entry in client.list_artifacts(found.info.run_id)]
    assert sorted(names) == ["pictures", "summary.json"]
