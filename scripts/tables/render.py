"""A finished table as text: for the terminal, Markdown, CSV, LaTeX."""

from __future__ import annotations

import csv as comma_separated
import io
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass, field

LATEX = {
    "\\": r"\textbackslash{}",
    "&": r"\&",
    "%": r"\%",
    "$": r"\$",
    "#": r"\#",
    "_": r"\_",
    "{": r"\{",
    "}": r"\}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "±": r"$\pm$",
    "<": "$<$",
    ">": "$>$",
    "[": "{[}",  # at the start of a row it would belong to the end of the one before
}
MARKDOWN = re.compile(r"([\\|*_`<\[\]])")
NUMBER = re.compile(r"[<>+-]?[\d.,]+[M%sh]?( ± [\d.]+)?( \([\w=%]+\))?|-|")
WIDE = 1000  # columns; where no terminal sets a limit


@dataclass(frozen=True)
class Grid:
    """A table of texts: what it is, its columns, its rows (a text a column), remarks printed below it.

    commands: (what it makes, the command line) of each row, printed below the remarks; "" where there is none.
    labels: how many first columns say what a row is; among them a text that repeats is shown once by the terminal.
    """

    title: str
    columns: list[str]
    rows: list[list[str]]
    notes: list[str] = field(default_factory=list)
    commands: list[tuple[str, str]] = field(default_factory=list)
    labels: int = 0


def markdown(grid: Grid) -> str:
    """A heading, a table of GitHub's kind with numbers to the right, remarks as a list, commands as a block."""
    aligned = ["---:" if numeric else "---" for numeric in _numeric(grid)]
    lines = [grid.columns, *grid.rows]
    table = [f"| {' | '.join(map(_markdown, line))} |" for line in lines]
    table.insert(1, f"|{'|'.join(aligned)}|")
    parts = [f"### {_markdown(grid.title)}", "\n".join(table)]
    if grid.notes:
        parts.append("\n".join(f"- {_markdown(note)}" for note in grid.notes))
    if grid.commands:
        block = [line for name, command in grid.commands if command for line in (f"# {name}", command)]
        parts.append("\n".join(["```bash", *block, "```"]))
    return "\n\n".join(parts) + "\n"


def csv(grid: Grid) -> str:
    """One line of titles and one a row, for programs: no title, no remarks; a last column has the commands."""
    file = io.StringIO()
    writer = comma_separated.writer(file, lineterminator="\n")
    commands = [command for _, command in grid.commands]
    with_commands = len(commands) == len(grid.rows)
    writer.writerow([*grid.columns, *(["Command"] if with_commands else [])])
    for place, row in enumerate(grid.rows):
        writer.writerow([*row, *([commands[place]] if with_commands else [])])
    return file.getvalue()


def latex(grid: Grid) -> str:
    r"""A table environment without packages; remarks below it in \footnotesize, commands as comments."""
    kinds = "".join("r" if numeric else "l" for numeric in _numeric(grid))
    rows = [" & ".join(map(_latex, line)) + r" \\" for line in grid.rows]
    head = " & ".join(map(_latex, grid.columns)) + r" \\"
    comments = [f"% {name}: {command}" for name, command in grid.commands if command]
    lines = [
        *comments,
        r"\begin{table}",
        r"\centering",
        rf"\caption{{{_latex(grid.title)}}}",
        rf"\begin{{tabular}}{{{kinds}}}",
        r"\hline",
        head,
        r"\hline",
        *rows,
        r"\hline",
        r"\end{tabular}",
        *(rf"\par{{\footnotesize {_latex(note)}}}" for note in grid.notes),
        r"\end{table}",
    ]
    return "\n".join(lines) + "\n"


def terminal(grid: Grid, width: int | None = None, colour: bool = False) -> str:
    """With lines and, if asked for, colours. width: of the terminal; None: as wide as the table is."""
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(title=Text(grid.title), title_justify="left", title_style="bold", box=box.SIMPLE_HEAD)
    for title, numeric in zip(grid.columns, _numeric(grid), strict=True):
        head = Text("\n".join(title.rsplit(" ", 1)) if numeric else title)
        table.add_column(head, justify="right" if numeric else "left", no_wrap=numeric, overflow="fold")
    groups, before = max(0, grid.labels - 1), None
    for row in grid.rows:
        known = groups > 0 and row[:groups] == before
        if before and not known:
            table.add_section()
        before = row[:groups]
        table.add_row(*map(Text, [*[""] * groups, *row[groups:]] if known else row))
    file = io.StringIO()
    console = Console(file=file, width=width or WIDE, force_terminal=colour, highlight=False)
    console.print(table)
    if width is not None:
        for note in grid.notes:
            console.print(Text(f"- {note}"))
    else:
        file.writelines(f"- {note}\n" for note in grid.notes)
    lines = [line.rstrip() for line in file.getvalue().splitlines()]
    lines += [text for name, command in grid.commands if command for text in ("", f"# {name}", command)]
    return "\n".join(lines) + "\n"


def on_screen(grid: Grid) -> str:
    """For standard output as it is: in the width and the colours of a terminal, plain and wide elsewhere."""
    if not sys.stdout.isatty():
        return terminal(grid)
    from rich.console import Console

    return terminal(grid, Console().width, colour=True)


FORMATS: dict[str, Callable[[Grid], str]] = {
    "terminal": terminal,
    "markdown": markdown,
    "csv": csv,
    "latex": latex,
}


def _numeric(grid: Grid) -> list[bool]:
    """Of each column, whether it holds numbers (and dashes) alone."""
    cells = zip(*grid.rows, strict=True) if grid.rows else [()] * len(grid.columns)
    return [place >= grid.labels and all(map(NUMBER.fullmatch, column)) for place, column in enumerate(cells)]


def _markdown(text: str) -> str:
    return MARKDOWN.sub(r"\\\1", " ".join(text.split()))


def _latex(text: str) -> str:
    return "".join(LATEX.get(letter, letter) for letter in " ".join(text.split()))
