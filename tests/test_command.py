"""What a command does: its grammar, once, again, as one of a sweep, from a run folder alone and from an old one."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Literal

import pytest
import torch
from commands import ROOT, call, process, tiny

from scripts import evaluate
from tdaf.cli.script import Natural, Positive, Share, parse
from tdaf.cli.script import main as script_main
from tdaf.engine import checkpoint
from tdaf.errors import UserError


def test_a_sweep_runs_each_job_once(demo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    """Four folders; the second time all are skipped but one that a kill left behind, which goes on."""
    monkeypatch.chdir(tmp_path)
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
    plain = "checkpoint=c batch=2 link=true".split()
    assert parse(["--checkpoint", "c", "--batch=2", "--link"], large) == parse(plain, large)


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


OLD = ROOT / "tests" / "old" / "run"


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the old run, gone on with to its end, in a folder where its demo data are drawn."""
    root = tmp_path_factory.mktemp("old")
    shutil.copytree(OLD, root / "run")
    done = process([str(ROOT / "train.py"), "resume=run", "gpus=0"], root)
    assert done.returncode == 0, done.stderr
    assert "going on from step 23 of 160" in done.stdout
    return root / "run"


def test_an_old_run_goes_on_to_its_end(finished: Path) -> None:
    old, new = (checkpoint.load(folder / "checkpoints" / checkpoint.LAST) for folder in (OLD, finished))
    assert (old["step"], new["step"]) == (23, 160)
    assert new["ema"]["n_averaged"] == 160 and new["ema"].keys() == old["ema"].keys()
    assert not torch.equal(new["network"]["head.fc.weight"], old["network"]["head.fc.weight"])
    before, after = ((folder / "metrics.jsonl").read_text() for folder in (OLD, finished))
    assert after.startswith(before)
    assert json.loads((finished / "summary.json").read_text())["metric"]["best"] >= old["best"]["value"]


def test_an_old_run_is_evaluated(finished: Path) -> None:
    done = process([str(ROOT / "scripts" / "evaluate.py"), "checkpoint=run", "gpus=0"], finished.parent)
    assert done.returncode == 0, done.stderr
    best = checkpoint.load(finished / "checkpoints" / checkpoint.BEST)["metric"]
    assert json.loads((finished / "evaluation-1crop.json").read_text())["values"] == pytest.approx(best, rel=1e-5)


def test_the_best_checkpoint_of_an_old_run_is_evaluated_to_its_own_numbers(finished: Path) -> None:
    """The averaged network's, whose running statistics were the live network's then."""
    shutil.copytree(OLD, finished.parent / "untouched")
    done = process([str(ROOT / "scripts" / "evaluate.py"), "checkpoint=untouched", "gpus=0"], finished.parent)
    assert done.returncode == 0, done.stderr
    best = checkpoint.load(OLD / "checkpoints" / checkpoint.BEST)["metric"]
    numbers = json.loads((finished.parent / "untouched" / "evaluation-1crop.json").read_text())["values"]
    assert numbers == pytest.approx(best, rel=1e-5)
