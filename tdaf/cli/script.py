"""The one grammar of all scripts: `key=value`, held against the keyword arguments of the function that does the work.

A script is a function whose keyword-only arguments are its settings; their annotations are the types that the command
line is held to, their defaults what holds where nothing is said:

    def curves(*runs: str, out: Path = Path("curves.png"), x: Literal["epoch", "step"] = "epoch") -> int

    if __name__ == "__main__":
        sys.exit(main(curves, __doc__))

`*words` takes what has no "=". `rest: list[str]` takes every setting that is not the script's own, as overrides of a
run's settings; without it they are refused. `--key value`, `--key=value` and `--flag` are read as key=value, flag=true.
"""

from __future__ import annotations

import inspect
import math
import os
import re
import sys
import types
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from tdaf.build import described, hint
from tdaf.cli.ending import end_well
from tdaf.errors import UserError

Positive = Annotated[int, "a whole number above 0", lambda value: value > 0]
Natural = Annotated[int, "a whole number, 0 or more", lambda value: value >= 0]
Share = Annotated[float, "a number from 0 to 1", lambda value: 0 <= value <= 1]


def main(script: Callable[..., int | None], doc: str | None) -> int:
    """Runs a script on the command line's arguments; --help prints `doc`. Returns the exit code, which is the script's
    own or one of `end_well`."""

    def run() -> int:
        if {"-h", "--help"} & set(sys.argv[1:]):
            print(doc)
            return 0
        sys.path.append(os.getcwd())  # where train.py stands, a user's own modules are found; scripts/ has none
        words, settings = parse(sys.argv[1:], script)
        return script(*words, **settings) or 0

    return end_well(run)


def parse(arguments: list[str], script: Callable[..., Any]) -> tuple[list[str], dict[str, Any]]:
    """The words and the typed settings that `script` is called with. Raises UserError, which names the argument."""
    parameters = inspect.signature(script).parameters
    types_ = get_type_hints(script, include_extras=True)
    own = {n.rstrip("_"): n for n, p in parameters.items() if p.kind is p.KEYWORD_ONLY and n != "rest"}
    takes_words = any(p.kind is p.VAR_POSITIONAL for p in parameters.values())
    words, rest, settings = [], [], {}
    for argument in _without_dashes(arguments, own, types_):
        key, equals, text = argument.partition("=")
        if key in own and equals:
            settings[own[key]] = value(key, text, types_[own[key]])
        elif takes_words and (not equals or Path(argument).expanduser().exists()):
            words.append(argument)
        elif not equals and not argument.startswith("~"):
            raise UserError(f"{argument!r} is not a setting: write key=value; --help says which there are")
        elif "rest" in parameters:
            rest.append(argument)
        else:
            raise UserError(f"{argument}: this script has no setting {key}; {hint(key, list(own))}")
    for name, parameter in parameters.items():
        required = parameter.kind is parameter.KEYWORD_ONLY and parameter.default is parameter.empty
        if required and name != "rest" and name not in settings:
            raise UserError(
                f"give {name.rstrip('_')}={described(types_[name]).upper().replace(' ', '_')}; --help says more"
            )
    return words, {**settings, **({"rest": rest} if "rest" in parameters else {})}


def value(key: str, text: str, kind: Any) -> Any:
    """`text` as a value of the annotated kind. Raises UserError."""
    options = get_args(kind) if get_origin(kind) in (Union, types.UnionType) else [kind]
    for option in sorted(options, key=lambda option: option is not types.NoneType):
        with suppress(ValueError):
            return _read(text, option)
    raise UserError(f"{key}={text}: give {described(kind)}")


def _without_dashes(arguments: list[str], own: dict[str, str], kinds: dict[str, Any]) -> list[str]:
    """`--key value`, `--key=value` and `--flag` as key=value and flag=true."""
    found, waiting = [], ""
    for argument in arguments:
        name = argument[2:].replace("-", "_") if argument.startswith("--") and "=" not in argument else ""
        if waiting:
            found.append(f"{waiting}={argument}")
            waiting = ""
        elif argument.startswith("--") and not name:
            key, _, text = argument[2:].partition("=")
            found.append(f"{key.replace('-', '_')}={text}")
        elif not name:
            found.append(argument)
        elif name in own and kinds[own[name]] is bool:
            found.append(f"{name}=true")
        elif name in own or name == "recipe":
            waiting = name
        else:
            raise UserError(f"{argument}: there is no such setting; {hint(name, list(own))}")
    if waiting:
        raise UserError(f"{waiting}: give its value, as {waiting}=VALUE")
    return found


def _read(text: str, kind: Any) -> Any:
    """Raises ValueError where the text is none of that kind."""
    origin, found, right = get_origin(kind), text, True
    if origin is Annotated:
        base, _, judge = get_args(kind)
        found = _read(text, base)
        right = judge(found)
    elif origin is list:
        parts = [part.strip() for part in text.removeprefix("[").removesuffix("]").split(",")]
        found = [_read(part, get_args(kind)[0]) for part in parts if part]
    elif origin is Literal:
        found = text.lower()
        right = found in get_args(kind)
    elif kind is types.NoneType:
        found, right = None, text in ("", "null")
    elif kind is bool:
        found = {"true": True, "1": True, "false": False, "0": False}.get(text.lower())
        right = found is not None
    elif kind is Path:
        found, right = Path(text).expanduser(), bool(text)
    elif kind is float:
        found = float(text)
        right = math.isfinite(found)
    elif kind is int:
        found, right = int(text), bool(re.fullmatch("-?[0-9]+", text))
    if not right:
        raise ValueError
    return found
