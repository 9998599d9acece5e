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

import difflib
import inspect
import math
import os
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

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
                f"give {name.rstrip('_')}={_described(types_[name]).upper().replace(' ', '_')}; --help says more"
            )
    return words, {**settings, **({"rest": rest} if "rest" in parameters else {})}


def value(key: str, text: str, kind: Any) -> Any:
    """`text` as a value of the annotated kind. Raises UserError."""
    if get_origin(kind) in (Union, types.UnionType):
        options = [option for option in get_args(kind) if option is not types.NoneType]
        if len(options) < len(get_args(kind)) and text in ("", "null"):
            return None
    else:
        options = [kind]
    for option in options:
        try:
            return _read(text, option)
        except ValueError:
            continue
    raise UserError(f"{key}={text}: give {' or '.join(_described(option) for option in options)}")


def hint(word: str, known: list[str]) -> str:
    close = difflib.get_close_matches(word, known, n=1)
    return f"did you mean {close[0]}?" if close else f"it has {', '.join(known)}"


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
    origin = get_origin(kind)
    if origin is Annotated:
        base, _, right = get_args(kind)
        found = _read(text, base)
        if not right(found):
            raise ValueError
        return found
    if origin is Literal:
        if text.lower() not in get_args(kind):
            raise ValueError
        return text.lower()
    if origin is list:
        parts = [part.strip() for part in text.removeprefix("[").removesuffix("]").split(",")]
        return [_read(part, get_args(kind)[0]) for part in parts if part]
    if kind is bool:
        return {"true": True, "false": False, "1": True, "0": False}[text.lower()] if text.lower() in _FLAGS else _no()
    if kind is Path:
        return Path(text).expanduser() if text else _no()
    if kind is float:
        return float(text) if math.isfinite(float(text)) else _no()
    if kind is int:
        return int(text) if text.lstrip("-").isascii() and text.lstrip("-").isdigit() else _no()
    return str(text)


_FLAGS = ("true", "false", "1", "0")


def _no() -> Any:
    raise ValueError


def _described(kind: Any) -> str:
    origin = get_origin(kind)
    if origin in (Union, types.UnionType):
        return " or ".join(_described(option) for option in get_args(kind) if option is not types.NoneType)
    if origin is Annotated:
        return get_args(kind)[1]
    if origin is Literal:
        *names, last = get_args(kind)
        return f"{', '.join(names)} or {last}" if names else last
    if origin is list:
        return f"a list, as {'1,2' if get_args(kind)[0] is not str else 'a,b'}"
    return {int: "a whole number", float: "a number", bool: "true or false", Path: "a path", str: "a text"}[kind]
