"""What a command does: once, a second time, as one of a sweep, and from a run folder alone."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from commands import ROOT, call, process, tiny

from scripts import evaluate
from tdaf.cli.script import main as script_main
from tdaf.demo.prepare import prepare


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("demo")
    prepare("imagenet", root, 0, 40, 21, 32)
    return root


def test_a_sweep_runs_each_job_once(demo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    """Four folders; the second time all are skipped but one that a kill left behind, which goes on."""
    monkeypatch.chdir(tmp_path)
    torch.set_num_threads(1)
    words = tiny(demo, "flows=1,3", "anar=3,5", "trainer.checkpoint_every=1")
    assert call(monkeypatch, ["-m", *words]) == 0
    folders = sorted(path.parent for path in tmp_path.rglob("summary.json"))
    assert len(folders) == 4 and {folder.parent for folder in folders} == {tmp_path / "runs" / "imagenet"}
    capsys.readouterr()
    gone = folders[2]
    expected = torch.load(gone / "checkpoints/last.pt", weights_only=True)["network"]
    (gone / "summary.json").unlink()
    (gone / "checkpoints/previous.pt").replace(gone / "checkpoints/last.pt")
    times = {path: path.stat().st_mtime_ns for folder in folders if folder != gone for path in folder.rglob("*")}
    assert call(monkeypatch, [*words[::-1], "--multirun"]) == 0
    said = capsys.readouterr().out
    assert said.count(" is finished: top1 ") == 3 and said.count("going on from step") == 1
    assert {path: path.stat().st_mtime_ns for path in times} == times
    again = torch.load(gone / "checkpoints/last.pt", weights_only=True)["network"]
    assert all(torch.equal(again[name], value) for name, value in expected.items())


SWEEPER = """
from hydra.core.plugins import Plugins
from hydra.plugins.sweeper import Sweeper


class Drawing(Sweeper):
    \"\"\"Draws twice; keeps what the jobs gave it in a file.\"\"\"

    def __init__(self, times):
        self.times = times

    def setup(self, *, hydra_context, task_function, config):
        self.launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments):
        plain = [argument for argument in arguments if "interval" not in argument]
        jobs = [[*plain, f"optim.lr={rate}"] for rate in (0.001, 0.002)[: self.times]]
        results = [result.return_value for result in self.launcher.launch(jobs, initial_job_idx=0)]
        with open("drawn.txt", "w") as file:
            print(*results, file=file)
"""


def test_another_sweeper_draws_the_values_and_gets_the_metric(demo: Path, tmp_path: Path) -> None:
    """A sweeper that a user has installed, as Optuna's or Ax's are: a plug-in of Hydra's."""
    (tmp_path / "hydra_plugins").mkdir()
    (tmp_path / "hydra_plugins/drawing.py").write_text(SWEEPER)
    (tmp_path / "mine/hydra/sweeper").mkdir(parents=True)
    (tmp_path / "mine/hydra/sweeper/drawing.yaml").write_text("_target_: hydra_plugins.drawing.Drawing\ntimes: 2\n")
    words = [*tiny(demo), "optim.lr=interval(0.001,0.01)", "hydra/sweeper=drawing", "--config-dir", "mine"]
    done = process([str(ROOT / "train.py"), "-m", *words], tmp_path, PYTHONPATH=str(tmp_path))
    assert done.returncode == 0, done.stderr
    summaries = [json.loads(path.read_text()) for path in tmp_path.rglob("summary.json")]
    assert sorted(summary["config"]["optim"]["lr"] for summary in summaries) == [0.001, 0.002]
    found = {float(word) for word in (tmp_path / "drawn.txt").read_text().split()}
    assert found == {summary["metric"]["best"] for summary in summaries}


def test_one_failing_job_leaves_the_others(demo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs/3/checkpoints").mkdir(parents=True)
    for name in ("last.pt", "previous.pt"):
        (tmp_path / "runs/3/checkpoints" / name).write_text("damaged")
    assert call(monkeypatch, ["-m", *tiny(demo, "anar=2,3,5", "run_dir=runs/${anar}")]) == 2
    assert sorted(path.parent.name for path in tmp_path.rglob("summary.json")) == ["2", "5"]
    assert capsys.readouterr().err.count("error: ") == 1


def test_a_sweep_told_to_stop_starts_no_other_job(demo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for code, started in ((75, 1), (130, 1), (1, 3)):
        begun: list[dict] = []
        monkeypatch.setattr("tdaf.cli.run.start", lambda config, begun=begun, code=code: begun.append(config) or code)
        assert call(monkeypatch, ["-m", *tiny(demo, "anar=2,3,5")]) == code
        assert [config["anar"] for config in begun] == [2, 3, 5][:started]


def test_resume_and_evaluate_need_only_the_folder(demo: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    assert call(monkeypatch, tiny(demo, "run_dir=run", "trainer.checkpoint_every=1")) == 0
    summary = json.loads(Path("run/summary.json").read_text())
    Path("run/summary.json").unlink()
    Path("run/checkpoints/previous.pt").replace("run/checkpoints/last.pt")
    Path("run").rename("moved")
    assert call(monkeypatch, ["resume=moved", "loader.workers=0", "trainer.log_every=7"]) == 0
    again = json.loads(Path("moved/summary.json").read_text())
    assert "going on from step" in capsys.readouterr().out
    assert again["metrics"] == summary["metrics"] and again["best"] == summary["best"]

    def evaluated(*words: str) -> dict:
        assert call(monkeypatch, ["checkpoint=moved", *words], lambda: script_main(evaluate.evaluate, "")) == 0
        protocol = words[0].partition("=")[2] if words else "1crop"
        return json.loads(Path(f"moved/evaluation-{protocol}.json").read_text())

    one = evaluated()
    assert one["values"]["top1"] == summary["metric"]["best"] and one["samples"] == 21 and one["protocol"] == "1crop"
    ten = evaluated("protocol=10crop")
    assert ten["samples"] == 21 and ten["protocol"] == "10crop" and ten["values"]["loss"] != one["values"]["loss"]
