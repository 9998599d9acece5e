"""scripts/table.py: every row of the paper's tables composes, builds and counts; what is printed; mistakes."""

from __future__ import annotations

import csv
import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tdaf.cli.compose import Config
from tasks.action.evaluator import VideoAccuracy
from tasks.classification.evaluator import Accuracy
from tasks.coco.scoring import BOX_NUMBERS, POINT_NUMBERS
from tdaf.errors import UserError
from mechanisms import NAMES

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "scripts"))

from table import table as command_of_the_table  # noqa: E402
from tables import latency, render, rows, show  # noqa: E402
from tables.asked import asked  # noqa: E402
from tables.counts import hours, seen  # noqa: E402
from tables.printed import printed  # noqa: E402
from tables.render import Grid  # noqa: E402
from tables.rows import Row, Table  # noqa: E402

torch.set_num_threads(1)

KEYS = ["1", "2", "3a", "3b", "4", "5", "6", "latency", "multiscale"]
HOW_MANY = {"1": 5, "2": 9, "3a": 19, "3b": 28, "4": 8, "5": 7, "6": 5, "multiscale": 3}
WELL_KNOWN = ("none", "se", "cbam")
NOWHERE = [Path("no such folder")]
GRID = Grid(
    "50% of R&D_1 {±}",
    ["Name", "Top-1", "Note"],
    [["a_b #1", "78.4 ± 0.2 (n=3)", "[x] < 2 | \\y"], ["~^$", "-", "two, words"]],
    ["a note: 3 < 4 & 100%"],
    [("a_b #1", "python train.py task=x 'a=[1,2]'"), ("~^$", "")],
    1,
)


def compose(settings: list[str]) -> Config:
    return rows.composed(tuple(settings))


def shown(key: str, more: list[str] = [], folders: list[Path] = NOWHERE) -> list[dict[str, str]]:
    grid = show.grid(rows.read(key), more, [], folders)
    return [dict(zip(grid.columns, row, strict=True)) for row in grid.rows]


def test_every_table_of_the_paper_is_there():
    assert rows.names() == KEYS
    assert {key: len(rows.read(key).rows) for key in HOW_MANY} == HOW_MANY


@pytest.mark.parametrize("key", KEYS)
def test_every_row_composes_and_is_built(key):
    """But for a mechanism that a backbone does not have, which has a dash and the reason."""
    table = rows.read(key)
    for row in table.rows:
        why = show.problem(table, row, [])
        mechanism = next((s for s in row.settings if s.startswith("attention=")), "attention=none").partition("=")[2]
        if row.dash:
            assert why == row.dash and not row.settings
        elif mechanism in WELL_KNOWN:
            assert why == "", f"{key}: {rows.name(row)}"
        else:
            assert why == "" or why.startswith(f"attention={mechanism}"), f"{key}: {rows.name(row)}"
            # a mechanism that is there is there for ResNet
            assert why == "" or mechanism not in NAMES or "backbone=vgg16" in row.settings


@pytest.mark.parametrize("key", KEYS)
def test_a_table_says_what_it_means(key):
    table = rows.read(key)
    columns = [*table.texts, *table.counts, *table.metrics]
    assert len({*columns, *table.measured}) == len(columns) + len(table.measured)
    assert len({(row.group, row.name) for row in table.rows}) == len(table.rows)
    for row in table.rows:
        assert set(row.paper) <= set(columns) and all(isinstance(text, str) for text in row.paper.values())
        assert set(row.benchmark) <= {column.split()[0] for column in table.measured}
        if not row.dash and table.samples:
            assert compose(rows.overrides(table, row))["recipe"] == "paper"
    settings = [tuple(sorted(row.settings)) for row in table.rows if not row.dash]
    assert key in ("3b", "latency") or len(set(settings)) == len(settings)
    assert bool(table.samples) == bool(table.metrics) == bool(table.demo)
    comment = (ROOT / "configs" / "table" / f"{key}.yaml").read_text().partition("\ntitle:")[0]
    assert all(line.startswith("# ") for line in comment.splitlines())
    assert all(word in comment for word in (f"python scripts/table.py {key}", "Expected:", "Cost:"))


