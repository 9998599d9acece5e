"""The command line of scripts/table.py. No torch in here."""

from __future__ import annotations

import difflib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tdaf.cli.sweep import parted
from tdaf.errors import UserError

OWN = ("format", "out", "seeds", "runs", "run", "protocol")
SUFFIXES = {".md": "markdown", ".csv": "csv", ".tex": "latex"}
FORMATS = ("terminal", *SUFFIXES.values())


@dataclass(frozen=True)
class Asked:
    """what: tables, or one folder. more: overrides of every row. hydra: Hydra's own, which choose the launcher."""

    what: list[str]
    form: str
    out: Path | None
    seeds: list[int]
    runs: Path
    run: bool
    protocol: str | None
    more: list[str]
    hydra: list[str]


def asked(arguments: Sequence[str]) -> Asked:
    """Raises UserError for what this script does not understand; settings of runs are judged where they compose."""
    own: dict[str, str] = {}
    what, rest = [], []
    for argument in _without_flags(arguments):
        key, equals, value = argument.partition("=")
        if not equals:
            what += [argument] if Path(argument).is_dir() else argument.split(",")
        elif key in OWN:
            own[key] = value
        else:
            _refuse_near_misses(argument, key)
            rest.append(argument)
    if not what:
        raise UserError("give a table (1, 2, 3a, ... or all) or a folder of runs; --help says more")
    form = own.get("format", SUFFIXES.get(Path(own.get("out", "")).suffix, "terminal"))
    for key, value, allowed in (("format", form, FORMATS), ("run", own.get("run", "false"), ("true", "false"))):
        if value not in allowed:
            raise UserError(f"{key}={value}: give {', '.join(allowed[:-1])} or {allowed[-1]}")
    hydra, more = parted(rest)
    out = _writable(own.get("out"))
    runs = Path(own.get("runs", "runs"))
    return Asked(
        what, form, out, _seeds(own.get("seeds", "")), runs, own.get("run") == "true", own.get("protocol"), more, hydra
    )


def _without_flags(arguments: Sequence[str]) -> list[str]:
    """--run as run=true, --recipe demo and --recipe=demo as recipe=demo."""
    flags, found, waiting = (*OWN, "recipe"), [], ""
    for argument in arguments:
        name, equals, _ = argument.removeprefix("--").partition("=")
        if waiting:
            found.append(f"{waiting}={argument}")
            waiting = ""
        elif not argument.startswith("--"):
            found.append(argument)
        elif name not in flags:
            close = difflib.get_close_matches(name, flags, n=1)
            hint = f"did you mean --{close[0]}?" if close else f"there are --{', --'.join(flags)}"
            raise UserError(f"{argument}: there is no such flag; {hint}")
        elif equals or name == "run":
            found.append(argument.removeprefix("--") if equals else "run=true")
        else:
            waiting = name
    if waiting:
        raise UserError(f"--{waiting}: give its value behind it, as --{waiting} VALUE")
    return found


def _refuse_near_misses(argument: str, key: str) -> None:
    """A misspelt setting of this script would be taken for one of the runs."""
    if key == "seed":
        raise UserError(f"{argument}: the seeds of a table are seeds=0,1,2")
    close = difflib.get_close_matches(key, OWN, n=1, cutoff=0.75)
    if close and key != "run_dir":
        raise UserError(f"{argument}: this script has no setting {key}; did you mean {close[0]}?")
    if key in ("run_dir", "resume"):
        raise UserError(f"{argument}: a table has many runs, each with a folder of its own; runs=FOLDER has them all")


def _seeds(text: str) -> list[int]:
    parts = text.split(",") if text else []
    if not all(part.isascii() and part.isdigit() for part in parts) or len(set(parts)) < len(parts):
        raise UserError(f"seeds={text}: give whole numbers, 0 or more, each once, as seeds=0,1,2")
    return [int(part) for part in parts]


def _writable(text: str | None) -> Path | None:
    """The file to write to; one that cannot be written is refused before the work and not after it."""
    if not text:
        return None
    path = Path(text)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"out={path} cannot be written: {error.strerror}") from error
    if path.is_dir() or not os.access(path if path.exists() else path.parent, os.W_OK):
        raise UserError(f"out={path} cannot be written: {'it is a folder' if path.is_dir() else 'permission denied'}")
    return path
