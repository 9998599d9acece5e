"""scripts/table.py: every row of the paper's tables composes, builds and counts; what is printed; mistakes."""

import csv
import io
import json
import re
import sys
from pathlib import Path

import pytest
import torch
from commands import ROOT, call, process

from tasks.action.task import VideoAccuracy
from tasks.classification.task import Accuracy
from tasks.coco.scoring import BOX_NUMBERS, POINT_NUMBERS
from tdaf.cli.script import main
from tdaf.errors import UserError

sys.path.insert(0, str(ROOT / "scripts"))

import table as script  # noqa: E402
from results import paper, runs, tabular  # noqa: E402
from results.paper import PaperTable, Row  # noqa: E402
from results.tabular import Printed, TextTable  # noqa: E402

KEYS = ["1", "2", "3a", "3b", "4", "5", "6", "latency", "multiscale", "design"]
HOW_MANY = {"1": 5, "2": 9, "3a": 19, "3b": 28, "4": 8, "5": 7, "6": 5, "multiscale": 3, "design": 11}
TEXTS = TextTable(
    "50% of R&D_1 {±}",
    ["Name", "Top_1", "Note"],
    [["a_b #1", "78.4 ± 0.2 (n=3)", "[x] < 2 | \\y"], ["~^$", "-", "two, words"]],
    ["a note: 3 < 4 & 100%"],
    [("a_b #1", "python train.py task=x 'a=[1,2]'"), ("~^$", "")],
    1,
)


def shown(key: str, more: list[str] = [], folder: Path | None = None, seeds: list[int] = []) -> list[dict[str, str]]:  # noqa: B006
    finished = runs.by_key(runs.find([folder] if folder else []))
    table = paper.adapted(paper.read(key) if isinstance(key, str) else key, more)
    texts = paper.text_table(table, seeds, finished)
    return [dict(zip(texts.columns, row, strict=True)) for row in texts.rows]


def test_every_table_of_the_paper_is_there() -> None:
    assert paper.names() == KEYS
    assert {key: len(paper.read(key).rows) for key in HOW_MANY} == HOW_MANY


@pytest.mark.parametrize("key", KEYS)
def test_every_row_composes_builds_and_means_something(key: str) -> None:
    """But for a mechanism that a backbone does not have, which has a dash and the reason."""
    table = paper.read(key)
    columns = [*table.texts, *table.counts, *table.metrics]
    assert len({*columns, *table.measured}) == len(columns) + len(table.measured)
    assert len({str(row) for row in table.rows}) == len(table.rows)
    assert bool(table.samples) == bool(table.metrics) == bool(table.demo)
    for row in table.rows:
        assert set(row.paper) <= set(columns) and all(isinstance(text, str) for text in row.paper.values())
        assert set(row.benchmark) <= {column.split()[0] for column in table.measured}
        if row.dash:
            assert not row.settings
            continue
        settings = table.overrides(row)
        try:
            assert paper.counts(tuple(settings), tuple(row.input or table.input), row.classes or table.classes)
        except UserError as error:
            mechanism = next(setting for setting in settings if setting.startswith("attention="))
            # a mechanism is there for ResNet at least
            assert str(error).startswith(mechanism) and "backbone=vgg16" in settings
        if table.samples:
            assert runs.composed(*settings)["recipe"] == "paper"
    settings = [tuple(sorted(row.settings)) for row in table.rows if not row.dash]
    assert key in ("3b", "latency") or len(set(settings)) == len(settings)
    comment = (ROOT / "configs" / "table" / f"{key}.yaml").read_text().partition("\ntitle:")[0]
    assert all(word in comment for word in (f"python scripts/table.py {key}", "Expected:", "Cost:"))


def test_metrics_are_those_of_the_evaluators() -> None:
    clips = VideoAccuracy("clip", ["a", "b"], str)
    logits, batch = torch.tensor([[1.0, 0.0]]), {"label": torch.tensor([0]), "video": torch.tensor([0])}
    images = Accuracy("1crop")
    names = {
        "imagenet": values(images.compute(images.update(logits, batch))),
        "kinetics": values(clips.compute(clips.update(logits, batch))),
        "coco_fcos": BOX_NUMBERS,
        "coco_pose": [*POINT_NUMBERS, *(f"{column}/{name}" for column in ("FRCNN", "YOLO") for name in POINT_NUMBERS)],
    }
    names["cifar10"] = names["imagenet"]
    for table in map(paper.read, KEYS):
        task = next(text for text in table.settings if text.startswith("task=")).partition("=")[2]
        assert set(table.metrics) <= set(names[task]), table.key
        assert table.scale == (100 if task.startswith("coco") else 1)
        for setting in table.evaluate:
            assert setting.partition("=")[2] in runs.composed(f"task={task}")["task"]["val_transforms"]


