"""The runs that tables are made of, handed over to be trained."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from tables import rows, running
from tables.asked import Asked
from tables.rows import Table
from tables.show import problem

from tdaf.errors import UserError


def run(tables: Sequence[Table], given: Asked) -> int:
    """Trains and evaluates what is missing of the tables, once what they share. Returns the worst exit code.

    A row whose network cannot be built is left out with a line that says why. Raises UserError where none is left.
    """
    trained = [table for table in tables if table.samples]
    titles = [f"table {table.key}: " if len(trained) > 1 else "" for table in trained]
    found = [row for table, title in zip(trained, titles) for row in _runs(table, title, given)]
    return running.run(found, [given.runs])


def _runs(table: Table, title: str, given: Asked) -> list[running.Row]:
    table = rows.adapted(table, given.more)
    runs = []
    for row in table.rows:
        why = problem(table, row, given.more)
        if why:
            print(f"left out: table {table.key}, {rows.name(row)}: {why}", file=sys.stderr, flush=True)
            continue
        settings = [*rows.overrides(table, row, given.more), *given.hydra]
        for seed in [[f"seed={seed}"] for seed in given.seeds] or [[]]:
            name = " ".join([title + rows.name(row), *seed])
            runs.append(running.Row(name, [*settings, *seed], table.evaluate))
    if not runs:
        raise UserError(f"table {table.key}: none of its rows can be built")
    return runs
