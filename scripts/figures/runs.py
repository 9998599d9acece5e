"""The numbers of finished and unfinished runs, and what to call each run."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tables.differing import ABSENT, differing

from tdaf.cli.compose import Config, from_folder, identity
from tdaf.cli.overrides import close
from tdaf.errors import UserError

SPLITS = ("train", "val")
ROOTS = ("data.root", "demo.root")  # where data lie makes no other run


@dataclass(frozen=True)
class Run:
    """events: the lines of metrics.jsonl, of each split those that its run has not taken back, in their order."""

    folder: Path
    config: Config
    events: list[dict[str, Any]]

    def curve(self, name: str, x: str) -> list[tuple[float, float]]:
        """The number `name` ("val/top1") over "epoch" or "step"."""
        split, _, key = name.partition("/")
        return [(event[x], event[key]) for event in self.events if event["split"] == split and _is_number(event, key)]

    def known(self) -> list[str]:
        """What there are curves of."""
        names = {
            f"{event['split']}/{key}": None
            for split in SPLITS
            for event in self.events
            if event["split"] == split
            for key in event
            if key not in ("step", "epoch", "split") and _is_number(event, key)
        }
        return list(names)

    def metric(self) -> str | None:
        """The task's own: the first number of an evaluation; summary.json says it too, at the end of a run."""
        try:
            return f"val/{json.loads((self.folder / 'summary.json').read_text())['metric']['name']}"
        except (OSError, ValueError, KeyError, TypeError):
            return next((name for name in self.known() if name.startswith("val/")), None)


def read(folders: Sequence[Path]) -> list[Run]:
    """The runs in these folders or below them, each once. Raises UserError where there are none, and for runs of
    different tasks, whose numbers mean different things."""
    places = dict.fromkeys(place for folder in folders for place in _places(folder))
    runs = [Run(place, from_folder(place), _events(place / "metrics.jsonl")) for place in places]
    first = runs[0]
    for run in runs:
        if run.config.get("name") != first.config.get("name"):
            one, other = (f"{r.folder} is of {r.config.get('name')}" for r in (first, run))
            raise UserError(f"these are runs of different tasks: {one}, {other}; give those of one task")
    return runs


def numbers(runs: Sequence[Run], given: str | None) -> list[str]:
    """Which numbers are drawn. Raises UserError for one that no run has."""
    known = list(dict.fromkeys(name for run in runs for name in run.known()))
    if not known:
        raise UserError(f"{runs[0].folder}: not one number in metrics.jsonl yet")
    if not given:
        usual = ["train/loss", next(filter(None, (run.metric() for run in runs)), None)]
        return [name for name in usual if name in known] or known[:1]
    chosen = [name.strip() for name in given.split(",") if name.strip()]
    for name in chosen:
        if name not in known:
            hint = close(name.replace("/", "."), [other.replace("/", ".") for other in known]).replace(".", "/")
            raise UserError(f"what={name}: no run has this number{hint or '; there are ' + ', '.join(known)}")
    return chosen


def labels(runs: Sequence[Run]) -> list[str]:
    """As few settings as tell the runs apart, in the order in which `differing` has them. What more than half of the
    runs have in common is left out where a run differs from it in something else. The same for runs that differ in the
    seed alone, and "" where there are no others."""
    settings, _ = differing([_rootless(run.config) for run in runs])
    # those that only some runs have say little
    columns = sorted(settings.items(), key=lambda column: ABSENT in column[1])
    chosen: list[list[str]] = []
    for name, values in columns:
        texts = [_text(name, value) for value in values]
        if len(set(zip(*chosen, texts))) > len(set(zip(*chosen))):
            chosen.append(texts)
    usual = [next((text for text in texts if texts.count(text) > len(runs) / 2), None) for texts in chosen]
    found = []
    for own in zip(*chosen, strict=True) if chosen else [()] * len(runs):
        special = [text for text, common in zip(own, usual, strict=True) if text != common and text]
        found.append(", ".join(special or filter(None, own)))
    return _told_apart(runs, found)


def _told_apart(runs: Sequence[Run], found: list[str]) -> list[str]:
    """Runs of one label that differ in more than the seed get the folder's name of the first that is like them."""
    groups: dict[str, dict[str, str]] = {}
    alike = [json.dumps(identity(run.config, ("seed", *ROOTS)), sort_keys=True, default=str) for run in runs]
    for run, label, group in zip(runs, found, alike, strict=True):
        groups.setdefault(label, {}).setdefault(group, run.folder.name)
    return [
        ", ".join(filter(None, [label, groups[label][group]])) if len(groups[label]) > 1 else label
        for label, group in zip(found, alike, strict=True)
    ]


def _places(folder: Path) -> list[Path]:
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder")
    if (folder / "metrics.jsonl").is_file():
        return [folder]
    found = sorted(path.parent for path in folder.rglob("metrics.jsonl") if (path.parent / "config.yaml").is_file())
    if not found:
        raise UserError(f"{folder}: neither a run folder nor one with runs below it (metrics.jsonl, config.yaml)")
    return found


def _events(path: Path) -> list[dict[str, Any]]:
    """A run that was killed and went on has no line twice; one whose lines were joined by hand may: then the later
    line counts, and what came after it before does not. A line that cannot be read is one that a kill cut off."""
    kept: dict[str, list[dict[str, Any]]] = {split: [] for split in SPLITS}
    for line in path.read_text(errors="replace").splitlines():
        try:
            event = json.loads(line)
            lines, step = kept[event["split"]], event["step"]
            while lines and lines[-1]["step"] >= step:
                lines.pop()
            lines.append({**event, "epoch": event["epoch"]})
        except (ValueError, KeyError, TypeError):
            continue
    return [event for lines in kept.values() for event in lines]


def _rootless(config: Config) -> Config:
    parts = {part: config[part] for part in ("data", "demo") if config.get(part)}
    return {**config, **{part: {**own, "root": None} for part, own in parts.items()}}


def _is_number(event: dict[str, Any], key: str) -> bool:
    return isinstance(event.get(key), (int, float)) and not isinstance(event.get(key), bool)


def _text(name: str, value: Any) -> str:
    """A name says enough for itself, a number needs that of its setting; "" where a run has no such setting."""
    if value == ABSENT:
        return ""
    if isinstance(value, str) and name in ("backbone", "recipe", "tdaf"):
        return value
    if isinstance(value, str) and value.count(".") > 1:  # a class
        value = value.rpartition(".")[2]
    return f"{name} {value}"
