"""What the study trains: configs/study.yaml as rows and trials."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from tdaf.errors import UserError

FILE = Path(__file__).resolve().parents[2] / "configs" / "study.yaml"


@dataclass(frozen=True)
class Row:
    """A network under comparison. settings: what train.py is told. against: names of the rows it is tested against."""

    name: str
    settings: tuple[str, ...]
    against: tuple[str, ...]
    seeds: tuple[int, ...]
    note: str = ""


@dataclass(frozen=True)
class Group:
    """Rows that share a table. timed: whether their training steps are timed; not where a schedule alone differs."""

    name: str
    title: str
    rows: tuple[Row, ...]
    timed: bool = True

    @property
    def references(self) -> list[str]:
        """The rows, of this group or another, that one of these is tested against."""
        order = [name for row in self.rows for name in row.against]
        first = [row.name for row in self.rows if row.name in order]
        return list(dict.fromkeys([*first, *order]))


@dataclass(frozen=True)
class Trial:
    """One run: a row with a seed. command: train.py's arguments."""

    row: Row
    seed: int
    folder: Path
    command: tuple[str, ...]


def read(quick: bool = False, groups: list[str] | None = None, seeds: list[int] | None = None) -> list[Group]:
    """The groups of the study. quick: its miniature. groups: only these. seeds: instead of every row's own.

    Raises UserError for a group that the study has not.
    """
    plan = yaml.safe_load(FILE.read_text(encoding="utf-8"))
    names = [group["name"] for group in plan["groups"]]
    for name in groups or []:
        if name not in names:
            raise UserError(f"groups={name}: the study has {', '.join(names)}")
    small = plan["quick"] if quick else {}
    found = []
    for group in plan["groups"]:
        rows = [row for row in group["rows"] if not quick or row["name"] in small["rows"]]
        if rows and (not groups or group["name"] in groups):
            first = [*plan["settings"], *group.get("settings", []), *small.get("settings", [])]
            asked = seeds or small.get("seeds")
            built = tuple(_row(row, group, first, tuple(asked or _seeds(row, group, plan))) for row in rows)
            found.append(Group(group["name"], group["title"], built, group.get("timed", True)))
    return found


def with_seeds(groups: list[Group], seeds: list[int]) -> list[Group]:
    """The groups, each row with these seeds besides its own."""
    return [
        replace(group, rows=tuple(replace(row, seeds=tuple(sorted({*row.seeds, *seeds}))) for row in group.rows))
        for group in groups
    ]


def trials(groups: list[Group], runs: Path, more: list[str]) -> list[Trial]:
    """Every run of the study, seed by seed, so that what is done after a while is evenly spread over the rows.

    more: settings for all of them.
    """
    rows = [row for group in groups for row in group.rows]
    found = []
    for seed in sorted({seed for row in rows for seed in row.seeds}):
        for row in rows:
            if seed in row.seeds:
                folder = runs / f"{slug(row.name)}-seed{seed}"
                command = (*row.settings, *more, f"seed={seed}", f"run_dir={folder}")
                found.append(Trial(row, seed, folder, command))
    return found


def slug(name: str) -> str:
    """A row's name as a folder's."""
    return "".join(letter if letter.isalnum() or letter in "=.-" else "_" for letter in name.replace(", ", "-"))


def _seeds(*given: dict[str, Any]) -> list[int]:
    """A row's own, else its group's, else the plan's."""
    return next(one["seeds"] for one in given if "seeds" in one)


def _row(row: dict[str, Any], group: dict[str, Any], first: list[str], seeds: tuple[int, ...]) -> Row:
    last = {setting.partition("=")[0]: setting for setting in [*first, *row["settings"]]}  # the later one counts
    against = tuple(name for name in row.get("against", group["against"]) if name != row["name"])
    return Row(row["name"], tuple(last.values()), against, seeds, row.get("note", ""))
