"""The study: its plan composes and is fair, its statistics are right, its page is written from runs. No long training."""

from __future__ import annotations

import functools
import json
import math
import sys
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "scripts"))

import study  # noqa: E402
from tdaf.cli import build  # noqa: E402
from tdaf.cli.compose import compose, differences  # noqa: E402
from tdaf.cli.run import start  # noqa: E402
from studies import evidence, kept, masks, page, plan, trials  # noqa: E402
from studies.evidence import holm, interval, paired  # noqa: E402
from tdaf.demo import classification  # noqa: E402
from tdaf.errors import RunError, UserError  # noqa: E402

GROUPS = plan.read()
ROWS = {row.name: row for group in GROUPS for row in group.rows}
NETWORK = ("anar", "flows", "eta", "attention", "backbone.", "tdaf.", "task._target_")  # what rows of one group may differ in


@functools.lru_cache(maxsize=None)
def composed(row: plan.Row) -> dict:
    return compose(list(row.settings))


def test_rows_of_a_group_differ_in_their_network_alone():
    for group in GROUPS:
        first, *others = (composed(row) for row in group.rows)
        for other in others:
            assert differences(first, other)
            assert [d for d in differences(first, other) if not d.startswith(NETWORK)] == []


def test_every_row_is_another_run_and_has_its_references():
    folders = Counter(trial.folder for trial in plan.trials(GROUPS, Path("runs"), []))
    assert max(folders.values()) == 1
    assert {name for row in ROWS.values() for name in row.against} <= ROWS.keys()
    assert len(ROWS["plain"].seeds) >= 5 and ROWS["TDAF"].seeds == ROWS["plain"].seeds == ROWS["multi-scale"].seeds
    compared = next(group for group in GROUPS if group.name == "comparison")
    chosen = {word.partition("=")[2] for row in compared.rows for word in row.settings if word.startswith("attention=")}
    assert chosen | {"none"} == {
        "none", "se", "cbam", "nonlocal", "a2", "cgnl", "aa", "sasa", "abn", "resatt", "tdam"
    }


@torch.no_grad()
@pytest.mark.parametrize("row", ROWS.values(), ids=ROWS)
def test_every_row_builds(row):
    config = composed(row)
    task = build.make(config["task"], "task", data=SimpleNamespace(classes=[str(k) for k in range(10)]))
    pixels = torch.zeros(2, 3, 48, 48, dtype=torch.uint8)
    outputs = build.network(config, task).eval()(pixels)
    assert (outputs["logits"] if isinstance(outputs, dict) else outputs).shape == (2, 10)


def test_seeds_of_a_command_come_to_the_pages_own():
    asked = plan.read(groups=["schedule"], seeds=[7])
    assert [group.name for group in asked] == ["schedule"] and {row.seeds for row in asked[0].rows} == {(7,)}
    both = plan.with_seeds(GROUPS, [7, 0])
    assert [group.name for group in both] == [group.name for group in GROUPS]
    for before, after in zip(ROWS.values(), (row for group in both for row in group.rows), strict=True):
        assert after.seeds == (*before.seeds, 7) and after.settings == before.settings


def test_seeds_come_in_turns():
    seeds = [trial.seed for trial in plan.trials(GROUPS, Path("runs"), [])]
    assert seeds == sorted(seeds)


def test_the_miniature_keeps_the_networks():
    small = {row.name: row for group in plan.read(quick=True) for row in group.rows}
    for name, row in small.items():
        changed = {d.split(":")[0].split(".")[0] for d in differences(composed(ROWS[name]), composed(row))}
        assert changed <= {"demo", "trainer"}


def test_an_unknown_group_is_named():
    with pytest.raises(UserError, match="groups=others: the study has comparison, ablations"):
        plan.read(groups=["others"])


def test_interval_is_students():
    mean, half = interval([80.0, 82.0, 84.0, 86.0, 88.0])
    # sd 3.1623, 4 degrees of freedom: t = 2.7764 (any table)
    assert mean == 84 and half == pytest.approx(2.7764 * 3.16228 / math.sqrt(5), rel=1e-4)
    assert math.isnan(interval([3.0])[1])


def test_pairs_are_made_by_seed():
    found = paired({0: 10.0, 1: 20.0, 2: 33.0}, {2: 30.0, 0: 9.0, 1: 18.0, 7: 0.0})
    assert found.seeds == 3 and found.difference == pytest.approx(2)
    # differences 1, 2, 3: t = 2 / (1 / sqrt 3) = 3.4641 with 2 degrees of freedom, two-sided p = 0.0742
    assert found.p == pytest.approx(0.0742, abs=1e-4) and found.half == pytest.approx(4.3027 / math.sqrt(3), rel=1e-4)
    assert paired({0: 1.0}, {0: 2.0}) is None
    assert math.isnan(paired({0: 1.0, 1: 2.0}, {0: 0.0, 1: 1.0}).p)


def test_p_values_adjusted_after_holm():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.5, 0.9]) == [1.0, 1.0]
    adjusted = holm([math.nan, 0.02])
    assert math.isnan(adjusted[0]) and adjusted[1] == 0.02


