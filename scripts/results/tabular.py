"""Numbers as texts; tables of texts for the terminal, Markdown, CSV and LaTeX; the measured section of a page."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path

import numpy as np

LATEX = {
    "\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}",
    "±": r"$\pm$", "<": "$<$", ">": "$>$",
    "[": "{[}",  # at the start of a row it would belong to the end of the row before
    **{letter: f"\\{letter}" for letter in "&%$#_{}"},
}  # fmt: skip
NUMBER = re.compile(r"[<>+-]?[\d.,]+[M%sh]?( ± [\d.]+)?( \([\w=%]+\))?|-|")


@dataclass(frozen=True)
class TextTable:
    """A table of texts.

    Attributes:
        title: what it shows.
        columns: a title a column.
        rows: a text a column each.
        notes: remarks printed below it.
        commands: (what it makes, the command line) of each row, or nothing; "" for a row that no command makes.
        labels: how many first columns say what a row is.
    """

    title: str
    columns: list[str]
    rows: list[list[str]]
    notes: list[str] = field(default_factory=list)
    commands: list[tuple[str, str]] = field(default_factory=list)
    labels: int = 0

    def numeric(self) -> list[bool]:
        """Of each column, whether it holds numbers (and dashes) alone."""
        cells = zip(*self.rows, strict=True) if self.rows else [()] * len(self.columns)
        return [place >= self.labels and all(map(NUMBER.fullmatch, column)) for place, column in enumerate(cells)]


@dataclass(frozen=True)
class Printed:
    """A number as a paper prints it, so that ours can stand beside it in the same digits."""

    value: Decimal
    form: str
    unit: str = ""

    @classmethod
    def parse(cls, text: str | None, increase: bool = False) -> Printed | None:
        """None for what is no number, as "-" and ">20%"; behind one may stand something in brackets. increase: with a
        sign and at least one digit behind the point, however it is printed."""
        match = re.fullmatch(r"([+-]?)(\d[\d,]*(?:\.\d+)?)([M%]?)", (text or "").partition(" (")[0])
        if not match:
            return None
        value = Decimal(match[1] + match[2].replace(",", ""))
        if increase and value == value.to_integral():
            value = value.quantize(Decimal("0.1"))
        return cls(value, ("+" if increase or match[1] == "+" else "") + "," * ("," in match[2]) + "f", match[3])

    def ours(self, value: float) -> str:
        """A count of ours: of 25,557,032 "25.6M"."""
        return f"{self._rounded(value):{self.form}}{self.unit}"

    def difference(self, value: float) -> str:
        """Ours, as it is shown, less what is printed; "0" where every printed digit agrees."""
        gap = self._rounded(value) - self.value
        return f"{gap:+{self.form.removeprefix('+')}}{self.unit}" if gap else "0"

    def _rounded(self, value: float) -> Decimal:
        return Decimal(value / (1e6 if self.unit == "M" else 1)).quantize(self.value) + 0  # no minus before a zero


def mean_and_deviation(values: Sequence[float], digits: int = 1) -> str:
    """One value as "78.4", several as "78.4 ± 0.2 (n=3)", mean and sample standard deviation, none as "-"."""
    if len(values) < 2:
        return f"{values[0]:.{digits}f}" if values else "-"
    return f"{np.mean(values):.{digits}f} ± {np.std(values, ddof=1):.{digits}f} (n={len(values)})"


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[str]], numeric: Sequence[bool] = ()) -> str:
    """A table of GitHub's kind, without a line break at its end; columns of numbers stand at the right."""
    rule = ["---:" if right else "---" for right in numeric or [False] * len(header)]
    lines = [" | ".join(" ".join(cell.replace("|", r"\|").split()) for cell in row) for row in (header, *rows)]
    return "\n".join([f"| {lines[0]} |", f"|{'|'.join(rule)}|", *(f"| {line} |" for line in lines[1:])])