def test_metrics_are_those_of_the_evaluators():
    clips = VideoAccuracy("clip", ["a", "b"], str)
    logits, batch = torch.tensor([[1.0, 0.0]]), {"label": torch.tensor([0]), "video": torch.tensor([0])}
    images = Accuracy("1crop")
    given = {
        "imagenet": images.compute(images.update(logits, batch)),
        "kinetics": clips.compute(clips.update(logits, batch)),
        "coco_fcos": BOX_NUMBERS,
        "coco_pose": [*POINT_NUMBERS, *(f"{column}/{name}" for column in ("FRCNN", "YOLO") for name in POINT_NUMBERS)],
    }
    given["cifar10"] = given["imagenet"]
    for table in map(rows.read, KEYS):
        task = next(s for s in table.settings if s.startswith("task=")).partition("=")[2]
        assert set(table.metrics) <= set(given[task]), table.key
        assert table.scale == (100 if task.startswith("coco") else 1)
        for setting in table.evaluate:
            assert setting.partition("=")[2] in compose([f"task={task}"])["task"]["val_transforms"]


@pytest.mark.parametrize(("key", "column"), [("4", "Params"), ("6", "Params"), ("1", "Parameters")])
def test_parameters_agree_in_every_printed_digit(key, column):
    table, found = rows.read(key), shown(key)
    reference = f"{column} {table.reference}"
    checked = [row for row in found if row[reference] != "-"]
    assert len(checked) == {"4": 7, "6": 5, "1": 4}[key]
    for row in checked:
        assert row[column] == row[reference] and row[f"{column} difference"] == "0"


def test_plain_networks_agree_with_the_paper_and_the_gap_of_tdaf_is_shown():
    found = shown("3a")
    plain = [row for row in found if row["Row"] == "No attention"]
    assert len(plain) == 7 and all(row["Params"] == row["Params paper"] for row in plain)
    res50 = {row["Row"]: row for row in found if row["Backbone"] == "Res50"}
    assert (res50["No attention"]["GFLOPs"], res50["No attention"]["GFLOPs difference"]) == ("4.1", "0")
    tdaf = res50["ANAR-3, 3 flows"]
    assert (tdaf["Params"], tdaf["Params paper"], tdaf["Params difference"]) == ("25.7M", "29.9M", "-4.2M")
    assert (tdaf["GFLOPs"], tdaf["GFLOPs paper"], tdaf["GFLOPs difference"]) == ("5.1", "5.4", "-0.3")
    assert (tdaf["Top-1"], tdaf["Top-1 paper"]) == ("-", "78.4") and "Top-1 difference" not in tdaf
    mobile = {row["Row"]: row["GFLOPs"] for row in found if row["Backbone"] == "MobNets"}
    assert mobile["No attention"] == "0.57"
    # 3 x 4.089 x 1,281,167 x 90 / 30,000 / 3600
    assert res50["No attention"]["GPU-hours (estimate)"] == "13"


def test_increments_are_over_the_same_baseline():
    found = {(row["Baseline"], row["Row"]): row for row in shown("3b")}
    assert found["Res50", "No attention"]["Params"] == "25.557M" and found["SENet", "SE"]["GFLOPs"] == "4.092"
    tdaf = found["Res50", "TDAF"]
    assert (tdaf["Params"], tdaf["GFLOPs"], tdaf["GFLOPs difference"]) == ("+0.6%", "+24.0%", "-7.7%")
    assert tdaf["PI paper"] == "+1.7" and tdaf["PI"] == "-"
    assert found["ResX101", "CBAM"]["GFLOPs difference"] == "0"
    assert found["SENet", "ABN"]["Params"] == "-" and found["SENet", "ABN"]["PI paper"] == "+0.8"


def test_cifar_is_counted_as_the_paper_counted_and_as_it_is_trained():
    vgg = shown("2")[0]
    assert vgg["Params as on ImageNet"] == vgg["Params as on ImageNet paper"] == "138.4M"
    assert vgg["Params here"] == "14.720M"


def test_both_baselines_of_detection_differ_in_the_schedule_alone():
    table = rows.read("4")
    once, twice = (compose(rows.overrides(table, row)) for row in table.rows[:2])
    assert (seen(once, table.samples), seen(twice, table.samples)) == (16 * 90_000, 16 * 180_000)
    assert once["task"]["train_transform"]["short_sides"] == [800, 800] and not table.rows[1].paper
    other = compose(rows.overrides(table, table.rows[2]))
    assert (other["trainer"], other["task"]) == (twice["trainer"], twice["task"])
    assert seen({"trainer": {"max_steps": None, "batch": 16, "epochs": 3}}, 100) == 300
    assert seen({"trainer": {"max_steps": 5, "batch": 16, "epochs": 3}}, 100) == 80
    assert hours(gflops=10.0, samples=3600 * 1e3, throughput=30.0) == 1.0


