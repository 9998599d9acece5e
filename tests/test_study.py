"""The study: its plan composes and is fair, its statistics are right, its page is written from runs."""

from __future__ import annotations

import functools
import itertools
import json
import math
import re
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from commands import ROOT, call

from tdaf.cli import build, rehearsal
from tdaf.cli.compose import compose, differences
from tdaf.cli.run import start
from tdaf.cli.script import main
from tdaf.demo import classification
from tdaf.errors import RunError

sys.path.insert(0, str(ROOT / "scripts"))

import study  # noqa: E402
from results import comparison, evidence  # noqa: E402
from results.evidence import holm, interval, paired  # noqa: E402

GROUPS = study.read()
ROWS = {row.name: row for group in GROUPS for row in group.rows}
NETWORK = (
    "anar",
    "flows",
    "eta",
    "attention",
    "backbone.",
    "tdaf.",
    "task._target_",
)  # what rows of one group may differ in


@functools.cache
def composed(row: study.Row) -> dict:
    return compose(list(row.settings))


def test_rows_of_a_group_differ_in_their_network_alone() -> None:
    for group in GROUPS:
        first, *others = (composed(row) for row in group.rows)
        for other in others:
            assert differences(first, other)
            assert [d for d in differences(first, other) if not d.startswith(NETWORK)] == []
    # the miniature keeps the networks
    for row in (row for group in study.read(quick=True) for row in group.rows):
        changed = {d.split(":")[0].split(".")[0] for d in differences(composed(ROWS[row.name]), composed(row))}
        assert changed <= {"demo", "trainer"}


def test_every_row_is_another_run_and_has_its_references() -> None:
    trials = study.trials(GROUPS, Path("runs"), ["gpus=0"])
    assert len({trial.command[-1] for trial in trials}) == len(trials) and "gpus=0" in trials[0].command
    assert [trial.seed for trial in trials] == sorted(trial.seed for trial in trials)
    assert {trial.seed for trial in study.trials(GROUPS, Path("runs"), [], [7])} == {7}
    assert {name for row in ROWS.values() for name in row.against} <= ROWS.keys()
    assert len(ROWS["plain"].seeds) >= 5 and ROWS["TDAF"].seeds == ROWS["plain"].seeds == ROWS["multi-scale"].seeds
    compared = next(group for group in GROUPS if group.name == "comparison")
    chosen = {word.partition("=")[2] for row in compared.rows for word in row.settings if word.startswith("attention=")}
    assert chosen | {"none"} == {"none", "se", "cbam", "nonlocal", "a2", "cgnl", "aa", "sasa", "abn", "resatt", "tdam"}


@torch.no_grad()
@pytest.mark.parametrize("row", ROWS.values(), ids=ROWS)
def test_every_row_builds(row: study.Row) -> None:
    config = composed(row)
    task = build.make(config["task"], "task", data=SimpleNamespace(classes=[str(k) for k in range(10)]))
    pixels = torch.zeros(2, 3, 48, 48, dtype=torch.uint8)
    outputs = build.network(config, task).eval()(pixels)
    assert (outputs["logits"] if isinstance(outputs, dict) else outputs).shape == (2, 10)


PLANS = ("paper", "mechanisms", "ablations", "design", "night", "search")


@pytest.mark.parametrize("name", PLANS)
def test_every_plan_is_of_networks_that_start(name: str) -> None:
    own = [] if name in ("night", "search") else ["task=imagenet", "recipe=demo"]
    groups = study.read(plan=name)
    slugs = [row.slug for group in groups for row in group.rows]
    assert len(set(slugs)) == len(slugs) >= 4
    for group in groups:
        assert set(group.references) <= {row.name for row in group.rows}
        configs = [compose([*study.merged(row, own)]) for row in group.rows if not row.cost_of]
        assert [row.cost_by for row in group.rows if row.cost_of] in ([], ["wider"], ["longer", "wider"])
        for config in configs:
            rehearsal.choices(config)
            assert [d for d in differences(configs[0], config) if not d.startswith(NETWORK)] == []
        assert all(differences(*pair) for pair in itertools.combinations(configs, 2))
        assert not group.timed and all(row.cost_of in ("", "TDAF") for row in group.rows)
    study.check_rest(groups, ["data.root=/x", "trainer.epochs=3"])


