"""Which runs are a row's, what several seeds say, the running of what is missing, and the table of a folder."""

from __future__ import annotations

import json
import os
import shutil
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from commands import ROOT, TINY, call, tiny

from tdaf.cli.compose import Config, compose, to_yaml
from tdaf.demo.prepare import prepare
from tdaf.errors import UserError

sys.path.insert(0, str(ROOT / "scripts"))

from tables import found  # noqa: E402
from tables.differing import differing, order  # noqa: E402
from tables.folder import of_folder  # noqa: E402
from tables.rows import Row, Table, overrides  # noqa: E402
from tables.running import Row as Wanted  # noqa: E402
from tables.running import run  # noqa: E402

RUNS = [Path("runs")]
TABLE = Table(
    key="little",
    title="A little table",
    groups="",
    input=[3, 24, 24],
    classes=10,
    settings=["task=imagenet"],
    evaluate=["protocol=10crop"],
    samples=40,
    rows=[
        Row(name="plain", settings=["backbone=res50", "flows=1"]),
        Row(name="plain, deeper", settings=["backbone=res101", "flows=1"]),  # in miniature the same run
        Row(name="TDAF", settings=["backbone=res50", "anar=2", "flows=2"]),
    ],
)


def jobs(demo: Path, *more: str, evaluate: list[str] = TABLE.evaluate) -> list[Wanted]:
    words = [*tiny(demo, "trainer.checkpoint_every=1"), *more]
    return [Wanted(row.name, overrides(TABLE, row, words), evaluate) for row in TABLE.rows]