def test_measured_ratios_are_read_for_the_network_that_was_measured(tmp_path, monkeypatch):
    file = tmp_path / "benchmarks.json"
    section = {"backbone": "res50", "anar": 3, "flows": 3}
    entry = {"key": "forward", "device": "cpu", "value": 1.273}
    file.write_text(json.dumps({"model cpu": {**section, "rows": [entry]}}))
    monkeypatch.setattr(latency, "FILE", file)
    latency._file.cache_clear()
    settings = ["backbone=res50", "anar=3", "flows=3"]
    row = Row("a", settings=settings, benchmark={"forward": "latency_res50/forward model/forward"})
    assert latency.measured(row, "forward cpu") == "+27%"
    assert latency.measured(row, "forward gpu") == latency.measured(row, "training cpu") == "-"
    other = Row("a", settings=["backbone=res101", "anar=3", "flows=3"], benchmark=row.benchmark)
    assert latency.measured(other, "forward cpu") == "-"
    latency._file.cache_clear()


def test_in_miniature_rows_that_are_the_same_run_are_one():
    table = rows.read("3a")
    small = rows.adapted(table, ["recipe=demo"])
    assert [row.name for row in small.rows] == [
        "flows=1", "anar=5 flows=3", "anar=5 flows=2", "anar=3 flows=3",
        "anar=7 flows=3", "anar=3 flows=4", "anar=3 flows=2",
    ]  # fmt: skip
    assert not any(row.paper for row in small.rows) and "Res152, ANAR-3, 3 flows" in small.rows[3].note
    for key in (key for key in KEYS if rows.read(key).samples):
        table = rows.adapted(rows.read(key), ["recipe=demo"])
        configs = [compose(rows.overrides(table, row, ["recipe=demo"])) for row in table.rows if not row.dash]
        assert all(config["backbone"]["depth"] == 18 and config["pretrained"] is None for config in configs), key
        # CBAM is a rival of SE and a baseline, so it stands there twice
        assert len({config["run_dir"] for config in configs}) == len(configs) - (2 if key == "3b" else 0), key
    assert [row["Params"] for row in shown("6", ["recipe=demo"])] == ["0.520M", "1.696M"]
    assert shown("latency", ["recipe=demo"]) == shown("latency")


def test_a_setting_for_all_rows_replaces_the_rows_own():
    table = rows.read("4")
    more = ["backbone=res18", "trainer.max_steps=10"]
    changed = rows.adapted(table, more)
    names = ["flows=1", "anar=3 flows=3", "anar=5 flows=3", "anar=3 flows=4"]
    assert [row.name for row in changed.rows][1:] == names and "max_steps" not in changed.rows[0].name
    assert changed.rows[1].note == "stands for Res50, No attention, 2x, multi-scale; Res101, No attention"
    assert rows.overrides(changed, changed.rows[1], more) == ["task=coco_fcos", "flows=1", *more]
    kept = rows.adapted(table, ["eta=0.7"])
    assert [row.paper for row in kept.rows] == [row.paper for row in table.rows]
    assert rows.command(table, table.rows[2], ["eta=0.7"], [0, 1]) == (
        "python train.py -m task=coco_fcos backbone=res50 anar=3 flows=3 eta=0.7 seed=0,1 data.root=PATH"
    )


def finished(folder: Path, config: dict, top1: float) -> None:
    folder.mkdir(parents=True)
    metrics = {"top1": top1, "top5": 95.0, "loss": 1.0}
    found = {"task": "imagenet", "protocol": "1crop", "metric": {"name": "top1", "best": top1, "last": top1}}
    summary = {**found, "metrics": metrics, "samples": 50000, "skipped": 0, "params": 1, "config": config}
    (folder / "summary.json").write_text(json.dumps(summary))
    evaluation = {"values": {**metrics, "top1": top1 + 1}, "samples": 50000, "protocol": "10crop"}
    (folder / "evaluation-10crop.json").write_text(json.dumps(evaluation))


