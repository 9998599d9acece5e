"""Rows against each other: tests paired by seed, what can be said so far, what a study will cost."""

from __future__ import annotations

import functools
import math
import re
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from scipy import stats

from benchmarks.networks import training_step
from benchmarks.timing import interleaved, timed
from results.runs import Run, composed, find
from tdaf.build import takes
from tdaf.cli import build
from tdaf.cli.rehearsal import meta_network
from tdaf.engine.data import TrainingOrder
from tdaf.engine.precision import Precision
from tdaf.engine.summary import gflops
from tdaf.errors import UserError

if TYPE_CHECKING:
    from study import Group, Row, Trial
    from tdaf.task import Task

LEVEL, POWER = 0.95, 0.8
MOST = 1000  # seeds that are counted to
METRICS = {"top1": ("top-1", 1.0), "AP": ("AP", 100.0)}  # what a metric is called, and what makes points of it
ROUNDS = 7  # of timing
CPU = torch.device("cpu")


class Paired(NamedTuple):
    """The mean of the differences of equal seeds, half the width of its interval, and the p of a paired t-test."""

    difference: float
    half: float
    p: float


def interval(values: Sequence[float]) -> tuple[float, float]:
    """(mean, half the width of the t interval at `LEVEL`); nan for the latter with fewer than two values."""
    if len(values) < 2:
        return values[0], math.nan
    return float(np.mean(values)), float(stats.sem(values) * stats.t.ppf((1 + LEVEL) / 2, len(values) - 1))


def paired(ours: Mapping[Any, float], theirs: Mapping[Any, float]) -> Paired | None:
    """`ours` minus `theirs`, seed by seed; None with fewer than two seeds in common.

    p is two-sided, and nan where all differences are the same.
    """
    differences = [ours[seed] - theirs[seed] for seed in ours if seed in theirs]
    if len(differences) < 2:
        return None
    p = math.nan if len({*differences}) == 1 else float(stats.ttest_1samp(differences, 0).pvalue)
    return Paired(*interval(differences), p)


def holm(p: Sequence[float]) -> list[float]:
    """Adjusted for testing all of them at once (Holm 1979), in the order given; nan stays and counts as no test."""
    p = np.asarray(p, float)
    order, adjusted = np.argsort(p), np.empty_like(p)  # nan comes last
    factors = np.count_nonzero(~np.isnan(p)) - np.arange(len(p))
    adjusted[order] = np.maximum.accumulate(np.minimum(1, factors * p[order]))
    return adjusted.tolist()


def seeds_needed(deviation: float, difference: float) -> int:
    """Seeds with which a paired t-test at `LEVEL` sees a difference with a chance of `POWER`, the differences of the
    seeds having this standard deviation."""
    for count in range(2, MOST):
        freedom, shift = count - 1, difference * math.sqrt(count) / max(deviation, 1e-12)
        bound = stats.t.ppf((1 + LEVEL) / 2, freedom)
        if stats.nct.sf(bound, freedom, shift) + stats.nct.cdf(-bound, freedom, shift) >= POWER:
            return count
    return MOST


def finished(groups: Sequence[Group], runs: Path) -> dict[str, dict[int, Run]]:
    """By row and seed: the finished runs below `runs`."""
    by_slug: dict[str, dict[int, Run]] = defaultdict(dict)
    for run in find([runs]):
        if match := re.fullmatch(r"(.+)-seed(\d+)", run.folder.name):
            by_slug[match[1]][int(match[2])] = run
    return {row.name: by_slug[row.slug] for group in groups for row in group.rows if row.slug in by_slug}


def points(runs: Mapping[str, dict[int, Run]]) -> dict[str, dict[int, float]]:
    """By row and seed: the metric of the last weights, in points of 100. One that is not defined is left out."""
    last = {name: {seed: run.summary["metric"] for seed, run in own.items()} for name, own in runs.items()}
    return {
        name: {s: m["last"] * METRICS.get(m["name"], ("", 1.0))[1] for s, m in own.items() if m["last"] is not None}
        for name, own in last.items()
    }


def said(groups: Sequence[Group], runs: Path, difference: float) -> list[str]:
    """What can be said of the finished runs: of each row and reference the paired difference, its p adjusted for the
    table (Holm), its effect size (mean over standard deviation of the differences), and how many seeds a difference of
    so many points would take."""
    values, lines = points(finished(groups, runs)), []
    for group in groups:
        for reference in group.references:
            tests = {row.name: paired(values.get(row.name, {}), values.get(reference, {})) for row in group.rows}
            tests = {row.name: tests[row.name] for row in group.rows if reference in row.against and tests[row.name]}
            for (name, test), p in zip(tests.items(), holm([test.p for test in tests.values()]), strict=True):
                both = [seed for seed in values[name] if seed in values[reference]]
                deviation = float(np.std([values[name][s] - values[reference][s] for s in both], ddof=1))
                effect = f", p {p:.3f}, effect {test.difference / deviation:+.2f}" if deviation else ""
                need = seeds_needed(deviation, difference) if deviation else 0
                seeds = f"; {difference:g} would take {need}{' or more' * (need == MOST)} seeds ({POWER:.0%} power)"
                text = f"{name} - {reference}: {difference_text(test)} points ({len(both)} seeds{effect})"
                if not any(line.startswith(f"{reference} - {name}: ") for line in lines):
                    lines.append(text + seeds * bool(deviation))
    return lines


