"""The words of a command line as Hydra's own overrides."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, Quote, QuotedString
from hydra.errors import HydraException

from tdaf.errors import UserError, first_line

TEXTS = re.compile(r"run_dir|resume|pretrained|.*\.root")  # a text also where it looks like a number; null by default


def parse(arguments: Sequence[str], sweep: bool = False) -> list[Override]:
    """Hydra's own overrides, with quotes put round what its grammar cannot read, so that a path needs none.

    Args:
        arguments: `key=value`, `+key=value`, `++key=value` or `~key`.
        sweep: whether a value may stand for several.
    """
    overrides = [_parsed(_nested(argument), sweep) for argument in arguments]
    for override in overrides:
        for folder in override.value() if override.key_or_group == "hydra.searchpath" else ():
            if not (str(folder).startswith("pkg://") or Path(str(folder).removeprefix("file://")).is_dir()):
                raise UserError(f"{override.input_line}: there is no folder {folder}")
    return overrides


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """The known setting that is closest to a word, by its whole and by its last part."""
    known = list(known)
    tail = word.rsplit(".", 1)[-1]
    same = [k for k in known if k.rsplit(".", 1)[-1] == tail]
    close = difflib.get_close_matches(word, same, n=1) or difflib.get_close_matches(word, known, n=1, cutoff=0.6)
    if not close or "." not in word and "." in close[0]:
        tails = {k.rsplit(".", 1)[-1]: k for k in reversed(known)}
        close = [tails[t] for t in difflib.get_close_matches(tail, tails, n=1, cutoff=0.8)] or close
    return f"; did you mean {close[0]}?" if close else ""


def _parsed(text: str, sweep: bool) -> Override:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise UserError(f"{text!r} is not UTF-8 text; rename the file or folder, or make a link to it") from None
    key, equals, written = text.partition("=")
    if not re.fullmatch(r"(\+\+?|~)?[^=+~\-][^=+~]*", key) or not (equals or key.startswith("~")):
        raise UserError(f"{text!r} is not a setting: write key=value; --help lists what there is")
    parser = OverridesParser.create()
    try:
        override = parser.parse_override(text)
        number = not override.is_sweep_override() and isinstance(override.value(), (bool, int, float))
        if not (number and TEXTS.fullmatch(key)):
            if override.is_sweep_override() and not sweep:
                hint = "a list is [1,2], a text with a comma '\"a,b\"'"
                raise UserError(f"{text}: several values are a sweep, which needs -m; {hint}")
            return override
    except HydraException as error:
        if written.lstrip().startswith(("[", "{", "'", '"')):
            raise UserError(f"{text}: the value cannot be read; look at its brackets and quotes") from error
    try:
        return parser.parse_override(f"{key}={QuotedString(written, Quote.single).with_quotes()}")
    except HydraException as error:
        raise UserError(f"{text}: this is not a setting ({first_line(error)})") from error


def _nested(argument: str) -> str:
    """a.1crop.size=3 as a={1crop:{size:3}}: no part of a key may begin with a digit in Hydra's grammar."""
    key, equals, written = argument.partition("=")
    parts = key.split(".")
    first = next((i for i, part in enumerate(parts) if part[:1].isdigit()), 0)
    if not (first and equals) or key.startswith("~"):
        return argument
    opening, closing = "".join(f"{{{part}:" for part in parts[first:]), "}" * len(parts[first:])
    values = [written]
    with suppress(HydraException):
        override = OverridesParser.create().parse_override(f"key={written}")
        values = list(override.sweep_string_iterator()) if override.is_discrete_sweep() else values
    return f"{'.'.join(parts[:first])}={','.join(opening + value + closing for value in values)}"
