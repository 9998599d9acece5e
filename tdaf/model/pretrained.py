"""Weights from a file or from torchvision into any network whose backbone is `Staged`, by name."""

from __future__ import annotations

import pickle
import re
import warnings
from collections import Counter
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import NoReturn

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from tdaf.errors import UserError
from tdaf.model.inflate import inflate_weight

_STAGE = re.compile(r"^(?:.*?\.)?stages\.(\d+)\.(.+)$")
_EARLIER = re.compile(r"\bearlier\.(\d+)\.")  # where TDAF keeps the statistics of the flows before the last one
_ADDED = re.compile(r"\.(attention|after|top_down)\.")  # what a mechanism adds to a block
_INNER = re.compile(r"(?:^|\.)((?:earlier\.\d+\.)?(?:stages|gates)\.\d+\..+)$")

# Where a checkpoint has its weights. Averaged ones are those that are evaluated: torchvision's references call them
# model_ema, timm state_dict_ema; "module" is torch.optim.swa_utils.AveragedModel's.
_AVERAGED = ("ema", "model_ema", "state_dict_ema")
_CONTAINERS = ("network", "state_dict", "model_state_dict", "model", "module")
# What a network inside another begins with, and what wrappers of torch put anywhere in a name.
_OUTER = re.compile(r"^(?:(?:module|model|network|backbone)\.)+")
_WRAPPERS = re.compile(r"\b(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
_COUNTERS = ("num_batches_tracked", "n_averaged")  # the first is not there in checkpoints from before PyTorch 0.4.1


class _Beside:
    """Stands for what lies beside the weights in a checkpoint and is not read: nothing of the class itself is run."""

    def __new__(cls, *args: object, **kwargs: object) -> _Beside:
        return super().__new__(cls)

    def __setstate__(self, state: object) -> None:
        pass


_NUMPY = ("scalar", "_reconstruct")
_KNOWN_BESIDE = (
    "argparse.Namespace",
    *(f"datetime.{kind}" for kind in ("date", "datetime", "time", "timedelta", "timezone")),
    *(f"numpy.{kind}" for kind in ("dtype", "ndarray")),
    *(f"numpy.{core}.multiarray.{function}" for core in ("core", "_core") for function in _NUMPY),
)


@dataclass
class Report:
    """What `load` did; str() gives a few lines to print.

    Attributes:
        loaded, missing: tensors by the network's names.
        unexpected: those of the checkpoint that the network has not, by the checkpoint's names.
        mismatched: (name, the checkpoint's shape, the network's), left alone.
        inflated: how many of the loaded ones were 2D kernels made 3D.
        source: where the weights came from.
    """

    loaded: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)
    mismatched: list[tuple[str, tuple[int, ...], tuple[int, ...]]] = field(default_factory=list)
    inflated: int = 0
    source: str = ""

    def __str__(self) -> str:
        total = len(self.loaded) + len(self.missing) + len(self.mismatched)
        first = f"loaded {len(self.loaded)} of {total} tensors" + (f" from {self.source}" if self.source else "")
        lines = [first + (f", {self.inflated} of them inflated from 2D" if self.inflated else "")]
        if self.missing:
            lines.append(f"missing from the checkpoint ({len(self.missing)}): {_some(self.missing)}")
        if self.unexpected:
            lines.append(f"not in the network ({len(self.unexpected)}): {_some(self.unexpected)}")
        if self.mismatched:
            shapes = [f"{name} {_shape(theirs)} for {_shape(ours)}" for name, theirs, ours in self.mismatched]
            lines.append(f"of another shape, left alone ({len(shapes)}): {_some(shapes)}")
        return "\n".join(lines)


def load(network: nn.Module, state: dict[str, Tensor], source: str = "") -> Report:
    """Copies what fits of a state dict into a network, in place.

    Names are the same but for prefixes, in any order and depth: `body.stages.1.layer2.0.conv1.weight` here is
    `layer2.0.conv1.weight` there, or `module.backbone._orig_mod.layer2.0.conv1.weight`. The statistics of TDAF's
    earlier flows, where the checkpoint has none of its own, are those of the last flow; 2D kernels are inflated for a
    3D network. A head of another class count stays as it is and is reported, and so does a stem of another size.

    Args:
        network: any module with a staged network in it.
        state: of this project (any task's, with or without TDAF), or a plain one of torchvision's.
        source: for the report: what the state dict is.

    Raises:
        UserError: the backbone's own names or shapes differ: another architecture. Nothing is changed then.
    """
    own = network.state_dict()
    names = _names_by_alias(state, own)
    shift = _earlier_flows(state) - _earlier_flows(own)
    report = Report(source=source)
    copies: list[tuple[Tensor, Tensor]] = []
    used: set[str] = set()
    for name, ours in own.items():
        source = next((names[alias] for alias in _aliases(name, shift) if alias in names), None)
        if source is None:
            if not name.endswith(_COUNTERS):
                report.missing.append(name)
            continue
        used.add(source)
        theirs = state[source]
        if _inflatable(theirs, ours):
            theirs = inflate_weight(theirs, tuple(ours.shape))
            report.inflated += 1
        if theirs.shape == ours.shape:
            report.loaded.append(name)
            copies.append((ours, theirs))
        else:
            report.mismatched.append((name, tuple(theirs.shape), tuple(ours.shape)))
    report.unexpected = [name for name in state if name not in used and not name.endswith(_COUNTERS)]
    _check_architecture(report, own, state)
    with torch.no_grad():
        for ours, theirs in copies:
            ours.copy_(theirs)
    return report