def values(computed: dict | tuple) -> dict[str, float]:
    return computed[0] if isinstance(computed, tuple) else computed


@pytest.mark.parametrize(("key", "column", "rows"), [("4", "Params", 7), ("6", "Params", 5), ("1", "Parameters", 4)])
def test_parameters_agree_in_every_printed_digit(key: str, column: str, rows: int) -> None:
    reference = f"{column} {paper.read(key).reference}"
    checked = [row for row in shown(key) if row[reference] != "-"]
    assert len(checked) == rows
    assert all(row[column] == row[reference] and row[f"{column} difference"] == "0" for row in checked)


def test_plain_networks_agree_with_the_paper_and_the_gap_of_tdaf_is_shown() -> None:
    rows = shown("3a")
    plain = [row for row in rows if row["Row"] == "No attention"]
    assert len(plain) == 7 and all(row["Params"] == row["Params paper"] for row in plain)
    res50 = {row["Row"]: row for row in rows if row["Backbone"] == "Res50"}
    assert (res50["No attention"]["GFLOPs"], res50["No attention"]["GFLOPs difference"]) == ("4.1", "0")
    tdaf = res50["ANAR-3, 3 flows"]
    assert (tdaf["Params"], tdaf["Params paper"], tdaf["Params difference"]) == ("25.7M", "29.9M", "-4.2M")
    assert (tdaf["GFLOPs"], tdaf["GFLOPs paper"], tdaf["GFLOPs difference"]) == ("5.1", "5.4", "-0.3")
    assert (tdaf["Top-1"], tdaf["Top-1 paper"]) == ("-", "78.4") and "Top-1 difference" not in tdaf
    assert plain[-1]["GFLOPs"] == "0.57"
    # 3 x 4.089 x 1,281,167 x 90 / 30,000 / 3600
    assert res50["No attention"]["GPU-hours (estimate)"] == "13"
    # as the paper counted, and as it is trained
    vgg = shown("2")[0]
    assert vgg["Params as on ImageNet"] == vgg["Params as on ImageNet paper"] == "138.4M"
    assert vgg["Params here"] == "14.720M"


def test_increments_are_over_the_same_baseline() -> None:
    rows = {(row["Baseline"], row["Row"]): row for row in shown("3b")}
    assert rows["Res50", "No attention"]["Params"] == "25.557M" and rows["SENet", "SE"]["GFLOPs"] == "4.092"
    tdaf = rows["Res50", "TDAF"]
    assert (tdaf["Params"], tdaf["GFLOPs"], tdaf["GFLOPs difference"]) == ("+0.6%", "+24.0%", "-7.7%")
    assert tdaf["PI paper"] == "+1.7" and tdaf["PI"] == "-"
    assert rows["ResX101", "CBAM"]["GFLOPs difference"] == "0"
    assert rows["SENet", "ABN"]["Params"] == "-" and rows["SENet", "ABN"]["PI paper"] == "+0.8"


def test_both_baselines_of_detection_differ_in_the_schedule_alone() -> None:
    table = paper.read("4")
    once, twice, other = (runs.composed(*table.overrides(row)) for row in table.rows[:3])
    seen = [paper.samples_seen(config, table.samples) for config in (once, twice)]
    assert seen == [16 * 90_000, 16 * 180_000]
    assert once["task"]["train_transform"]["short_sides"] == [800, 800] and not table.rows[1].paper
    assert (other["trainer"], other["task"]) == (twice["trainer"], twice["task"])
    assert paper.samples_seen({"trainer": {"max_steps": None, "batch": 16, "epochs": 3}}, 100) == 300
    assert paper.samples_seen({"trainer": {"max_steps": 5, "batch": 16, "epochs": 3}}, 100) == 80
    assert paper.gpu_hours(gflops=10.0, samples=3600 * 1e3, throughput=30.0) == 1.0


def test_in_miniature_rows_that_are_the_same_run_are_one() -> None:
    small = paper.adapted(paper.read("3a"), ["recipe=demo"])
    names = "flows=1; anar=5 flows=3; anar=5 flows=2; anar=3 flows=3; anar=7 flows=3; anar=3 flows=4; anar=3 flows=2"
    assert [row.name for row in small.rows] == names.split("; ")
    assert not any(row.paper for row in small.rows) and "Res152, ANAR-3, 3 flows" in small.rows[3].note
    for key in (key for key in KEYS if paper.read(key).samples):
        configs = paper.configs(paper.adapted(paper.read(key), ["recipe=demo"]))
        assert all(config["backbone"]["depth"] == 18 and config["pretrained"] is None for config in configs), key
        # CBAM is a rival of SE and a baseline, so it stands there twice
        assert len({config["run_dir"] for config in configs}) == len(configs) - (2 if key == "3b" else 0), key
    assert [row["Params"] for row in shown("6", ["recipe=demo"])] == ["0.520M", "1.696M"]
    assert shown("latency", ["recipe=demo"]) == shown("latency")


