"""What all scripts do with `key=value` arguments and with a user's mistake."""

from __future__ import annotations

import difflib
import os
import sys
from collections.abc import Callable
from pathlib import Path

from tdaf.errors import RunError, UserError
from tdaf.media.suffixes import IMAGES, VIDEOS


def given(
    arguments: list[str], names: tuple[str, ...], short: dict[str, str] | None = None, *, others: bool = True
) -> tuple[dict[str, str | None], list[str]]:
    """(the script's own settings `names`, None where not given; the other arguments, as overrides of a run's settings).

    short: own names for settings of a run. others: whether remaining arguments are allowed at all. Raises UserError.
    """
    own: dict[str, str | None] = dict.fromkeys(names)
    rest = []
    for argument in arguments:
        key, equals, value = argument.partition("=")
        if not equals:
            raise UserError(f"{argument!r} is not a setting: write key=value; --help says which there are")
        if key in own:
            own[key] = value
        elif key in (short or {}):
            rest.append(f"{short[key]}={value}")
        elif others and "." in key or key in ("gpus", "seed"):
            rest.append(argument)
        else:
            close = difflib.get_close_matches(key, [*names, *(short or {})], n=1)
            hint = f"did you mean {close[0]}?" if close else f"it has {', '.join([*names, *(short or {})])}"
            raise UserError(f"{argument}: this script has no setting {key}; {hint}")
    return own, rest


def apart(arguments: list[str], names: tuple[str, ...]) -> tuple[list[str], dict[str, str]]:
    """(arguments for `given`, the settings that only a checkpoint's task can know). What is close to one of the script's
    own `names` is left to `given`, which says so."""
    rest, options = [], {}
    for argument in arguments:
        key, equals, value = argument.partition("=")
        if equals and key.isidentifier() and not difflib.get_close_matches(key, (*names, "protocol", "gpus", "seed"), n=1):
            options[key] = value
        else:
            rest.append(argument)
    return rest, options


def flag(name: str, text: str | None) -> bool:
    """A setting that is false where it is not given. Raises UserError for what is neither true nor false."""
    if text is not None and text.lower() not in ("true", "false", "1", "0"):
        raise UserError(f"{name}={text}: give true or false")
    return text is not None and text.lower() in ("true", "1")


def pictures(text: str, out: Path) -> tuple[list[Path], Path]:
    """The images and videos of input=`text`, and the folder that their names are relative to; without those that an
    earlier call wrote into `out`. Raises UserError where there are none."""
    place = Path(text).expanduser()
    if place.is_file():
        return [place], place.parent
    if not place.is_dir():
        raise UserError(f"input={text}: there is no such file or folder")
    if place.resolve() == out.resolve():
        raise UserError(f"out={out} is the input's own folder; give another one")
    files = (path for path in place.rglob("*") if path.suffix.lower() in (*IMAGES, *VIDEOS) and path.is_file())
    paths = sorted(path for path in files if out.resolve() not in path.resolve().parents)
    if not paths:
        raise UserError(f"input={text}: no image or video in this folder ({', '.join((*IMAGES, *VIDEOS))})")
    return paths, place


def main(script: Callable[[list[str]], int], doc: str) -> int:
    """Runs a script on the command line's arguments; --help prints `doc`. Returns the exit code."""
    if {"-h", "--help"} & set(sys.argv[1:]):
        print(doc)
        return 0
    sys.path.append(os.getcwd())  # where train.py stands, a user's own modules are found; scripts/ has none
    try:
        return script(sys.argv[1:])
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except RunError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