def read_checkpoint(path: str | Path) -> tuple[dict[str, Tensor], str]:
    """The state dict in a file. Never runs code from the file, nor imports what it names.

    Args:
        path: of a checkpoint of this project, of torchvision's references, of timm or of Lightning, of a plain state
            dict, or of a .safetensors file. Arguments, dates and numpy scalars beside the weights are passed over.
            Averaged weights (EMA) are taken where a checkpoint has a whole set of them.

    Returns:
        Tensors by name, on the CPU, and what they are: "model_90.pth (model_ema)".

    Raises:
        UserError: a file that is missing, unreadable, would have to be unpickled, or holds no state dict.
    """
    path, head = Path(path), b""
    try:
        if not path.is_file():
            raise UserError(f"checkpoint {path}: {'not a file' if path.exists() else 'no such file'}")
        with path.open("rb") as file:
            head = file.read(64)
        if _is_safetensors(path, head):
            content = load_file(path)
        else:
            known = torch.serialization.safe_globals([(_Beside, name) for name in _KNOWN_BESIDE])
            with known, warnings.catch_warnings():
                warnings.simplefilter("ignore")
                content = torch.load(path, map_location="cpu", weights_only=True)
    except UserError:
        raise
    except PermissionError:
        raise UserError(f"checkpoint {path}: no permission to read it") from None
    except Exception as error:  # torch.load has no error of its own: zip, pickle, unicode, key, system and other errors
        raise UserError(f"checkpoint {path}: {_unreadable(error, head)}") from None
    found = _weights(content)
    if found is None:
        entries = ", ".join((*_CONTAINERS, *_AVERAGED))
        raise UserError(f"checkpoint {path}: holds no state dict (tensors by name), also not under {entries}")
    entry, state = found
    return state, f"{path} ({entry})" if entry else str(path)


_NO_WEIGHTS = {
    b"<": "it is a web page, perhaps in place of a download",
    b"version https://git-lfs": "it is a pointer of Git LFS, in place of the file",
}
_Weights = tuple[str, dict[str, Tensor]]  # and the entry of the checkpoint that they stand under, "ema.module"


def _weights(content: object, depth: int = 3) -> _Weights | None:
    if not isinstance(content, dict) or not content or not depth:
        return None
    if all(isinstance(name, str) and _is_plain(value) for name, value in content.items()):
        return "", content
    plain, averaged = (_first_weights(content, keys, depth - 1) for keys in (_CONTAINERS, _AVERAGED))
    # Some average the parameters alone, which without the statistics of batch norm are no network.
    whole = averaged and (plain is None or set(map(_bare_name, plain[1])) <= set(map(_bare_name, averaged[1])))
    return averaged if whole else plain


def _first_weights(content: dict, keys: tuple[str, ...], depth: int) -> _Weights | None:
    for key in keys:
        if found := _weights(content.get(key), depth):
            return f"{key}.{found[0]}".rstrip("."), found[1]
    return None


def _is_plain(value: object) -> bool:
    """Whether a value is a tensor that has its numbers, in a form that copies into any other."""
    kinds = (Tensor, nn.Parameter)
    return type(value) in kinds and value.layout == torch.strided and not value.is_meta and not value.is_quantized


def _is_safetensors(path: Path, head: bytes) -> bool:
    """Eight bytes with the header's length, then the header, whatever the file is called."""
    length = int.from_bytes(head[:8], "little")
    return path.suffix == ".safetensors" or head[8:9] == b"{" and length <= path.stat().st_size - 8


def _unreadable(error: Exception, head: bytes) -> str:
    """Why a file could not be read, in one line."""
    refused = isinstance(error, pickle.UnpicklingError)
    code = re.search(r"GLOBAL ([\w.]+)", str(error)) if refused else None
    # torch.save wrote its magic number first before PyTorch 1.6: such a file is no plain pickle, but may be damaged
    plain_pickle = refused and re.match(rb"\x80(?!\x02\x8a\nl\xfc\x9c)", head)
    if code or plain_pickle or "TorchScript" in str(error):
        what = code[1] if code else "a plain pickle" if plain_pickle else "a TorchScript archive"
        return (
            f"not read: it holds {what}, which would have to be unpickled, and that can run code; save its state dict"
        )
    why = "damaged, cut short, or of another kind" if head else "it is empty"
    why = next((cause for begin, cause in _NO_WEIGHTS.items() if head.lstrip().startswith(begin)), why)
    return f"not a file of tensors that torch.load(weights_only=True) or safetensors reads; {why}"