def test_the_control_of_the_search_differs_from_it_in_data_and_schedule() -> None:
    search, single = ({row.name.partition(",")[0]: row for row in g.rows} for g in study.read(plan="search"))
    assert search["plain"].seeds == single["plain"].seeds == tuple(range(10))
    for name, row in single.items():
        assert {d.split(":")[0] for d in differences(composed(search[name]), composed(row))} == {
            "demo.kind",
            "trainer.epochs",
        }


def test_a_plan_of_ones_own_and_training_at_equal_cost(tmp_path: Path, monkeypatch, capsys) -> None:
    longer = "{name: longer, settings: [flows=1], cost_of: TDAF}"
    wider = "{name: wider, settings: [flows=1], cost_of: TDAF, cost_by: wider}"
    rows = f"[{{name: plain, settings: [flows=1]}}, {{name: TDAF, settings: []}}, {longer}, {wider}]"
    plan = tmp_path / "mine.yaml"
    plan.write_text(f"title: Mine\nsettings: [flows=3]\nseeds: [0]\nagainst: [plain]\nrows: {rows}\n")
    monkeypatch.chdir(tmp_path)
    own = [
        "task=imagenet",
        "recipe=demo",
        "demo.train=40",
        "demo.val=20",
        "trainer.epochs=2",
        "gpus=0",
        "schedule=multistep",
    ]
    arguments = [f"plan={plan}", "seeds=0,1", *own, "trainer.log_every=1", "trainer.max_steps=1", "trainer.pictures=0"]
    assert call(monkeypatch, [*arguments, "estimate=true"], lambda: main(study.study, study.__doc__)) == 0
    assert re.search(r"^plain: 1 steps of \d+ ms: .* hours a seed, 2 seeds$", capsys.readouterr().out, re.MULTILINE)
    assert not list(tmp_path.glob("runs/**/config.yaml"))
    (group,) = study.read(plan=str(plan))
    (equal,), left_out = comparison.at_equal_cost([group], lambda row: study.merged(row, [*own, "milestones=[1]"]))
    plain, tdaf, longer, wider = (compose([*study.merged(row, own)]) for row in equal.rows)
    # 16 x sqrt(ratio) is 19.2; the multiply-adds of the network that is trained, counted anew, with all its layers
    assert wider["backbone"]["width"] == 19 and wider["trainer"] == plain["trainer"] and not left_out
    assert comparison._cost(wider) == pytest.approx(comparison._cost(tdaf), rel=0.06)
    assert equal.rows[3].note.startswith("width 19, ") and "of TDAF" in equal.rows[3].note
    ratio = 0.0283 / 0.0197  # docs/study.md counts these networks' multiply-adds
    assert tdaf["trainer"] == plain["trainer"] and longer["trainer"]["epochs"] == pytest.approx(2 * ratio, rel=0.01)
    assert longer["schedule"]["decay"]["milestones"] == [1] and equal.rows[2].equal[0].startswith("trainer.epochs=2.8")
    monkeypatch.setattr(study, "run", lambda trials, *how: {} if [start(compose([*t.command])) for t in trials] else {})
    assert call(monkeypatch, arguments, lambda: main(study.study, study.__doc__)) == 0
    page = (tmp_path / "runs/study-mine/study.md").read_text()
    assert page.count("## The masks of") == 1 and re.search(r"all masks have is \d+% of their variance", page)
    assert "| plain | " in page and "- TDAF - plain: " in page and "top-1, 95 % interval" in page