def test_a_setting_for_all_rows_replaces_the_rows_own() -> None:
    table = paper.read("4")
    more = ["backbone=res18", "trainer.max_steps=10"]
    changed = paper.adapted(table, more)
    assert [row.name for row in changed.rows][1:] == ["flows=1", "anar=3 flows=3", "anar=5 flows=3", "anar=3 flows=4"]
    assert changed.rows[1].note == "stands for Res50, No attention, 2x, multi-scale; Res101, No attention"
    assert changed.overrides(changed.rows[1]) == ["task=coco_fcos", "flows=1", *more]
    kept = paper.adapted(table, ["eta=0.7"])
    assert [row.paper for row in kept.rows] == [row.paper for row in table.rows]
    assert kept.command(kept.rows[2], [0, 1]) == (
        "python train.py -m task=coco_fcos backbone=res50 anar=3 flows=3 eta=0.7 seed=0,1 data.root=PATH"
    )


def finished(folder: Path, settings: list[str], top1: float, protocol: str = "10crop") -> None:
    folder.mkdir(parents=True)
    metrics = {"top1": top1, "top5": 95.0, "loss": 1.0}
    common = {"protocol": "1crop", "metric": {"name": "top1"}, "samples": 50000, "params": 1}
    summary = {**common, "metrics": metrics, "config": runs.composed(*settings)}
    (folder / "summary.json").write_text(json.dumps(summary))
    evaluation = {"values": {**metrics, "top1": top1 + 1}, "samples": 50000, "protocol": protocol}
    (folder / f"evaluation-{protocol}.json").write_text(json.dumps(evaluation))


def test_accuracies_are_those_of_finished_runs_by_the_tables_own_protocol(tmp_path: Path) -> None:
    table = paper.read("multiscale")
    for seed, top1 in ((0, 75.0), (1, 76.0)):
        settings = [*table.overrides(table.rows[0]), f"seed={seed}", "data.root=/elsewhere"]
        finished(tmp_path / f"run{seed}", settings, top1)
    rows = shown("multiscale", folder=tmp_path)
    assert rows[0]["Top-1"] == "76.5 ± 0.7 (n=2)" and rows[0]["Top-1 difference"] == "-0.6"
    assert rows[1]["Top-1"] == rows[1]["Top-1 difference"] == "-"
    assert shown("multiscale", folder=tmp_path, seeds=[1])[0]["Top-1"] == "77.0"
    notes = paper.text_table(table, [1], runs.by_key(runs.find([tmp_path]))).notes
    assert any("10crop, 50,000 samples" in note and "run1" in note and "run0" not in note for note in notes)


def test_gains_are_over_the_first_row_of_the_group(tmp_path: Path) -> None:
    table = PaperTable("x", "x", [Row("plain", "g", ["flows=1"]), Row("tdaf", "g", ["flows=3"], {"top1": "+1.7"})],
                       "Group", ["task=imagenet", "backbone=tiny"], [3, 64, 64], 10, evaluate=["protocol=1crop"],
                       metrics={"top1": "PI"}, relative=True, samples=100)  # fmt: skip
    for number, top1 in enumerate((75.0, 76.2)):
        finished(tmp_path / str(number), table.overrides(table.rows[number]), top1, "1crop")
    rows = shown(table, folder=tmp_path)
    assert [row["PI"] for row in rows] == ["76.0", "+1.2"] and rows[1]["PI difference"] == "-0.5"


@pytest.mark.parametrize(
    ("text", "value", "ours", "difference"),
    [
        ("25.6M", 25_557_032, "25.6M", "0"),
        ("32.244M", 32_244_250, "32.244M", "0"),
        ("164,371", 1_164_370, "1,164,370", "+999,999"),
        ("+31.7%", 23.98, "+24.0%", "-7.7%"),
        ("+1.3% (29%)", 2.2, "+2.2%", "+0.9%"),
    ],
)
def test_numbers_in_the_papers_digits(text: str, value: float, ours: str, difference: str) -> None:
    printed = Printed.parse(text)
    assert (printed.ours(value), printed.difference(value)) == (ours, difference)
    assert Printed.parse("24%", increase=True).ours(0.61) == "+0.6%"
    assert [Printed.parse(other) for other in ("-", ">20%", None, "1x1, c/4")] == [None] * 4