def write_section(page: Path, begin: str, end: str, text: str, new: str) -> None:
    """Writes `text` between two lines of a page and leaves the rest of it as it is.

    Args:
        page: a text file.
        begin: the marker above the section; with `end` it goes to the page's end where it is not there yet.
        end: the marker below it.
        text: of the section.
        new: what a page that does not exist begins with.
    """
    before = page.read_text(encoding="utf-8") if page.exists() else new
    section = f"{begin}\n{text}\n{end}"
    marked = re.compile(f"{re.escape(begin)}.*?{re.escape(end)}", re.DOTALL)
    after = marked.sub(lambda match: section, before) if marked.search(before) else f"{before.rstrip()}\n\n{section}\n"
    page.parent.mkdir(parents=True, exist_ok=True)
    page.write_text(after, encoding="utf-8")


def markdown(table: TextTable) -> str:
    """A heading, the table, remarks as a list, commands as a block."""

    def escape(text: str) -> str:
        return re.sub(r"([\\*_`<\[\]])", r"\\\1", text)

    header, *rows = ([escape(text) for text in row] for row in (table.columns, *table.rows))
    parts = [f"### {escape(table.title)}", markdown_table(header, rows, table.numeric())]
    parts += ["\n".join(f"- {escape(note)}" for note in table.notes)] if table.notes else []
    if table.commands:
        block = [line for name, command in table.commands if command for line in (f"# {name}", command)]
        parts.append("\n".join(["```bash", *block, "```"]))
    return "\n\n".join(parts) + "\n"


def comma_separated(table: TextTable) -> str:
    """One line of titles and one a row, for programs: no title, no remarks; the last column has the commands."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    commands = [[command] for _, command in table.commands] or [[]] * len(table.rows)
    writer.writerow([*table.columns, *(["Command"] if table.commands else [])])
    writer.writerows([*row, *command] for row, command in zip(table.rows, commands, strict=True))
    return file.getvalue()


def latex(table: TextTable) -> str:
    r"""A table environment without packages; remarks below it in \footnotesize, commands as comments."""

    def escape(text: str) -> str:
        return text.translate(str.maketrans(LATEX))

    kinds = "".join("r" if numeric else "l" for numeric in table.numeric())
    head, *body = (" & ".join(map(escape, row)) + r" \\" for row in (table.columns, *table.rows))
    comments = [f"% {name}: {command}" for name, command in table.commands if command]
    begin = [r"\begin{table}", r"\centering", rf"\caption{{{escape(table.title)}}}", rf"\begin{{tabular}}{{{kinds}}}"]
    notes = [rf"\par{{\footnotesize {escape(note)}}}" for note in table.notes]
    lines = [*comments, *begin, r"\hline", head, r"\hline", *body, r"\hline", r"\end{tabular}", *notes, r"\end{table}"]
    return "\n".join(lines) + "\n"


def terminal(table: TextTable, width: int | None = None) -> str:
    """With rules and, where a terminal's width is given, its colours and line breaks; else as wide as the table is."""
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    grid = Table(title=Text(table.title), title_justify="left", title_style="bold", box=SIMPLE_HEAD)
    for title, numeric in zip(table.columns, table.numeric(), strict=True):
        grid.add_column(Text(title), justify="right" if numeric else "left", no_wrap=numeric, overflow="fold")
    for row in table.rows:
        grid.add_row(*map(Text, row))
    file = io.StringIO()
    console = Console(file=file, width=width or 1000, force_terminal=width is not None, highlight=False)
    console.print(grid)
    for note in table.notes:
        console.print(Text(f"- {note}"), soft_wrap=width is None)
    lines = [line.rstrip() for line in file.getvalue().splitlines()]
    lines += [text for name, command in table.commands if command for text in ("", f"# {name}", command)]
    return "\n".join(lines) + "\n"


FORMATS: dict[str, Callable[[TextTable], str]] = {
    "terminal": terminal,
    "markdown": markdown,
    "csv": comma_separated,
    "latex": latex,
}


def written(tables: Sequence[TextTable], form: str, width: int | None = None) -> str:
    """Tables in one of `FORMATS`. width: of the terminal that they are for, None for a file or a pipe."""
    if form == "terminal":
        return "\n\n".join(terminal(table, width) for table in tables)
    return "\n".join(map(FORMATS[form], tables))