def torchvision_weights(name: str) -> dict[str, Tensor]:
    """The weights that torchvision names `name` ("ResNet50_Weights.IMAGENET1K_V1"), downloaded unless cached, for
    `load`. Raises UserError: an unknown name, or a download that fails."""
    from torchvision.models import get_model_weights, get_weight, list_models  # as long to import as torch

    try:
        weights = get_weight(name)
    except (ValueError, KeyError):
        known = {str(entry) for model in list_models() for entry in get_model_weights(model)}
        close = get_close_matches(name, sorted(known), n=1, cutoff=0.3)
        hint = f"; did you mean {close[0]}?" if close else ", which look like ResNet50_Weights.IMAGENET1K_V1"
        raise UserError(f"pretrained weights {name}: torchvision has none of this name{hint}") from None
    try:
        return weights.get_state_dict(progress=False, check_hash=True)
    except (OSError, RuntimeError) as error:
        reason = str(error).splitlines()[0][:120]
        raise UserError(f"pretrained weights {name}: {weights.url} could not be fetched ({reason})") from None


def _aliases(name: str, shift: int) -> list[str]:
    """What a tensor of the network may be called in a checkpoint, the nearest first.

    Flows are matched from the last one on, as a flow's size is what its statistics belong to: `shift` is the
    checkpoint's number of flows less the network's.
    """
    own = _EARLIER.sub(lambda match: f"earlier.{int(match[1]) + shift}.", name)
    last = _EARLIER.sub("", name)
    return [own, _inner_name(own), last, _inner_name(last), _plain_name(last)]


def _inner_name(name: str) -> str:
    """A backbone's name whatever network the backbone is part of; other names as they are."""
    match = _INNER.search(name)
    return match[1] if match else name


def _plain_name(name: str) -> str:
    """torchvision's name."""
    match = _STAGE.match(name)
    return match[2] if match else name.removeprefix("head.")


def _earlier_flows(state: dict[str, Tensor]) -> int:
    return max((int(match[1]) + 1 for match in map(_EARLIER.search, state) if match), default=0)


def _bare_name(name: str) -> str:
    """A checkpoint's name without what wrappers put before it."""
    return _OUTER.sub("", _WRAPPERS.sub("", name))


def _names_by_alias(state: dict[str, Tensor], own: dict[str, Tensor]) -> dict[str, str]:
    """Every alias that finds a tensor of the checkpoint -> the tensor's own name in it."""
    names = {name: name for name in state}
    for alias_of in (_bare_name, lambda name: _inner_name(_bare_name(name))):
        for name in state:
            names.setdefault(alias_of(name), name)
    # Two stages with children of the same names ("0.weight") cannot be told apart without their stage.
    times = Counter(_plain_name(name) for name in own if not _EARLIER.search(name))
    return {alias: name for alias, name in names.items() if times[alias] < 2 or alias in own}


def _inflatable(theirs: Tensor, ours: Tensor) -> bool:
    return theirs.ndim == 4 and ours.ndim == 5 and theirs.shape == ours.shape[:2] + ours.shape[3:]


def _check_architecture(report: Report, own: dict[str, Tensor], state: dict[str, Tensor]) -> None:
    """Heads, gates, attention blocks, appended stages and the stem's size may differ; else the backbone may not."""
    backbone = [name for name in own if _STAGE.match(name) and not _EARLIER.search(name)]
    loaded = set(report.loaded).intersection(backbone)
    stages = {_STAGE.match(name)[1] for name in loaded}
    layers = {_plain_name(name).split(".")[0] for name in loaded}
    for name, theirs, ours in report.mismatched:
        if name in backbone[1:]:
            _refuse(f"{_plain_name(name)} is {_shape(theirs)} in the checkpoint and {_shape(ours)} in the network")
    if not loaded:
        theirs = f"{next(iter(state))} {_shape(next(iter(state.values())).shape)}" if state else "nothing"
        ours = f"{backbone[0]} {_shape(own[backbone[0]].shape)}" if backbone else "no stages"
        _refuse(f"the checkpoint begins with {theirs}, the network with {ours}, and nothing of the backbone fits")
    for name in report.missing:
        if name in backbone and _STAGE.match(name)[1] in stages and not _ADDED.search(name):
            _refuse(f"the network's {_plain_name(name)} is not in the checkpoint")
    for name in report.unexpected:
        match = None if _EARLIER.search(name) else _STAGE.match(name)
        if match[1] in stages if match else _bare_name(name).split(".")[0] in layers:
            _refuse(f"the checkpoint's {name} has no place in the network")


def _refuse(difference: str) -> NoReturn:
    raise UserError(f"wrong checkpoint, or one of another architecture: {difference}")


def _shape(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape)) or "scalar"


def _some(names: list[str], most: int = 3) -> str:
    return ", ".join(names[:most]) + (", ..." if len(names) > most else "")
