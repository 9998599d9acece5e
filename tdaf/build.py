"""From plain settings to objects: every `_target_` names a class or function, the other keys are its arguments.

Settings are held against the signature first: an unknown name, a wrong kind or a missing argument is one line that says
where. Needs no Hydra, so checkpoints and run folders can be opened as a library.
"""

from __future__ import annotations

import difflib
import functools
import importlib
import inspect
import math
import re
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from tdaf.errors import UserError, first_line

# What settings that come out of a file may name: they are data, and whoever wrote the file must not choose what runs.
# Everything else there is a user's own module, which `trust` has to name.
# Of those it may build what is made to be built: classes, and functions of the modules that are made of such.
TRUSTED = ("tdaf.model.", "tdaf.engine.schedule.", "tasks.", "torch.optim.")
OF_FUNCTIONS = re.compile(r"tdaf\.model\.(backbones|attention)\..+|tdaf\.engine\.schedule|tasks\.\w+\.transforms")

_NAMES = {
    **{int: "a whole number", float: "a number", bool: "true or false"},
    **{str: "a text", Path: "a path", types.NoneType: "null"},
}


def make(node: Any, where: str, **extra: Any) -> Any:
    """The object that `node` describes: {"_target_": "module.name", argument: value, ...}, nested as deep as it goes.

    Args:
        node: plain settings. With "_partial_": true, a functools.partial instead of what the call gives.
        where: the settings' own name, for messages, as "optim.factory".
        extra: arguments of the outermost target that are no settings.

    Raises:
        UserError: a setting that its class does not have, or takes in another kind, or whatever the class refuses.
    """
    if isinstance(node, list):
        return [make(child, f"{where}[{place}]") for place, child in enumerate(node)]
    if not isinstance(node, dict):
        return node
    if "_target_" not in node:
        return {key: make(child, f"{where}.{key}") for key, child in node.items()}
    if not isinstance(node.get("_partial_", False), bool):
        raise UserError(f"{where}._partial_={node['_partial_']}: give true or false")
    function = found(str(node["_target_"]), where)
    own = {key: value for key, value in node.items() if key not in ("_target_", "_partial_")}
    settings = checked(function, own, where, tuple(extra))
    settings = {key: make(child, f"{where}.{key}") for key, child in settings.items()}
    if node.get("_partial_"):
        return functools.partial(function, **settings, **extra)
    try:
        return function(**settings, **extra)
    except UserError:
        raise
    except (TypeError, ValueError, ImportError, AttributeError) as error:  # of a class, to what it does not take
        raise UserError(f"{where}: {node['_target_']} cannot be built: {first_line(error)}") from error


def takes(node: Mapping[str, Any], argument: str, where: str) -> bool:
    """Whether what a node's `_target_` names has such an argument."""
    return "_target_" in node and argument in _parameters(found(str(node["_target_"]), where))


def refuse_untrusted(settings: Any, where: str, trust: Sequence[str] = ()) -> None:
    """Imports nothing and raises UserError where settings that were read from a file name anything but tdaf's own
    parts, torch's optimisers, or modules that begin with a name of `trust`."""
    for target in targets(settings):
        if not _is_trusted(target, trust):
            raise UserError(
                f"{where} asks to run {target}, which is not part of tdaf; if you know where that file is from, "
                f"add trust={target.partition('.')[0]}"
            )


def targets(settings: Any) -> Iterator[str]:
    """Every `_target_` in nested settings."""
    if isinstance(settings, dict) and "_target_" in settings:
        yield str(settings["_target_"])
    for child in settings.values() if isinstance(settings, dict) else settings if isinstance(settings, list) else ():
        yield from targets(child)


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


def found(target: str, where: str) -> Callable[..., Any]:
    """What `target`, as "module.name", names. Raises UserError where that cannot be imported."""
    names = target.split(".")
    for split in range(len(names) - 1, 0, -1):
        module, value = ".".join(names[:split]), None
        try:
            value = importlib.import_module(module)
            for name in names[split:]:
                value = getattr(value, name)
        except Exception as error:  # importing a user's module may raise anything
            # a class inside a class: its module is further to the left
            if isinstance(error, ModuleNotFoundError) and split > 1 and module.startswith(error.name or "?"):
                continue
            close = [] if value is None else difflib.get_close_matches(names[-1], dir(value), n=1)
            reason = (str(error) or type(error).__name__) + "".join(f"; did you mean {name}?" for name in close)
            raise UserError(f"{where}._target_={target} cannot be imported: {reason}") from error
        if not callable(value):
            raise UserError(f"{where}._target_={target} is a {type(value).__name__}: give a class or function")
        return value
    raise UserError(f"{where}._target_={target}: give module.name")


def described(kind: Any) -> str:
    """What a value of an annotated kind is, in words."""
    origin, parts = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        return " or ".join(map(described, parts))
    if origin is Annotated:
        return parts[1]
    if origin is Literal:
        return " or ".join(filter(None, (", ".join(parts[:-1]), parts[-1])))
    if origin in (list, Sequence):
        return f"a list, as [{'a,b' if parts[0] is str else '1,2'}]"
    return _NAMES.get(kind, "what it is annotated with")


def hint(word: str, known: Sequence[str]) -> str:
    """What a word that is not known may have meant, or what there is."""
    close = difflib.get_close_matches(word, known, n=1)
    return f"did you mean {close[0]}?" if close else f"it has {', '.join(known)}"


def _is_trusted(target: str, trust: Sequence[str]) -> bool:
    if any(target.startswith(name + ".") for name in trust):
        return True
    if not target.startswith(TRUSTED):
        return False
    # by way of an attribute, as tdaf.model.flows.torch.load, anything could be reached
    module, _, name = target.rpartition(".")
    try:
        owner = getattr(importlib.import_module(module), name)
        home = str(owner.__module__)
    except Exception:
        return False
    if name.startswith("_") or not f"{home}.".startswith(TRUSTED):
        return False
    if home.startswith("torch."):
        from torch.optim import Optimizer  # its module is imported already

        return isinstance(owner, type) and issubclass(owner, Optimizer)
    return isinstance(owner, type) or bool(OF_FUNCTIONS.fullmatch(home))


def _fitting(name: str, value: Any, known: list[str], parameters: Mapping[str, inspect.Parameter], where: str) -> Any:
    if name not in known:
        raise UserError(f"{where}.{name}: there is no such setting; {hint(name, known)}")
    kind = parameters[name].annotation
    if _fits(value, kind):
        return value
    if isinstance(value, (int, float)) and not isinstance(value, bool) and _fits(str(value), kind):
        return str(value)
    shown = "null" if value is None else str(value).lower() if isinstance(value, bool) else value
    raise UserError(f"{where}.{name}={shown}: give {described(kind)}")


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
