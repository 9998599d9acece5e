"""The page of the study: a table a group, what the masks are worth, how it was measured."""

from __future__ import annotations

import datetime
import json
import math
import os
import re
from collections.abc import Sequence
from pathlib import Path

from benchmarks.machine import processor
from tdaf.engine.summary import commit, versions
from studies import kept, plan, plots
from studies.costs import step_times
from studies.evidence import Outcome, Paired, holm, interval, outcomes, paired
from studies.masks import EXCHANGES, Evidence, masks
from studies.plan import Group, Row, slug
from tdaf.errors import RunError

BEGIN, END = "<!-- measured -->", "<!-- end of what was measured -->"
TITLE = "# Does top-down attention help, measured here?"
LOOKED_INTO = ("TDAF", "TDAF, 16 epochs")  # rows whose masks are looked into


def write(out: Path, groups: list[Group], more: list[str], runs: Path, command: str, rounds: int | None) -> None:
    """Writes the measured part of `out`, and its plots into a folder of the same name; the rest of a page stays. It is
    of all finished runs of the groups; a group that has none is not on the page.

    rounds: of the timing, instead of its own number. Raises RunError where no run is finished.
    """
    trials = plan.trials(groups, runs, more)
    found = outcomes(trials)
    groups = [group for group in groups if any(found[row.name].values for row in group.rows)]
    if not groups:
        raise RunError(f"{runs}: no run of the study is finished, so there is nothing to write")
    rows = [row for group in groups for row in group.rows if group.timed and found[row.name].values]
    costs = step_times(rows, more, runs / "costs.json", **({"rounds": rounds} if rounds else {}))
    parts = [_about(found, command)]
    for group in groups:
        parts.append(f"## {group.title}\n\n{_table(group, found, costs)}")
        notes = [f"- {row.name}: {row.note}" for row in group.rows if row.note]
        parts += ["\n".join(notes)] if notes else []
        picture = plots.accuracies(out.with_suffix("") / f"{group.name}.svg", group, found)
        parts.append(_picture(out, picture, f"top-1 of {group.title.lower()}: every seed, means, 95 % intervals"))
    curves = plots.losses(out.with_suffix("") / "losses.svg", trials)
    parts.append("## Training losses\n\n" + _picture(out, curves, "training loss by step, mean of the seeds"))
    for name in LOOKED_INTO:
        folders = [trial.folder for trial in trials if trial.row.name == name and trial.seed in found[name].values]
        if folders:
            parts.append(_masks(name, folders, runs / f"masks-{slug(name)}.json"))
    _put(out, "\n\n".join(parts))


def _put(out: Path, text: str) -> None:
    before = out.read_text(encoding="utf-8") if out.exists() else f"{TITLE}\n\n{BEGIN}\n{END}\n"
    section = f"{BEGIN}\n{text}\n{END}"
    measured = re.compile(f"{re.escape(BEGIN)}.*?{re.escape(END)}", re.DOTALL)
    after = measured.sub(lambda match: section, before) if measured.search(before) else f"{before}\n{section}\n"
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(after, encoding="utf-8")


def _about(found: dict[str, Outcome], command: str) -> str:
    counted = sorted({outcome.samples for outcome in found.values() if outcome.samples})
    runs = sum(len(outcome.values) for outcome in found.values())
    known = ", ".join(f"{name} {version}" for name, version in versions().items())
    return (
        f"{datetime.date.today().isoformat()}, commit {commit() or '-'}. {processor()}, {os.cpu_count()} cores, no GPU. "
        f"{known}. {runs} runs, each evaluated on {' or '.join(map(str, counted))} images:\n\n    {command}"
    )


def _table(group: Group, found: dict[str, Outcome], costs: dict) -> str:
    references = group.references
    inside = {row.name for row in group.rows}
    shown = [*(found[name].row for name in references if name not in inside and name in found), *group.rows]
    tests = {name: _tests(group.rows, name, found) for name in references}
    head = ["network", "top-1, 95 % interval", "seeds"]
    head += [cell for name in references for cell in (f"to {name}", "p")]
    head += ["parameters", "GFLOPs", "training step"]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for row in shown:
        outcome = found[row.name]
        cells = [row.name, _mean(outcome), str(len(outcome.values))]
        cells += [cell for name in references for cell in tests[name].get(row.name, ("-", "-"))]
        cells += [f"{outcome.params / 1e3:.1f}k" if outcome.params else "-"]
        cells += [f"{outcome.gflops:.4f}" if outcome.gflops else "-"]
        cells += [f"{costs[row.name].median:.2f}" if row.name in costs else "-"]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _tests(rows: Sequence[Row], reference: str, found: dict[str, Outcome]) -> dict[str, tuple[str, str]]:
    """By row, the difference to the reference and its p, adjusted for all rows of this table that are tested with it."""
    made: dict[str, Paired] = {}
    for row in rows:
        compared = reference in row.against and reference in found
        test = paired(found[row.name].values, found[reference].values) if compared else None
        if test is not None:
            made[row.name] = test
    adjusted = holm([test.p for test in made.values()])
    return {
        name: (f"{test.difference:+.1f} ± {test.half:.1f}", "-" if math.isnan(p) else f"{p:.3f}")
        for (name, test), p in zip(made.items(), adjusted, strict=True)
    }


def _mean(outcome: Outcome) -> str:
    if not outcome.values:
        return "-"
    mean, half = interval(list(outcome.values.values()))
    return f"{mean:.1f}" if math.isnan(half) else f"{mean:.1f} ± {half:.1f}"


def _picture(out: Path, picture: Path, words: str) -> str:
    return f"![{words}]({picture.relative_to(out.parent).as_posix()})"


def _masks(name: str, folders: list[Path], cache: Path) -> str:
    """Two tables on the masks of a row's runs, means over the seeds; kept in `cache`, as they take a while."""
    key = json.dumps([str(folder) for folder in folders])
    known = kept.read(cache)
    if known.get("runs") != key:
        known = {"runs": key, "found": [masks(folder).plain() for folder in folders]}
        kept.keep(cache, known)
    evidence = [Evidence.of(plain) for plain in known["found"]]
    lines = ["| in the place of the masks | top-1, 95 % interval | to its own |", "|---|---|---|"]
    own = dict(enumerate(each.top1["its own"] for each in evidence))
    for exchange in EXCHANGES:
        values = dict(enumerate(each.top1[exchange] for each in evidence))
        test = paired(values, own) if exchange != "its own" else None
        mean, half = interval(list(values.values()))
        cells = [exchange, f"{mean:.1f}" if math.isnan(half) else f"{mean:.1f} ± {half:.1f}"]
        lines.append(f"| {' | '.join(cells)} | {f'{test.difference:+.1f} ± {test.half:.1f}' if test else '-'} |")
    head = ["flow", "stage", "mean", "on the object", "beside it", "closed", "open", "within", "fixed", "varying"]
    more = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for flow, stage in evidence[0].places:
        cells = [each.places[flow, stage] for each in evidence]
        means = [sum(cell[column] for cell in cells) / len(cells) for column in range(len(cells[0]))]
        more.append(f"| {flow} | {stage} | " + " | ".join(f"{value:.3f}" for value in means) + " |")
    return f"## The masks of {name}\n\n" + "\n".join(lines) + "\n\n" + "\n".join(more)