@pytest.mark.parametrize(
    ("settings", "row"),
    [
        (["backbone=vgg11"], "wide: this backbone has no width to change"),
        (["pretrained=imagenet", "backbone=res18"], "wide: pretrained=imagenet: weights have a width of their own"),
        (["attention=se"], "wide: no width is nearer to the multiply-adds of TDAF than its own, 16"),
        (["attention=se", "backbone=res18"], ""),
    ],
)
def test_what_cannot_be_widened_is_left_out_and_said(settings: list[str], row: str) -> None:
    rows = [
        study.Row("TDAF", ("anar=3", "flows=3"), (), (0,)),
        study.Row("wide", ("flows=1",), (), (0,), "", "TDAF", "wider"),
    ]
    own = ["task=imagenet", "recipe=demo", "demo.train=40", "demo.val=20", *settings]
    (group,), left_out = comparison.at_equal_cost(
        [study.Group("x", "X", tuple(rows))], lambda row: study.merged(row, own)
    )
    assert left_out == [row] * bool(row) and len(group.rows) == 2 - bool(row)
    assert row or group.rows[1].equal == ("++backbone.width=72",)  # a multiple of 8, as SE divides channels


def test_what_can_be_said_and_how_many_seeds_it_takes(monkeypatch) -> None:
    # G*Power, two-sided paired t-test, 5 %, 80 %: effect 1 takes 10 pairs, 0.5 takes 34
    assert [comparison.seeds_needed(1.0, difference) for difference in (1.0, 0.5)] == [10, 34]
    assert comparison.seeds_needed(100.0, 0.1) == comparison.MOST
    rows = [study.Row(name, (), against, (0,)) for name, against in (("a", ()), ("b", ("a",)), ("c", ("a",)))]
    values = {"a": {0: 1.0, 1: 2.0, 2: 3.0}, "b": {0: 2.0, 1: 4.0, 2: 6.0}, "c": {0: 1.0}}
    monkeypatch.setattr(comparison, "finished", lambda groups, runs: values)
    monkeypatch.setattr(comparison, "points", lambda runs: runs)
    (line,) = comparison.said([study.Group("x", "X", tuple(rows))], Path(), 1.0)
    # differences 1, 2, 3 as above: p 0.0742; effect 2 / 1
    assert line == "b - a: +2.0 ± 2.5 points (3 seeds, p 0.074, effect +2.00); 1 would take 10 seeds (80% power)"


def test_statistics_are_the_textbooks() -> None:
    mean, half = interval([80.0, 82.0, 84.0, 86.0, 88.0])
    # sd 3.1623, 4 degrees of freedom: t = 2.7764 (any table)
    assert mean == 84 and half == pytest.approx(2.7764 * 3.16228 / math.sqrt(5), rel=1e-4)
    assert math.isnan(interval([3.0])[1])
    by_seed = paired({0: 10.0, 1: 20.0, 2: 33.0}, {2: 30.0, 0: 9.0, 1: 18.0, 7: 0.0})
    # differences 1, 2, 3: t = 2 / (1 / sqrt 3) = 3.4641 with 2 degrees of freedom, two-sided p = 0.0742
    assert by_seed == pytest.approx((2, 4.3027 / math.sqrt(3), 0.0742), rel=1e-3)
    assert paired({0: 1.0}, {0: 2.0}) is None
    assert math.isnan(paired({0: 1.0, 1: 2.0}, {0: 0.0, 1: 1.0}).p)
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.5, 0.9]) == [1.0, 1.0] and holm([]) == []
    assert holm([math.nan, 0.02]) == pytest.approx([math.nan, 0.02], nan_ok=True)


def test_the_outline_of_a_scene_lies_on_the_shape() -> None:
    image, points = classification.imagenet_scene(0, "val", 3, 88)
    x, y = points.T
    area = abs((x * np.roll(y, -1) - y * np.roll(x, -1)).sum()) / 2
    assert 0.11 < area / min(image.size) ** 2 < 0.25


