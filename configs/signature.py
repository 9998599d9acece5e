"""Settings held against the arguments of what they are for: unknown names and wrong kinds, each a line."""

from __future__ import annotations

import difflib
import importlib
import inspect
import math
import types
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Union, get_args, get_origin

from tdaf.errors import UserError

_NAMES = {int: "a whole number", float: "a number", bool: "true or false", str: "a text", types.NoneType: "null"}


def checked_tree(node: Any, where: str, given: Sequence[str] = ()) -> Any:
    """A configuration node with every `_target_` in it checked. given: arguments that come from elsewhere."""
    if isinstance(node, list):
        return [checked_tree(child, f"{where}[{place}]") for place, child in enumerate(node)]
    if not isinstance(node, dict):
        return node
    inside = {key: checked_tree(child, f"{where}.{key}") for key, child in node.items()}
    if "_target_" not in node:
        return inside
    own = {key: value for key, value in inside.items() if key in ("_target_", "_partial_")}
    settings = {key: value for key, value in inside.items() if key not in own}
    return {**own, **checked(_found(str(node["_target_"]), where), settings, where, given)}


def checked(
    function: Callable[..., Any], settings: Mapping[str, Any], where: str, given: Sequence[str] = ()
) -> dict[str, Any]:
    """The settings, if `function` takes each of them; a number becomes a text where a text is asked for.

    where: the settings' own name, for messages. given: arguments that are no settings. Raises UserError.
    """
    parameters = _parameters(function)
    if any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        return dict(settings)
    known = [name for name in parameters if name not in (*given, "self")]
    return {name: _fitting(name, value, known, parameters, where) for name, value in settings.items()}


def _fitting(name: str, value: Any, known: list[str], parameters: Mapping[str, inspect.Parameter], where: str) -> Any:
    if name not in known:
        close = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean {close[0]}?" if close else f"it has {', '.join(known)}"
        raise UserError(f"{where}.{name}: there is no such setting; {hint}")
    hint = parameters[name].annotation
    if _fits(value, hint):
        return value
    if isinstance(value, (int, float)) and not isinstance(value, bool) and _fits(str(value), hint):
        return str(value)
    shown = "null" if value is None else str(value).lower() if isinstance(value, bool) else value
    raise UserError(f"{where}.{name}={shown}: give {_described(hint)}")


def _found(target: str, where: str) -> Callable[..., Any]:
    names = target.split(".")
    for split in range(len(names) - 1, 0, -1):
        module, found = ".".join(names[:split]), None
        try:
            found = importlib.import_module(module)
            for name in names[split:]:
                found = getattr(found, name)
            return found
        except Exception as error:  # importing a user's module may raise anything
            # a class inside a class: its module is further to the left
            if isinstance(error, ModuleNotFoundError) and split > 1 and module.startswith(error.name or "?"):
                continue
            hint = ""
            if found is not None:
                close = difflib.get_close_matches(names[-1], dir(found), n=1)
                hint = f"; did you mean {close[0]}?" if close else ""
            reason = str(error) or type(error).__name__
            raise UserError(f"{where}._target_={target} cannot be imported: {reason}{hint}") from error
    raise UserError(f"{where}._target_={target}: give module.name")


def _parameters(function: Callable[..., Any]) -> Mapping[str, inspect.Parameter]:
    for evaluate in (True, False):
        try:
            return inspect.signature(function, eval_str=evaluate).parameters
        except (NameError, TypeError, ValueError):
            continue  # names that only a type checker imports, or a class written in C
    return {"settings": inspect.Parameter("settings", inspect.Parameter.VAR_KEYWORD)}


def _fits(value: Any, hint: Any) -> bool:
    """Whether a plain value is of the annotated kind; True for kinds that no plain value can tell."""
    origin = get_origin(hint)
    if origin in (Union, types.UnionType):
        return any(_fits(value, option) for option in get_args(hint))
    if hint in (None, types.NoneType):
        return value is None
    if hint in (bool, str):
        return isinstance(value, hint)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if hint is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    if origin in (list, Sequence):
        return isinstance(value, list) and all(_fits(part, get_args(hint)[0]) for part in value)
    return True


def _described(hint: Any) -> str:
    origin = get_origin(hint)
    if origin in (Union, types.UnionType):
        return " or ".join(_described(option) for option in get_args(hint))
    if origin in (list, Sequence):
        return f"a list, as [{'1,2' if get_args(hint)[0] in (int, float) else 'a,b'}]"
    return _NAMES.get(hint, "what it is annotated with")