def test_accuracies_are_those_of_finished_runs_by_the_tables_own_protocol(tmp_path):
    table = rows.read("multiscale")
    for seed, top1 in ((0, 75.0), (1, 76.0)):
        config = compose([*rows.overrides(table, table.rows[0]), f"seed={seed}", "data.root=/elsewhere"])
        finished(tmp_path / f"run{seed}", config, top1)
    found = shown("multiscale", folders=[tmp_path])
    assert found[0]["Top-1"] == "76.5 ± 0.7 (n=2)" and found[0]["Top-1 difference"] == "-0.6"
    assert found[1]["Top-1"] == found[1]["Top-1 difference"] == "-"
    one = show.grid(table, [], [1], [tmp_path])
    assert one.rows[0][one.columns.index("Top-1")] == "77.0"
    assert any("10crop, 50,000 samples" in note and "run1" in note for note in one.notes)


def test_gains_are_over_the_first_row_of_the_group(tmp_path):
    table = Table("x", "x", [Row("plain", "g", ["flows=1"]), Row("tdaf", "g", ["flows=3"], {"top1": "+1.7"})], "Group",
                  ["task=imagenet", "backbone=tiny"], [3, 64, 64], 10, evaluate=["protocol=1crop"],
                  metrics={"top1": "PI"}, relative=True, samples=100)  # fmt: skip
    for number, top1 in enumerate((75.0, 76.2)):
        finished(tmp_path / str(number), compose(rows.overrides(table, table.rows[number])), top1)
        (tmp_path / str(number) / "evaluation-10crop.json").rename(tmp_path / str(number) / "evaluation-1crop.json")
    grid = show.grid(table, [], [], [tmp_path])
    found = [dict(zip(grid.columns, row, strict=True)) for row in grid.rows]
    assert [row["PI"] for row in found] == ["76.0", "+1.2"] and found[1]["PI difference"] == "-0.5"


@pytest.mark.parametrize(
    ("text", "value", "ours", "difference"),
    [
        ("25.6M", 25_557_032, "25.6M", "0"),
        ("29.9M", 25_721_403, "25.7M", "-4.2M"),
        ("32.244M", 32_244_250, "32.244M", "0"),
        ("164,371", 164_371, "164,371", "0"),
        ("164,371", 1_164_370, "1,164,370", "+999,999"),
        ("4.1", 4.089, "4.1", "0"),
        ("+31.7%", 23.98, "+24.0%", "-7.7%"),
        ("+0.1%", -0.01, "+0.0%", "-0.1%"),
        ("+1.3% (29%)", 2.2, "+2.2%", "+0.9%"),
        ("88.49", 88.486, "88.49", "0"),
    ],
)
def test_numbers_in_the_papers_digits(text, value, ours, difference):
    theirs = printed(text)
    assert (theirs.ours(value), theirs.difference(value)) == (ours, difference)


def test_what_is_no_number():
    assert printed("-") is printed(">20%") is printed(None) is printed("1x1, c/4") is None


def test_markdown_is_a_table_of_as_many_cells_everywhere():
    lines = [line for line in render.markdown(GRID).splitlines() if line.startswith("|")]
    assert {len(re.findall(r"(?<!\\)\|", line)) for line in lines} == {4}
    assert lines[1] == "|---|---:|---|" and r"\[x\] \< 2 \| \\y" in lines[2]
    assert "```bash\n# a_b #1\npython train.py task=x 'a=[1,2]'\n```" in render.markdown(GRID)


def test_csv_is_read_back():
    found = list(csv.reader(io.StringIO(render.csv(GRID))))
    assert found[0] == [*GRID.columns, "Command"]
    assert found[1] == [*GRID.rows[0], "python train.py task=x 'a=[1,2]'"] and found[2] == [*GRID.rows[1], ""]