def test_a_table_in_markdown_csv_and_latex() -> None:
    lines = [line for line in tabular.markdown(TEXTS).splitlines() if line.startswith("|")]
    assert {len(re.findall(r"(?<!\\)\|", line)) for line in lines} == {4}
    assert r"Top\_1" in lines[0] and lines[1] == "|---|---:|---|" and r"\[x\] \< 2 \| \\y" in lines[2]
    assert "```bash\n# a_b #1\npython train.py task=x 'a=[1,2]'\n```" in tabular.markdown(TEXTS)
    cells = list(csv.reader(io.StringIO(tabular.comma_separated(TEXTS))))
    assert cells[0] == [*TEXTS.columns, "Command"]
    assert cells[1] == [*TEXTS.rows[0], "python train.py task=x 'a=[1,2]'"] and cells[2] == [*TEXTS.rows[1], ""]
    text = tabular.latex(TEXTS)
    assert r"50\% of R\&D\_1 \{$\pm$\}" in text and r"a\_b \#1 & 78.4 $\pm$ 0.2 (n=3) & {[}x] $<$ 2" in text
    assert r"\textasciitilde{}\textasciicircum{}\$" in text and r"\begin{tabular}{lrl}" in text
    body = "\n".join(line for line in text.splitlines() if not line.startswith("%"))
    assert not re.search(r"(?<!\\)[%_#]", body) and all(ord(letter) < 128 for letter in body)
    assert body.count("{") - body.count(r"\{") == body.count("}") - body.count(r"\}")
    rows = [line for line in body.splitlines() if line.endswith(r"\\")]
    assert len(rows) == 3 and all(len(re.findall(r"(?<!\\)&", line)) == 2 for line in rows)


def test_a_section_of_a_page_is_written_anew_and_the_rest_stays(tmp_path: Path) -> None:
    page = tmp_path / "docs" / "page.md"
    tabular.write_section(page, "<!-- a -->", "<!-- b -->", "one", "# New\n")
    assert page.read_text() == "# New\n\n<!-- a -->\none\n<!-- b -->\n"
    page.write_text(page.read_text() + "\nWords.\n")
    tabular.write_section(page, "<!-- a -->", "<!-- b -->", r"two \1", "")
    assert page.read_text() == "# New\n\n<!-- a -->\ntwo \\1\n<!-- b -->\n\nWords.\n"


def command(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    return call(monkeypatch, list(arguments), lambda: main(script.table, script.__doc__))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("", "give a table"),
        ("1 seed=0", "seeds=0,1,2"),
        ("1 run_dir=x", "runs=FOLDER"),
        ("1 --run", "nothing to train"),
        ("3a protocol=1crop", "for a folder"),
        (". seeds=0", "takes protocol, format and out"),
        ("docs", "no runs"),
    ],
)
def test_a_mistake_is_one_line(arguments: str, words: str, monkeypatch, capsys) -> None:
    assert command(monkeypatch, *arguments.split()) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and words in error and error.count("\n") == 1


def test_an_unknown_table_needs_no_torch() -> None:
    code = "import sys, table; sys.argv[1:] = ['3c']; print(table.main(table.table, ''), 'torch' in sys.modules)"
    done = process(["-c", code], ROOT / "scripts")
    assert done.stdout == "2 False\n" and "there is no such table" in done.stderr and "multiscale" in done.stderr


def test_as_a_user_types_it(tmp_path: Path, monkeypatch, capsys) -> None:
    out = tmp_path / "new" / "table.md"
    assert command(monkeypatch, "1", f"out={out}") == 0
    assert "| ANAR-5, 3D |" in out.read_text() and "1,398,419 | 1,398,419 | 0 |" in out.read_text()
    asked = []
    monkeypatch.setattr(runs, "run_missing", lambda needed, folders, hydra: asked.append((needed, folders, hydra)) or 3)
    words = "6,multiscale --recipe demo --run seeds=0,2 --format=csv trainer.epochs=3 hydra/launcher=x"
    assert command(monkeypatch, *words.split(), f"runs={tmp_path}") == 3
    ((needed, folders, hydra),) = asked
    assert len(needed) == 2 * (2 + 3) and folders == [tmp_path] and hydra == ["hydra/launcher=x"]
    assert needed[1].settings[-3:] == ["recipe=demo", "trainer.epochs=3", "seed=2"]
    assert needed[0].evaluations == [["protocol=hara"]]
    assert needed[-1].names == ["table multiscale: anar=3 flows=3 seed=2"]
    printed = capsys.readouterr().out
    assert printed.startswith("Row,Params,GFLOPs,Acc") and "seed=0,2" in printed