def at_equal_cost(groups: Sequence[Group], command: Callable[[Row], Sequence[str]]) -> tuple[list[Group], list[str]]:
    """The groups, rows with `cost_of` made so that their multiply-adds in training are those of the row that it names;
    and a line on each row that cannot be, which is left out. command: a row's settings.

    longer: epochs, steps and milestones grow by the ratio of one sample's. wider: the backbone's `width` is the one
    whose network is nearest; the note says how near.
    """
    rows, left_out = {row.name: row for group in groups for row in group.rows}, []

    def equal(row: Row) -> Row | None:
        if not row.cost_of:
            return row
        target = _cost(composed(*command(rows[row.cost_of])))
        if row.cost_by == "longer":
            return _longer(row, command(row), target)
        try:
            return _wider(row, command(row), target)
        except UserError as error:
            left_out.append(f"{row.name}: {error}")
            return None

    made = [replace(group, rows=tuple(filter(None, map(equal, group.rows)))) for group in groups]
    return made, left_out


def _longer(row: Row, command: Sequence[str], target: float) -> Row:
    config = composed(*command)
    ratio, trainer, decay = target / _cost(config), config["trainer"], config["schedule"]["decay"]
    settings = [f"trainer.epochs={trainer['epochs'] * ratio:.4g}"] if trainer["epochs"] else []
    settings += [f"trainer.max_steps={round(trainer['max_steps'] * ratio)}"] if trainer["max_steps"] else []
    if "milestones" in decay:
        later = ",".join(str(round(milestone * ratio)) for milestone in decay["milestones"])
        settings.append(f"schedule.decay.milestones=[{later}]")
    return replace(row, equal=tuple(settings))


def _wider(row: Row, command: Sequence[str], target: float) -> Row:
    config = composed(*command)
    backbone = config["backbone"]
    if not takes(backbone, "width", "backbone"):
        raise UserError("this backbone has no width to change")
    if config["pretrained"]:
        raise UserError(f"pretrained={config['pretrained']}: weights have a width of their own")
    task = build.task(config)

    @functools.cache
    def cost(width: int) -> float:
        return _cost(composed(*command, f"++backbone.width={width}"), task)

    width = backbone.get("width", 64)  # ResNet's own
    grain = 8 if backbone.get("attention") else 1  # mechanisms divide channels
    growth = math.sqrt(target / _cost(config, task))  # convolutions grow by the square
    width = max(width, grain * round(width * growth / grain))
    step = grain if cost(width) < target else -grain
    while (cost(width + step) - target) * step < 0:
        width += step
    width = min(width, width + step, key=lambda one: abs(cost(one) - target))
    if width == backbone.get("width", 64):
        raise UserError(f"no width is nearer to the multiply-adds of {row.cost_of} than its own, {width}")
    note = f"width {width}, {cost(width) / target:.2f} times the multiply-adds of {row.cost_of}"
    return replace(row, equal=(f"++backbone.width={width}",), note=f"{row.note}: {note}".removeprefix(": "))


def _cost(config: dict[str, Any], task: Task | None = None) -> float:
    task = task or build.task(config)
    return gflops(meta_network(config, task), task.dataset("val"), torch.device("meta"))


def estimate(trials: Sequence[Trial], processes: int, rounds: int = 3) -> list[str]:
    """What runs will cost on this machine: of each row the steps, a step's time, hours a seed; then all of them. Steps
    are timed one at a time here, in training alone; reading, evaluation and neighbours come on top."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    lines, total = [], 0.0
    for name in dict.fromkeys(trial.row.name for trial in trials):
        own = [trial for trial in trials if trial.row.name == name]
        step, steps = _step(own[0].command, device), _steps(composed(*own[0].command))
        timed(step, 1, device)
        seconds = timed(step, rounds, device)
        hours = steps * seconds / 3600
        total += hours * len(own)
        lines.append(f"{name}: {steps} steps of {seconds * 1000:.0f} ms: {hours:.2g} hours a seed, {len(own)} seeds")
    return [*lines, f"all: {total:.2g} hours of {device}, {total / processes:.2g} by {processes} at a time"]


def _steps(config: dict[str, Any]) -> int:
    trainer, samples = config["trainer"], len(build.task(config).dataset("train"))
    an_epoch = TrainingOrder(samples, trainer["batch"], seed=0).steps_per_epoch
    whole = trainer["epochs"] and math.ceil(trainer["epochs"] * an_epoch)
    return min(whole or math.inf, trainer["max_steps"] or math.inf)


def step_times(rows: Sequence[Row], more: Sequence[str], rounds: int = ROUNDS) -> dict[str, float]:
    """By row name: the median ratio of its training step (forward, loss, backward, optimizer) to that of the first row,
    timed in turns in this process, on a training batch of the run's own size. The first row's is itself, again."""
    times = interleaved({row.name: _step([*row.settings, *more]) for row in rows}, rounds, torch.device("cpu"))
    first = rows[0].name
    return {first: times.null().median, **{row.name: times.ratio(row.name, first).median for row in rows[1:]}}


def _step(settings: Sequence[str], device: torch.device = CPU) -> Callable[[], None]:
    config = composed(*settings)
    task = build.task(config)
    precision = Precision("fp32" if device == CPU else config["trainer"]["precision"], device)
    dataset = task.dataset("train")
    batch = precision.move(dataset.collate([dataset[i] for i in range(config["trainer"]["batch"])]))
    return training_step(build.network(config, task), config, task, batch, precision)


def difference_text(test: Paired | None) -> str:
    return f"{test.difference:+.1f} ± {test.half:.1f}" if test else "-"