def test_latex_has_nothing_left_to_trip_over():
    text = render.latex(GRID)
    assert r"50\% of R\&D\_1 \{$\pm$\}" in text and r"a\_b \#1 & 78.4 $\pm$ 0.2 (n=3) & {[}x] $<$ 2" in text
    assert r"\textasciitilde{}\textasciicircum{}\$" in text and r"\begin{tabular}{lrl}" in text
    body = "\n".join(line for line in text.splitlines() if not line.startswith("%"))
    assert not re.search(r"(?<!\\)[%_#]", body) and all(ord(letter) < 128 for letter in body)
    assert body.count("{") - body.count(r"\{") == body.count("}") - body.count(r"\}")
    assert [body.count(rf"\{word}{{table}}") for word in ("begin", "end")] == [1, 1]
    rows_of_cells = [line for line in body.splitlines() if line.endswith(r"\\")]
    assert len(rows_of_cells) == 3 and all(len(re.findall(r"(?<!\\)&", line)) == 2 for line in rows_of_cells)


def test_a_real_table_in_every_form():
    grid = show.grid(rows.read("4"), [], [], NOWHERE)
    for form, write in render.FORMATS.items():
        text = write(grid)
        assert "32.462M" in text and "39.6" in text, form
        assert form == "csv" or "37.1 is FCOS's own 1x schedule" in text
        assert "python train.py task=coco_fcos backbone=res101 anar=5 flows=3 data.root=PATH" in text
    narrow = render.terminal(grid, width=100)
    assert max(map(len, narrow.split("\n\n#")[0].splitlines())) <= 100
    none = render.terminal(Grid("empty", ["A", "B"], []))
    assert "empty" in none and "A" in none


def test_the_command_line():
    words = "3a,4 --recipe demo --run seeds=0,2 --format=csv trainer.epochs=3 hydra/launcher=x"
    given = asked(words.split())
    assert (given.what, given.run, given.seeds, given.form) == (["3a", "4"], True, [0, 2], "csv")
    assert (given.more, given.hydra) == (["recipe=demo", "trainer.epochs=3"], ["hydra/launcher=x"])
    assert asked(["1", "out=x.tex"]).form == "latex" and asked(["1"]).runs == Path("runs")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "give a table"),
        (["1", "sedes=0"], "did you mean seeds?"),
        (["1", "seed=0"], "seeds=0,1,2"),
        (["1", "seeds=0,0"], "each once"),
        (["1", "--fromat", "csv"], "did you mean --format?"),
        (["1", "--out"], "give its value behind it"),
        (["1", "format=html"], "give terminal, markdown, csv or latex"),
        (["1", "run=yes"], "give true or false"),
        (["1", "out=/"], "it is a folder"),
        (["1", "run_dir=x"], "each with a folder of its own"),
    ],
)
def test_mistakes_of_the_command_line(arguments, said):
    with pytest.raises(UserError, match=re.escape(said)) as error:
        asked(arguments)
    assert "\n" not in str(error.value)


def test_mistakes_in_the_settings_of_runs():
    tables = [rows.read("6")]
    with pytest.raises(UserError, match="did you mean trainer.epochs"):
        rows.check(tables, ["trainer.epoch=3"])
    with pytest.raises(UserError, match="there is no such backbone"):
        rows.check(tables, ["backbone=res51"])
    with pytest.raises(UserError, match="flows must be between 1 and 4"):
        show.grid(tables[0], ["flows=9"], [], NOWHERE)


def test_an_unknown_table_is_one_line_and_needs_no_torch():
    code = "import sys, table; sys.argv[1:] = ['3c']; print(table.main(table.table, ''), 'torch' in sys.modules)"
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=ROOT / "scripts", capture_output=True, text=True, env=environment)
    assert done.stdout == "2 False\n"
    hint = f"did you mean 3b? There are {', '.join(KEYS)} and all"
    assert done.stderr == f"error: 3c: there is no such table or folder; {hint}\n"


def test_as_a_user_types_it(tmp_path, capsys):
    out = tmp_path / "new" / "table.md"
    assert command_of_the_table(["1", f"out={out}"]) == 0
    assert "| ANAR-5, 3D |" in out.read_text() and "1,398,419 | 1,398,419 | 0 |" in out.read_text()
    assert command_of_the_table(["1", "format=csv"]) == 0
    assert capsys.readouterr().out.startswith("Input,Row,Trans,Down-SP")
    with pytest.raises(UserError, match="there is nothing to train in it"):
        command_of_the_table(["1", "--run"])
    with pytest.raises(UserError, match="protocol is for a folder"):
        command_of_the_table(["3a", "protocol=1crop"])
    with pytest.raises(UserError, match="takes protocol, format and out"):
        command_of_the_table([str(tmp_path), "seeds=0"])
