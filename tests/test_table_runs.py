"""Which runs are a row's, what several seeds say, the running of what is missing, and the table of a folder."""

import json
import os
import shutil
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from commands import ROOT, tiny

from tdaf.cli.compose import compose, to_yaml
from tdaf.errors import UserError

sys.path.insert(0, str(ROOT / "scripts"))

from results import runs  # noqa: E402
from results.ablation import differing, folder_tables, sorting  # noqa: E402
from results.runs import Request, Result, Run, run_missing  # noqa: E402
from results.tabular import mean_and_deviation  # noqa: E402

RUNS = [Path("runs")]
PROTOCOL = ["protocol=10crop"]
ROWS = {"plain": "flows=1", "again": "flows=1", "TDAF": "anar=2 flows=2"}  # of which two are the same run


def requests(demo: Path, *more: str, evaluate: list[str] = PROTOCOL) -> list[Request]:
    words = [*tiny(demo, "trainer.checkpoint_every=1"), *more]
    return [Request([name], [*words, *own.split()], [evaluate] if evaluate else []) for name, own in ROWS.items()]


def of(settings: list[str] | str, folders: list[Path] = RUNS) -> list[Run]:
    """The finished runs with these settings."""
    words = settings.split() if isinstance(settings, str) else settings
    return runs.by_key(runs.find(folders)).get(runs.key(compose(words)), [])