@pytest.mark.parametrize("text", ['{"key": 1, "figures": {', "[1]", "", '{"key": 2, "figures": 3}'])
def test_damaged_and_other_figures_are_measured_again(text: str, tmp_path: Path) -> None:
    path = tmp_path / "runs" / "costs.json"
    path.parent.mkdir()
    path.write_text(text)
    assert evidence.cached(path, 1, lambda: {"plain": (1.0,)}) == {"plain": [1.0]}
    assert evidence.cached(path, 1, lambda: pytest.fail("it is known")) == {"plain": [1.0]}
    assert [file.name for file in path.parent.iterdir()] == ["costs.json"]


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A study of two rows and two seeds, a step each, on data drawn for it."""
    folder = tmp_path_factory.mktemp("study")
    more = [f"demo.root={folder}/data", "demo.train=40", "demo.val=20", "trainer.max_steps=1", "trainer.log_every=1"]
    group = study.read(quick=True)[0]
    rows = tuple(row for row in group.rows if row.name in ("plain", "TDAF"))
    groups = [study.Group(group.name, group.title, rows)]
    return folder, groups, study.trials(groups, folder / "runs", more), more


def folder_of(trial: study.Trial) -> Path:
    return Path(trial.command[-1].removeprefix("run_dir="))


def test_the_whole_way_from_training_to_the_page(small) -> None:
    folder, groups, trials, more = small
    out = folder / "docs" / "study.md"
    with pytest.raises(RunError, match="no run of the study is finished"):
        evidence.write_page(out, groups, more, folder / "runs", "command", rounds=1)
    assert len(study.missing(trials)) == 4
    for trial in trials[1:]:
        assert start(compose(list(trial.command))) == 0
    assert study.run(study.missing(trials), processes=2, threads=1) == {}
    assert study.missing(trials) == []
    out.parent.mkdir()
    out.write_text(f"# Title\n\nWords of ours.\n\n{evidence.BEGIN}\nold\n{evidence.END}\n\nMore words.\n")
    groups = [*groups, study.Group("waiting", "Not begun", (ROWS["anar=5"],))]
    evidence.write_page(out, groups, more, folder / "runs", "the command", rounds=1)
    text = out.read_text()
    assert text.startswith("# Title\n\nWords of ours.\n\n<!-- measured -->") and text.endswith("\n\nMore words.\n")
    assert "old" not in text and "the command" in text and str(folder) not in text and "Not begun" not in text
    rows = {line.split(" | ")[0][2:]: line.split(" | ") for line in text.splitlines() if " | 2 | " in line[:40]}
    for name in ("plain", "TDAF"):
        summaries = [folder_of(trial) / "summary.json" for trial in trials if trial.row.name == name]
        values = [json.loads(path.read_text())["metric"]["last"] for path in summaries]
        assert rows[name][1].startswith(f"{sum(values) / 2:.1f} ± ") and rows[name][2] == "2"
    assert "## The masks of TDAF" in text and all(f"| {name} |" in text for name in evidence.EXCHANGES)
    for picture in ("comparison", "losses"):
        assert (out.parent / "study" / f"{picture}.svg").read_text().lstrip().startswith("<?xml")


def test_a_failed_run_is_named_and_leaves_the_others(small) -> None:
    folder, groups, trials, more = small
    row = trials[0].row
    wrong = study.Trial(row, 0, (*row.settings, "anar=4", f"run_dir={folder}/wrong"))
    failed = study.run([wrong], processes=1, threads=1)
    assert list(failed) == [wrong] and failed[wrong].startswith("error: anar=4")


def test_masks_of_a_network_that_ignores_them(small) -> None:
    """Gates of weight 0 and eta = 1/2: every mask is 1/2 everywhere, so no exchange changes anything."""
    folder, groups, trials, more = small
    trial = next(trial for trial in trials if trial.row.name == "TDAF")
    assert start(compose(list(trial.command))) == 0
    state = torch.load(folder_of(trial) / "checkpoints" / "best.pt", weights_only=True)
    for key, tensor in state["network"].items():
        if ".gates." in key and ".mask." in key:
            tensor.zero_()
    other = folder / "even" / "checkpoints"
    other.mkdir(parents=True)
    torch.save(state, other / "best.pt")
    found = evidence.masks(folder / "even")
    assert len(set(found["top1"].values())) == 1
    assert all(place[2:7] == pytest.approx((0.5, 0.5, 0.5, 0, 0)) for place in found["places"])
    assert [place[:2] for place in found["places"]] == [(2, 1), (2, 2), (3, 1), (3, 2), (3, 3)]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("groups=foo", "groups=foo: the study has comparison, ablations"),
        ("--quick processes=0", "processes=0"),
        ("seeds=0,x", "seeds=0,x"),
        ("foo=1", "foo=1"),
        ("plan=foo", "plan=foo: No such file or directory; give a file, or one of ablations, design, mech"),
        ("plan=paper flows=2", "flows=2: the rows of paper differ in flows"),
        ("plan=paper difference=0", "difference=0: give points, above 0"),
        (f"plan={ROOT}/configs/train.yaml", "is no plan like those in configs/study/: it has no 'title'"),
        ("plan=paper task=imagenet anar=4", "plain: anar=4: give 2, 3, 5 or 7"),
    ],
)
def test_a_mistake_is_a_line(arguments: str, words: str, tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    assert call(monkeypatch, arguments.split(), lambda: main(study.study, study.__doc__)) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and words in error and error.count("\n") == 1
    assert not list(tmp_path.iterdir())


PLAIN = (
    "title: Mine\nsettings: [flows=3]\nseeds: [0]\nagainst: [plain]\nrows:\n- {name: plain, settings: [flows=1]}\n- "
)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("title: [a\n", "line 2: expected ',' or ']'"),
        ("\x00", "special characters are not allowed"),
        ("settings: []\nseeds: [0]\ngroups: [{title: A, rows: [3]}]\n", "group 1 has no 'against'"),
        ("- 3\n", "it has no title, against, rows, settings, seeds"),
        (PLAIN + "{name: x}", "row 2 has no 'settings'"),
        (PLAIN + "{name: x, settings: [flows]}", "flows is no setting like flows=3"),
        (PLAIN + "{name: x, settings: flows=1}", "settings of row 2 is no list"),
        (PLAIN + "{name: x, settings: [], extra: 3}", "row 2 has 'extra'; known are name, settings, seeds, against"),
        (PLAIN + "{name: plain, settings: []}", "two rows are called plain"),
        (PLAIN + "{name: x, settings: [], seeds: [a]}", "a is no seed"),
        (PLAIN + "{name: x, settings: [], against: [y]}", "there is no row y"),
        (PLAIN + "{name: x, settings: [], cost_of: y}", "there is no row y"),
        (PLAIN + "{name: x, settings: [], cost_of: x}", "x is to cost what it costs itself"),
        (PLAIN + "{name: x, settings: [], cost_of: plain, cost_by: y}", "cost_by is longer or wider, not y"),
        (PLAIN + "{name: x, settings: [anar=4]}", "error: x: anar=4: give 2, 3, 5 or 7"),
        (PLAIN + "{name: x, settings: [foo=1]}", "error: x: foo=1: there is no setting foo"),
    ],
)
def test_a_mistake_in_a_plan_is_a_line(text: str, words: str, tmp_path: Path, monkeypatch, capsys) -> None:
    plan = tmp_path / "mine.yaml"
    plan.write_text(text)
    monkeypatch.chdir(tmp_path)
    arguments = [f"plan={plan}", "task=imagenet", "recipe=demo"]
    assert call(monkeypatch, arguments, lambda: main(study.study, study.__doc__)) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and words in error and error.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["mine.yaml"]