def test_the_scene_is_the_picture_and_its_outline_lies_on_the_shape():
    image, points = classification.imagenet_scene(0, "val", 3, 88)
    covered = polygon_area(points) / min(image.size) ** 2
    assert 0.11 < covered < 0.25


def polygon_area(points) -> float:
    x, y = points[:, 0], points[:, 1]
    return abs(sum(x * y.take(range(1, len(y) + 1), mode="wrap") - y * x.take(range(1, len(x) + 1), mode="wrap"))) / 2


@pytest.mark.parametrize("text", ['{"plain": {"median": 1.', "[1]", ""])
def test_damaged_figures_are_measured_again(text, tmp_path):
    path = tmp_path / "runs" / "costs.json"
    assert kept.read(path) == {}
    path.parent.mkdir()
    path.write_text(text)
    assert kept.read(path) == {}
    kept.keep(path, {"plain": 1.0})
    assert kept.read(path) == {"plain": 1.0} and [file.name for file in path.parent.iterdir()] == ["costs.json"]


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A study of two rows and two seeds, a step each, on data drawn for it."""
    folder = tmp_path_factory.mktemp("study")
    more = [f"demo.root={folder}/data", "demo.train=40", "demo.val=20", "trainer.max_steps=1", "trainer.log_every=1"]
    groups = plan.read(quick=True)
    groups = [plan.Group(g.name, g.title, tuple(r for r in g.rows if r.name in ("plain", "TDAF"))) for g in groups[:1]]
    every = plan.trials(groups, folder / "runs", more)
    return folder, groups, every, more


def test_the_whole_way_from_training_to_the_page(small, monkeypatch):
    folder, groups, every, more = small
    out = folder / "docs" / "study.md"
    with pytest.raises(RunError, match="no run of the study is finished"):
        page.write(out, groups, more, folder / "runs", "command", rounds=1)
    assert len(trials.missing(every)) == 4
    for trial in every[1:]:
        assert start(compose(list(trial.command))) == 0
    assert trials.run(trials.missing(every), processes=2, threads=1) == {}
    assert trials.missing(every) == []
    out.parent.mkdir()
    out.write_text(f"# Title\n\nWords of ours.\n\n{page.BEGIN}\nold\n{page.END}\n\nMore words.\n")
    groups = [*groups, plan.Group("waiting", "Not begun", (ROWS["anar=5"],))]
    page.write(out, groups, more, folder / "runs", "the command", rounds=1)
    text = out.read_text()
    assert text.startswith("# Title\n\nWords of ours.\n\n<!-- measured -->") and text.endswith("\n\nMore words.\n")
    assert "old" not in text and "the command" in text and str(folder) not in text and "Not begun" not in text
    for trial in every:
        value = json.loads((trial.folder / "summary.json").read_text())["metric"]["last"]
        assert evidence.outcomes(every)[trial.row.name].values[trial.seed] == value
    table = [line for line in text.splitlines() if line.startswith(("| plain", "| TDAF"))]
    assert [line.split("|")[3].strip() for line in table] == ["2", "2"]
    assert "## The masks of TDAF" in text and all(f"| {name} |" in text for name in masks.EXCHANGES)
    for picture in ("comparison", "losses"):
        assert (out.parent / "study" / f"{picture}.svg").read_text().lstrip().startswith("<?xml")


def test_a_failed_run_is_named_and_leaves_the_others(small):
    folder, groups, every, more = small
    wrong = plan.Trial(every[0].row, 0, folder / "wrong", (*every[0].row.settings, "anar=4", f"run_dir={folder}/wrong"))
    failed = trials.run([wrong], processes=1, threads=1)
    assert list(failed) == [wrong] and failed[wrong] == "error: anar=4: give 2, 3, 5 or 7"


def test_masks_of_a_network_that_ignores_them(small):
    """Gates of weight 0 and eta = 1/2: every mask is 1/2 everywhere, so no exchange changes anything."""
    folder, groups, every, more = small
    trial = next(trial for trial in every if trial.row.name == "TDAF")
    assert start(compose(list(trial.command))) == 0
    state = torch.load(trial.folder / "checkpoints" / "best.pt", weights_only=True)
    for key, tensor in state["network"].items():
        if ".gates." in key and ".mask." in key:
            tensor.zero_()
    other = folder / "even" / "checkpoints"
    other.mkdir(parents=True)
    torch.save(state, other / "best.pt")
    found = masks.masks(folder / "even")
    assert len(set(found.top1.values())) == 1
    assert all(values[:5] == pytest.approx((0.5, 0.5, 0.5, 0, 0)) for values in found.places.values())
    assert evidence and masks.Evidence.of(json.loads(json.dumps(found.plain()))) == found


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["groups=foo"], "groups=foo: the study has"),
        (["processes=0"], "processes=0: give a whole number, 1 or more"),
        (["seeds=0,x"], "seeds=x: give a whole number, 0 or more"),
        (["foo=1"], "foo=1: this script has no setting foo"),
    ],
)
def test_mistakes(arguments, words):
    with pytest.raises(UserError, match=words):
        study.study(arguments)
