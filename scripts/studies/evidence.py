"""What the runs say, and how sure it is: means with confidence intervals, and tests paired by seed."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from scipy import stats

from studies.plan import Row, Trial

LEVEL = 0.95


@dataclass(frozen=True)
class Outcome:
    """A row's finished runs. values: the metric of the last weights by seed, in percent. samples: counted in each."""

    row: Row
    values: dict[int, float] = field(default_factory=dict)
    params: int | None = None
    gflops: float | None = None
    samples: int | None = None


@dataclass(frozen=True)
class Paired:
    """The mean of the differences of equal seeds, half the width of its interval, and the p of a paired t-test."""

    difference: float
    half: float
    p: float
    seeds: int


def outcomes(trials: Sequence[Trial]) -> dict[str, Outcome]:
    """By row, from the summaries of the runs that are finished."""
    found: dict[str, Outcome] = {}
    for trial in trials:
        outcome = found.setdefault(trial.row.name, Outcome(trial.row))
        try:
            summary = json.loads((trial.folder / "summary.json").read_text())
        except (FileNotFoundError, ValueError):
            continue
        outcome.values[trial.seed] = summary["metric"]["last"]
        about = {key: summary[key] for key in ("params", "gflops", "samples")}
        found[trial.row.name] = Outcome(trial.row, outcome.values, **about)
    return found


def interval(values: Sequence[float], level: float = LEVEL) -> tuple[float, float]:
    """(mean, half the width of the t interval at `level`); nan for the latter with fewer than two values."""
    mean = sum(values) / len(values)
    if len(values) < 2:
        return mean, math.nan
    return mean, float(stats.sem(values) * stats.t.ppf((1 + level) / 2, len(values) - 1))


def paired(ours: Mapping[int, float], theirs: Mapping[int, float]) -> Paired | None:
    """`ours` minus `theirs`, seed by seed; None with fewer than two seeds in common.

    p is two-sided, and nan where all differences are the same.
    """
    seeds = sorted(ours.keys() & theirs.keys())
    if len(seeds) < 2:
        return None
    differences = [ours[seed] - theirs[seed] for seed in seeds]
    mean, half = interval(differences)
    p = math.nan if len(set(differences)) == 1 else float(stats.ttest_1samp(differences, 0).pvalue)
    return Paired(mean, half, p, len(seeds))


def holm(p: Sequence[float]) -> list[float]:
    """Adjusted for testing all of them at once (Holm 1979), in the order given; nan stays and counts as no test."""
    order = sorted((index for index, value in enumerate(p) if not math.isnan(value)), key=lambda index: p[index])
    adjusted, highest = [math.nan] * len(p), 0.0
    for rank, index in enumerate(order):
        highest = max(highest, min(1.0, (len(order) - rank) * p[index]))
        adjusted[index] = highest
    return adjusted