@pytest.fixture(scope="module")
def first(demo: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which the little table was run once."""
    place = tmp_path_factory.mktemp("first")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        assert run_missing(requests(demo), RUNS) == 0
    return place


@pytest.fixture
def again(first: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it, to work in."""
    shutil.copytree(first / "runs", tmp_path / "runs")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_rows_run_and_are_found_and_a_second_call_trains_nothing(demo: Path, again: Path, capsys) -> None:
    """Three rows, of which two are one run; each number is of the asked evaluation."""
    assert len(list(again.rglob("summary.json"))) == 2
    for request in requests(demo):
        (own,) = runs.results(of(request.settings), PROTOCOL)
        content = json.loads((own.folder / "evaluation-10crop.json").read_text())
        assert (own.values, own.samples, own.protocol, own.seed) == (content["values"], 21, "10crop", 0)
        (last,) = runs.results(of(request.settings))
        assert last.values == json.loads((own.folder / "summary.json").read_text())["metrics"]
        assert last.protocol == "1crop" and last.values["loss"] != own.values["loss"]
    assert of(requests(demo, "eta=0.3")[2].settings) == []
    before = {path: path.stat().st_mtime_ns for path in again.rglob("*")}
    assert run_missing(requests(demo, "loader.prefetch=3"), RUNS) == 0
    assert {path: path.stat().st_mtime_ns for path in again.rglob("*")} == before
    lines = capsys.readouterr().out.splitlines()
    assert [line.partition(": finished in runs/")[0] for line in lines] == ["plain, again", "TDAF"]
    (table,) = folder_tables(Path("runs/imagenet"))
    assert "anar" in table.columns and len(table.rows) == 2 and table.notes == []


def test_what_is_unfinished_goes_on_and_what_lacks_its_evaluation_gets_it(demo: Path, again: Path, capsys) -> None:
    plain, gated = (of(request.settings)[0].folder for request in requests(demo)[1:])
    expected = {path: json.loads(path.read_text())["values"] for path in again.rglob("evaluation-*.json")}
    for path in expected:
        path.unlink()
    (gated / "summary.json").unlink()
    (gated / "checkpoints/previous.pt").replace(gated / "checkpoints/last.pt")
    plain.rename("runs/moved")  # where its settings would not put it
    assert run_missing(requests(demo), RUNS) == 0
    printed = capsys.readouterr().out
    assert printed.count("going on from step") == 1 and printed.count("runs/moved is finished") == 1
    assert "job 1 of 2: plain, again: " in printed and "job 2 of 2: TDAF: " in printed
    made = (folder / "evaluation-10crop.json" for folder in (Path("runs/moved"), gated))
    values = [json.loads(path.read_text())["values"] for path in made]
    assert sorted(map(str, values)) == sorted(map(str, expected.values()))


def test_rows_of_two_tables_are_one_run_with_an_evaluation_for_each(
    demo: Path, again: Path, monkeypatch, capsys
) -> None:
    evaluated: list[list[str]] = []
    monkeypatch.setattr("tdaf.cli.evaluation.evaluate_checkpoint", lambda path, words, *_: evaluated.append(words) or 0)
    one, other = requests(demo, "loader.prefetch=3"), requests(demo, evaluate=["protocol=1crop"])
    (of(one[2].settings)[0].folder / "evaluation-10crop.json").unlink()
    assert run_missing([one[2], other[2], other[0]], RUNS) == 0
    assert "job 1 of 2: TDAF, TDAF: " in capsys.readouterr().out
    assert [words[0] for words in evaluated] == ["task.protocol=10crop", "task.protocol=1crop", "task.protocol=1crop"]
    assert "loader.prefetch=3" in evaluated[0]  # where the training found its data and hardware


def test_an_evaluation_with_other_settings_does_not_count(demo: Path, again: Path, capsys) -> None:
    (run,) = of(requests(demo)[2].settings)
    path = run.folder / "evaluation-10crop.json"
    content = json.loads(path.read_text())
    for settings, counts, words in (
        (["task.protocol=10crop", "task.val_transforms.10crop.size=20"], False, "was made with task.val_transforms"),
        (None, False, "not of an evaluation"),
        (["data.root=/there", "loader.workers=1", "gpus=0"], True, ""),
    ):
        path.write_text(json.dumps({**content, "settings": settings}))
        assert bool(runs.result(run, PROTOCOL)) == counts
        assert words in capsys.readouterr().err


def test_one_failing_row_leaves_the_others(demo: Path, again: Path, capsys) -> None:
    plain, gated = (of(request.settings)[0].folder for request in requests(demo)[1:])
    (gated / "summary.json").unlink()
    for name in ("last.pt", "previous.pt"):
        (gated / "checkpoints" / name).write_text("damaged")
    (plain / "evaluation-10crop.json").unlink()
    assert run_missing(requests(demo)[::-1], RUNS) == 2
    errors = capsys.readouterr().err.splitlines()
    assert errors[0].startswith("error: ") and errors[1:] == ["failed with exit code 2: TDAF"]
    assert (plain / "evaluation-10crop.json").exists()


@pytest.mark.parametrize(
    ("more", "words"), [(["tdaf.gate_init=x"], "gate_init"), (["run_dir=one"], "run_dir=one is the folder of 2")]
)
def test_a_mistake_costs_nothing(more: list[str], words: str, demo: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    rows = [Request(request.names, [*request.settings, *more], []) for request in requests(demo)]
    with pytest.raises(UserError, match=words):
        run_missing(rows, RUNS)
    with pytest.raises(UserError, match="hydra/launcher/slurm"):
        run_missing(requests(demo), RUNS, ["hydra/launcher=slurm"])
    assert not list(tmp_path.iterdir())


Pretend = Callable[..., Path]


@pytest.fixture
def pretend(tmp_path: Path) -> Pretend:
    """A function that writes the folder of a finished run which never ran."""

    def write(name: str, settings: str, metrics: dict[str, float], **summary: Any) -> Path:
        config = compose(settings.split())
        folder = tmp_path / "runs" / name
        folder.mkdir(parents=True)
        (folder / "config.yaml").write_text(to_yaml(config))
        common = {"metric": {"name": next(iter(metrics))}, "metrics": metrics, "protocol": "1crop", "samples": 50000}
        sizes = {"params": 25557032, "gflops": 4.089, "seconds": 100.4, "config": config}
        (folder / "summary.json").write_text(json.dumps({**common, **sizes, **summary}))
        return folder

    return write


def test_what_tells_runs_apart(pretend: Pretend, tmp_path: Path) -> None:
    """The seed, the place of the data and what is volatile do not; every other setting does."""
    mine = "task=imagenet backbone=res50 flows=1"
    pretend("2", f"{mine} seed=2 data.root=/there gpus=0 loader.workers=7", {"top1": 76.0})
    pretend("1", f"{mine} seed=1 run_dir=/somewhere trainer.log_every=9", {"top1": 77.0})
    pretend("other", f"{mine} optim.lr=0.2", {"top1": 1.0})
    pretend("recipe", f"{mine} recipe=modern", {"top1": 2.0})
    found = runs.results(of(f"{mine} seed=5", [tmp_path]))
    assert [(one.seed, one.values) for one in found] == [(1, {"top1": 77}), (2, {"top1": 76})]
    drawn, own = "task=imagenet recipe=demo", "task=imagenet recipe=demo data.root=/pictures"
    pretend("drawn", f"{drawn} demo.root=elsewhere", {"top1": 3.0})
    pretend("own", own, {"top1": 4.0})
    for settings, top1 in ((drawn, 3.0), (own.replace("pictures", "moved"), 4.0)):
        assert [one.values for one in runs.results(of(settings, [tmp_path]))] == [{"top1": top1}]


def test_of_two_runs_of_a_seed_the_newest_evaluated_one_counts(pretend: Pretend, tmp_path: Path) -> None:
    folders = [pretend(name, "task=imagenet", {"top1": value}) for name, value in (("b", 1.0), ("a", 2.0), ("c", 3.0))]
    for place, folder in enumerate(folders):
        os.utime(folder / "summary.json", (1000 + place, 1000 + place))
    content = {"values": {"top1": 5.0}, "samples": 7, "protocol": "10crop"}
    (folders[1] / "evaluation-10crop.json").write_text(json.dumps(content))
    same = of("task=imagenet", [tmp_path, tmp_path / "runs"])
    assert [one.values["top1"] for one in runs.results(same)] == [3.0]
    assert runs.results(same, PROTOCOL) == [Result(folders[1], 0, {"top1": 5.0}, 7, "10crop")]
    assert runs.results(same, ["protocol=1crop"]) == []


def test_what_several_seeds_say() -> None:
    assert [mean_and_deviation(values) for values in ([], [78.44])] == ["-", "78.4"]
    values = [78.1, 78.4, 78.9, 78.2]
    text = f"{statistics.mean(values):.3f} ± {statistics.stdev(values):.3f} (n=4)"
    assert mean_and_deviation(values, 3) == text == "78.400 ± 0.356 (n=4)"
    alike = [Result(Path(), seed, {}, samples, "1crop") for seed, samples in enumerate((50000, 50000, 49999))]
    assert runs.protocols(alike[:2]) == "1crop, 50,000 samples"
    assert runs.protocols(alike) == "1crop, 49,999 samples and 1crop, 50,000 samples"


def test_damaged_and_foreign_files_are_left_out_with_a_line(pretend: Pretend, tmp_path: Path, capsys) -> None:
    good = pretend("good", "task=imagenet", {"top1": 70.0})
    summary = json.loads((good / "summary.json").read_text())
    texts = {
        "cut": json.dumps(summary)[:100].encode(),
        "another": json.dumps({"accuracy": 1.0}).encode(),
        "words": json.dumps({**summary, "metrics": {"top1": "high"}}).encode(),
        "little": json.dumps({**summary, "config": {"lr": 1}}).encode(),
    }
    for name, text in texts.items():
        (tmp_path / "runs" / name).mkdir()
        (tmp_path / "runs" / name / "summary.json").write_bytes(text)
    (good / "evaluation-10crop.json").write_text("{")
    (run,) = of("task=imagenet", [tmp_path])
    assert run.folder == good and runs.result(run, PROTOCOL) is None
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == len(texts) + 1
    assert all(line.startswith(f"warning: {tmp_path}/runs/") and line.endswith("; it is left out") for line in lines)


def test_seeds_are_one_row_and_every_other_setting_a_row_of_its_own(pretend: Pretend, tmp_path: Path) -> None:
    plain, gated = "task=imagenet flows=1", "task=imagenet flows=3 anar=5"
    for seed, top1 in enumerate((70.0, 72.0)):
        pretend(f"plain{seed}", f"{plain} seed={seed}", {"top1": top1})
        pretend(f"gated{seed}", f"{gated} seed={seed}", {"top1": top1 + 2})
    pretend("elsewhere", f"{gated} data.root=/mine", {"top1": 80.0})
    (table,) = folder_tables(tmp_path / "runs")
    cells = [dict(zip(table.columns, row, strict=True)) for row in table.rows]
    told = [" ".join(row[name] for name in ("anar", "flows", "root")) for row in cells]
    assert told == ["3 1 null", "5 3 null", "5 3 /mine"]
    spread = statistics.stdev([70.0, 72.0])
    assert [row["top1"] for row in cells] == [f"71.00 ± {spread:.2f} (n=2)", f"73.00 ± {spread:.2f} (n=2)", "80.00"]
    assert [row["to plain"] for row in cells] == ["-", "+2.00", "-"]


def test_each_task_has_its_table_and_unfinished_runs_are_named(pretend: Pretend, tmp_path: Path) -> None:
    coco = {name: 0.3 for name in ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10")}
    pretend("a", "task=coco_fcos", coco, protocol="coco", samples=5000)
    (pretend("b", "task=cifar10", {"top1": 1.0}) / "summary.json").unlink()
    (tmp_path / "runs/c").mkdir()
    (tmp_path / "runs/c/config.yaml").write_text("of: another program\n")
    cifar, coco = folder_tables(tmp_path / "runs")
    assert cifar.title.startswith("cifar10: 0 finished runs in ") and cifar.rows == []
    assert cifar.notes == [f"unfinished: {tmp_path}/runs/b"]
    assert coco.rows == [["25.557M", "4.089", *["0.300"] * 6, "coco", "5000", "100"]]
    assert coco.notes == ["further numbers are in summary.json: AR1, AR10"]
    (_, other) = folder_tables(tmp_path / "runs", ["protocol=other"])
    assert other.rows == [] and other.notes == [f"not evaluated with protocol=other: {tmp_path}/runs/a"]


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
    many = "optim.lr=1 trainer.batch=8 trainer.epochs=2 eta=0.1 data.max_bad=1 trainer.clip=1 dims=3"
    many += " task.train_transform.flip=0.4 task.train_transform.size=192"
    kept, notes = differing([compose([]), compose(many.split())])
    assert len(kept) == 8 and len(notes) == 1 and notes[0].startswith("more settings differ: ")
    mixed = [None, True, 10, 9.5, "res101", "res18", [2], [10]]
    assert sorted(mixed, key=sorting) == [None, True, 9.5, 10, [2], [10], "res18", "res101"]