def times(folder: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    root = tmp_path_factory.mktemp("demo")
    prepare("imagenet", root, 0, 40, 21, 32)
    return root


@pytest.fixture(scope="module")
def first(demo: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which the little table was run once."""
    place = tmp_path_factory.mktemp("first")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        assert run(jobs(demo), RUNS) == 0
    return place


@pytest.fixture
def again(first: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it, to work in."""
    shutil.copytree(first / "runs", tmp_path / "runs")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_rows_of_a_table_run_and_are_found(demo: Path, again: Path) -> None:
    """Three rows, of which two are one run; each number is of the asked evaluation."""
    summaries = sorted(again.rglob("summary.json"))
    assert len(summaries) == 2
    for name, words, _ in jobs(demo):
        (own,) = found.finished([compose(words)], TABLE.evaluate, RUNS)
        said = json.loads((own.folder / "evaluation-10crop.json").read_text())
        assert (own.values, own.samples, own.protocol, own.seed) == (said["values"], 21, "10crop", 0), name
        (last,) = found.finished([compose(words)], [], RUNS)
        assert last.values == json.loads((own.folder / "summary.json").read_text())["metrics"]
        assert last.protocol == "1crop" and last.values["loss"] != own.values["loss"]
    assert found.finished([compose(jobs(demo, "eta=0.3")[2][1])], [], RUNS) == []


def test_a_second_call_trains_nothing(demo: Path, again: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = times(again)
    assert run(jobs(demo, "loader.prefetch=3"), RUNS) == 0
    assert times(again) == before
    lines = capsys.readouterr().out.splitlines()
    assert [line.partition(": finished in runs/")[0] for line in lines] == ["plain, plain, deeper", "TDAF"]


def test_what_is_unfinished_goes_on_and_what_lacks_its_evaluation_gets_it(
    demo: Path, again: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plain, gated = (found.finished([compose(words)], [], RUNS)[0].folder for _, words, _ in jobs(demo)[1:])
    expected = {path: json.loads(path.read_text())["values"] for path in again.rglob("evaluation-*.json")}
    for path in expected:
        path.unlink()
    (gated / "summary.json").unlink()
    (gated / "checkpoints/previous.pt").replace(gated / "checkpoints/last.pt")
    plain.rename("runs/moved")  # where its settings would not put it
    assert run(jobs(demo), RUNS) == 0
    said = capsys.readouterr().out
    assert said.count("going on from step") == 1 and said.count("runs/moved is finished") == 1
    assert "job 1 of 2: plain, plain, deeper: " in said and "job 2 of 2: TDAF: " in said
    made = (folder / "evaluation-10crop.json" for folder in (Path("runs/moved"), gated))
    values = [json.loads(path.read_text())["values"] for path in made]
    assert sorted(map(str, values)) == sorted(map(str, expected.values()))
    assert (gated / "summary.json").exists() and len(list(again.rglob("summary.json"))) == 2


def test_rows_of_two_tables_are_one_run_with_an_evaluation_for_each(
    demo: Path, again: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    evaluated: list[list[str]] = []
    monkeypatch.setattr("tdaf.cli.evaluation.evaluate_checkpoint", lambda path, words, *_: evaluated.append(words) or 0)
    first, other = jobs(demo), jobs(demo, evaluate=["protocol=1crop"])
    (own,) = found.finished([compose(first[2].settings)], TABLE.evaluate, RUNS)
    (own.folder / "evaluation-10crop.json").unlink()
    assert run([first[2], other[2]._replace(name="other"), other[0]], RUNS) == 0
    assert "job 1 of 2: TDAF, other: " in capsys.readouterr().out
    assert [words[0] for words in evaluated] == ["task.protocol=10crop", "task.protocol=1crop", "task.protocol=1crop"]
    with pytest.raises(UserError, match="protocol=5crop: this data set has"):  # the last of them ends it before the first
        run([first[1], jobs(demo, "eta=0.1", evaluate=["protocol=5crop"])[2]], RUNS)


def test_an_evaluation_with_other_settings_does_not_count(
    demo: Path, again: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = compose(jobs(demo)[2].settings)
    (own,) = found.finished([config], TABLE.evaluate, RUNS)
    path = own.folder / "evaluation-10crop.json"
    said = json.loads(path.read_text())
    assert said["settings"][0] == "task.protocol=10crop" and said["folded"] is False
    path.write_text(json.dumps({**said, "settings": ["task.protocol=10crop", "task.val_transforms.10crop.size=20"]}))
    assert found.finished([config], TABLE.evaluate, RUNS) == []
    expected = f"warning: {path} was made with task.val_transforms.10crop.size=20; it is left out\n"
    assert capsys.readouterr().err == expected
    path.write_text(json.dumps({**said, "settings": None}))
    assert found.finished([config], TABLE.evaluate, RUNS) == []
    assert capsys.readouterr().err == f"warning: {path} is not of an evaluation; it is left out\n"
    path.write_text(json.dumps({**said, "settings": ["data.root=/there", "loader.workers=1", "gpus=0"]}))
    assert len(found.finished([config], TABLE.evaluate, RUNS)) == 1


def test_one_failing_row_leaves_the_others(demo: Path, again: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plain, gated = (found.finished([compose(words)], [], RUNS)[0].folder for _, words, _ in jobs(demo)[1:])
    (gated / "summary.json").unlink()
    for name in ("last.pt", "previous.pt"):
        (gated / "checkpoints" / name).write_text("damaged")
    (plain / "evaluation-10crop.json").unlink()
    assert run(jobs(demo)[::-1], RUNS) == 2
    errors = capsys.readouterr().err.splitlines()
    assert errors[0].startswith("error: ") and errors[1:] == ["failed with exit code 2: TDAF"]
    assert (plain / "evaluation-10crop.json").exists()


@pytest.mark.parametrize(
    ("more", "evaluate", "words"),
    [
        ([], ["protocol=5crop"], "protocol=5crop: this data set has"),
        ([], ["protcol=10crop"], "there is no setting task.protcol; did you mean task.protocol?"),
        (["anar=4"], [], "anar=4: give 2, 3, 5 or 7"),
        (["tdaf.gate_init=x"], [], "gate_init"),
        (["run_dir=one"], [], "run_dir=one is the folder of 2 jobs"),
        (["hydra/launcher=slurm"], [], "Could not find 'hydra/launcher/slurm'"),
    ],
)
def test_a_mistake_costs_nothing(
    more: list[str], evaluate: list[str], words: str, demo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=words.replace("?", r"\?")):
        run(jobs(demo, *more, evaluate=evaluate), RUNS)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("where", "answer", "ended", "started"),
    [
        ("tdaf.cli.run.start", 75, 75, 1),
        ("tdaf.cli.evaluation.evaluate_checkpoint", 130, 130, 1),
        ("tdaf.cli.evaluation.evaluate_checkpoint", UserError("its checkpoint is damaged"), 2, 2),
    ],
)
def test_told_to_stop_no_other_row_starts_and_after_a_fault_it_does(
    where: str, answer: Any, ended: int, started: int, demo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun: list[Any] = []

    def begin(*given: Any) -> int:
        begun.append(given)
        if isinstance(answer, UserError):
            raise answer
        return answer

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("tdaf.cli.rehearsal.settings", lambda config: None)
    monkeypatch.setattr("tdaf.cli.run.start", lambda config: 0)
    monkeypatch.setattr(where, begin)
    try:
        code = run(jobs(demo), RUNS)
    except SystemExit as told:
        code = told.code
    assert (code, len(begun)) == (ended, started)


Pretend = Callable[..., Path]


@pytest.fixture
def pretend(tmp_path: Path) -> Pretend:
    """A function that writes the folder of a finished run which never ran."""

    def write(name: str, settings: str, metrics: dict[str, float], **summary: Any) -> Path:
        config: Config = compose(settings.split())
        folder = tmp_path / "runs" / name
        folder.mkdir(parents=True)
        (folder / "config.yaml").write_text(to_yaml(config))
        said = {
            "metric": {"name": next(iter(metrics))},
            "metrics": metrics,
            "protocol": "1crop",
            "samples": 50000,
            "params": 25557032,
            "gflops": 4.089,
            "seconds": 100.4,
            "config": config,
        }
        (folder / "summary.json").write_text(json.dumps({**said, **summary}))
        return folder

    return write


def test_what_tells_runs_apart(pretend: Pretend, tmp_path: Path) -> None:
    """The seed, the place of the data and what is volatile do not; every other setting does."""
    mine = "task=imagenet backbone=res50 flows=1"
    pretend("2", f"{mine} seed=2 data.root=/there gpus=0 loader.workers=7", {"top1": 76.0})
    pretend("1", f"{mine} seed=1 run_dir=/somewhere trainer.log_every=9", {"top1": 77.0})
    pretend("other", f"{mine} optim.lr=0.2", {"top1": 1.0})
    pretend("recipe", f"{mine} recipe=modern", {"top1": 2.0})
    rows = found.finished([compose([*mine.split(), "seed=5"])], [], [tmp_path])
    assert [(row.seed, row.values, row.samples) for row in rows] == [
        (1, {"top1": 77.0}, 50000),
        (2, {"top1": 76.0}, 50000),
    ]
    drawn, own = "task=imagenet recipe=demo", "task=imagenet recipe=demo data.root=/pictures"
    pretend("drawn", f"{drawn} demo.root=elsewhere", {"top1": 3.0})
    pretend("own", own, {"top1": 4.0})
    for settings, top1 in ((drawn, 3.0), (own.replace("pictures", "moved"), 4.0)):
        (row,) = found.finished([compose(settings.split())], [], [tmp_path])
        assert row.values == {"top1": top1}


def test_of_two_runs_of_a_seed_the_newest_evaluated_one_counts(pretend: Pretend, tmp_path: Path) -> None:
    folders = [pretend(name, "task=imagenet", {"top1": value}) for name, value in (("b", 1.0), ("a", 2.0), ("c", 3.0))]
    for place, folder in enumerate(folders):
        os.utime(folder / "summary.json", (1000 + place, 1000 + place))
    config = compose(["task=imagenet"])
    assert [row.values["top1"] for row in found.finished([config], [], [tmp_path, tmp_path / "runs"])] == [3.0]
    said = {"values": {"top1": 5.0}, "samples": 7, "protocol": "10crop"}
    (folders[1] / "evaluation-10crop.json").write_text(json.dumps(said))
    (row,) = found.finished([config], ["protocol=10crop"], [tmp_path])
    assert (row.values["top1"], row.samples, row.protocol, row.folder) == (5.0, 7, "10crop", folders[1])
    assert found.finished([config], ["protocol=1crop"], [tmp_path]) == []


def test_mean_and_spread() -> None:
    assert found.mean_and_spread([]) == "-"
    assert found.mean_and_spread([78.44]) == "78.4"
    assert found.mean_and_spread([93.615], 2) in ("93.61", "93.62")
    values = [78.1, 78.4, 78.9, 78.2]
    text = f"{statistics.mean(values):.3f} ± {statistics.stdev(values):.3f} (n=4)"
    assert found.mean_and_spread(values, 3) == text == "78.400 ± 0.356 (n=4)"
    assert found.mean_and_spread([1.0, float("nan")]) == "nan ± nan (n=2)"


def test_runs_that_were_counted_otherwise_are_no_part_of_a_mean() -> None:
    def one(seed: int, samples: int, protocol: str = "1crop") -> found.Finished:
        return found.Finished(Path(f"runs/{seed}"), seed, {"top1": float(seed)}, samples, protocol)

    alike = [one(0, 50000), one(1, 50000)]
    assert found.comparable(alike) == (alike, "")
    same, note = found.comparable([one(2, 49999), *alike, one(3, 50000, "10crop")])
    assert same == alike
    assert note == (
        "not in the mean, which is of 1crop on 50000 samples: "
        "runs/2 (1crop, 49999 samples), runs/3 (10crop, 50000 samples)"
    )


def test_damaged_and_foreign_files_are_left_out_with_a_line(
    pretend: Pretend, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good = pretend("good", "task=imagenet", {"top1": 70.0})
    said = json.loads((good / "summary.json").read_text())
    texts = {
        "cut": json.dumps(said)[:100],
        "empty": "",
        "list": "[1, 2]",
        "another": json.dumps({"accuracy": 1.0}),
        "words": json.dumps({**said, "metrics": {"top1": "high"}}),
        "little": json.dumps({**said, "config": {"lr": 1}}),
    }
    for name, text in texts.items():
        (tmp_path / "runs" / name).mkdir()
        (tmp_path / "runs" / name / "summary.json").write_text(text)
    (tmp_path / "runs/bytes").mkdir()
    (tmp_path / "runs/bytes/summary.json").write_bytes(b"\xff\xfe\x00")
    (good / "evaluation-10crop.json").write_text("{")
    config = compose(["task=imagenet"])
    for _ in range(2):
        (row,) = found.finished([config], [], [tmp_path])
        assert row.folder == good
        assert found.finished([config], ["protocol=10crop"], [tmp_path]) == []
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == len(texts) + 2, "a line each, once"
    assert all(line.startswith(f"warning: {tmp_path}/runs/") and line.endswith("; it is left out") for line in lines)


def test_the_table_of_a_sweep(demo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two gates by two numbers of flows, as the command line makes them."""
    monkeypatch.chdir(tmp_path)
    assert call(monkeypatch, ["-m", *TINY, f"demo.root={demo}", "anar=2,3", "flows=1,2"]) == 0
    (grid,) = of_folder(Path("runs/imagenet"))
    assert grid.title == "imagenet: 4 finished runs in runs/imagenet" and grid.notes == []
    assert grid.columns == [
        "anar", "flows", "Params", "GFLOPs", "top1", "to plain", "top5", "loss", "Protocol", "Samples", "Seconds",
    ]  # fmt: skip
    assert [row[:2] for row in grid.rows] == [["2", "1"], ["2", "2"], ["3", "1"], ["3", "2"]]
    said = {}
    for path in tmp_path.rglob("summary.json"):
        summary = json.loads(path.read_text())
        said[str(summary["config"]["anar"]), str(summary["config"]["flows"])] = summary
    for row in grid.rows:
        summary = said[row[0], row[1]]
        cells = dict(zip(grid.columns, row, strict=True))
        assert cells["Params"] == f"{summary['params'] / 1e6:.3f}M"
        assert float(cells["top1"]) == pytest.approx(summary["metrics"]["top1"], abs=0.006)
        assert (cells["Protocol"], cells["Samples"]) == ("1crop", "21")
        gain = summary["metrics"]["top1"] - said[row[0], "1"]["metrics"]["top1"]
        assert cells["to plain"] == ("-" if row[1] == "1" else f"{gain:+.2f}")


def test_seeds_are_one_row_and_every_other_setting_a_row_of_its_own(pretend: Pretend, tmp_path: Path) -> None:
    plain, gated = "task=imagenet flows=1", "task=imagenet flows=3 anar=5"
    for seed, top1 in enumerate((70.0, 72.0)):
        pretend(f"plain{seed}", f"{plain} seed={seed}", {"top1": top1})
        pretend(f"gated{seed}", f"{gated} seed={seed}", {"top1": top1 + 2})
    pretend("few", f"{gated} seed=9", {"top1": 1.0}, samples=40000)
    pretend("elsewhere", f"{gated} data.root=/mine", {"top1": 80.0})
    (grid,) = of_folder(tmp_path / "runs")
    cells = [dict(zip(grid.columns, row, strict=True)) for row in grid.rows]
    assert grid.columns[:3] == ["anar", "flows", "root"]
    told = [" ".join(c[name] for name in ("anar", "flows", "root")) for c in cells]
    assert told == ["3 1 null", "5 3 null", "5 3 /mine"]
    spread = statistics.stdev([70.0, 72.0])
    assert [c["top1"] for c in cells] == [f"71.00 ± {spread:.2f} (n=2)", f"73.00 ± {spread:.2f} (n=2)", "80.00"]
    assert [c["to plain"] for c in cells] == ["-", "+2.00", "-"]
    few = f"{tmp_path}/runs/few (1crop, 40000 samples)"
    assert grid.notes == [f"not in the mean, which is of 1crop on 50000 samples: {few}"]


def test_each_task_has_its_table_and_unfinished_runs_are_named(pretend: Pretend, tmp_path: Path) -> None:
    coco = {name: 0.3 for name in ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10")}
    pretend("a", "task=coco_fcos", coco, protocol="coco", samples=5000)
    begun = {
        "b": ("trainer.epochs=4", '{"step": 300, "epoch": 1.5, "split": "train"}\n{"step": 3'),
        "c": ("trainer.epochs=4", ""),
        "e": ("trainer.max_steps=900", '{"step": 2, "epoch": 0.01, "split": "val"}\n'),
    }
    for name, (setting, logged) in begun.items():
        folder = pretend(name, f"task=cifar10 {setting}", {"top1": 1.0})
        (folder / "metrics.jsonl").write_text(logged)
        (folder / "summary.json").unlink()
    (tmp_path / "runs/d").mkdir()
    (tmp_path / "runs/d/config.yaml").write_text("of: another program\n")
    first, second = of_folder(tmp_path / "runs")
    assert first.title.startswith("cifar10: 0 finished runs in ") and first.rows == []
    assert first.notes == [
        f"unfinished: {tmp_path}/runs/b (step 300, epoch 1.5 of 4)",
        f"unfinished: {tmp_path}/runs/c (no step logged yet)",
        f"unfinished: {tmp_path}/runs/e (step 2, epoch 0.01 of 164, at most 900 steps)",
    ]
    assert second.rows == [["25.557M", "4.089", *["0.300"] * 6, "coco", "5000", "100"]]
    assert second.notes == ["further numbers are in summary.json: AR1, AR10"]
    (tmp_path / "runs/a/evaluation-other.json").write_text("{}")
    (_, third) = of_folder(tmp_path / "runs", ["protocol=other"])
    assert third.rows == [] and third.notes == [f"not evaluated with protocol=other: {tmp_path}/runs/a"]


def test_a_folder_without_runs_is_a_mistake(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for name, words in (("nowhere", "is no folder"), ("file", "is no folder"), (".", "has no runs in it")):
        with pytest.raises(UserError, match=words):
            of_folder(tmp_path / name)


def test_settings_that_differ_have_short_names_and_files_their_own() -> None:
    """A backbone's depth is told by its name and a recipe's learning rate by the recipe's."""

    def columns(*settings: str) -> dict[str, list[Any]]:
        return differing([compose(words.split()) for words in settings])[0]

    assert columns("task=imagenet", "task=imagenet seed=1 gpus=0") == {}
    networks = columns("attention=se", "backbone=vgg16", "backbone=mobile tdaf=multiscale")
    assert networks == {
        "backbone": ["res50", "vgg16", "mobile"],
        "attention": ["se", "none", "none"],
        "tdaf": ["tdaf", "tdaf", "multiscale"],
    }
    assert columns("anar=3", "recipe=modern") == {"recipe": ["paper", "modern"]}
    recipes = columns("anar=3", "recipe=modern optim.lr=0.3")
    assert recipes.keys() == {"recipe", "lr"} and recipes["lr"][1] == 0.3
    gates = columns("tdaf.gated=[1]", "gated=appended tdaf.norm=shared")
    assert gates == {"gated": ["all", "appended"], "tdaf.gated": [[1], "appended"], "norm": ["mfbn", "shared"]}
    own = columns("backbone._target_=mynet.mynet ~backbone.stem", "anar=3")
    assert own["backbone"] == ["mynet", "res50"]
    many = [f"task.train_transform.{n}" for n in ("flip=0.4", "size=192")]
    many += ["optim.lr=1", "trainer.batch=8", "trainer.epochs=2", "eta=0.1", "data.max_bad=1", "trainer.clip=1", "dims=3"]
    kept, notes = differing([compose([]), compose(many)])
    assert len(kept) == 8 and len(notes) == 1 and notes[0].startswith("more settings differ: ")
    mixed = [None, True, 10, 9.5, "res101", "res18", [2], [10]]
    assert sorted(mixed, key=order) == [None, True, 9.5, 10, [2], [10], "res18", "res101"]
