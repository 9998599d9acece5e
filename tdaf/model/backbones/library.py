"""Any network of timm's or torchvision's, or a module of one's own, as stages: `tdaf.stages("timm/convnextv2_nano")`.

timm's networks are cut at the modules that its own `feature_info` names, torchvision's and others where their graph
shows maps to get smaller (`cut.py`); there is no table of networks here.
"""

from __future__ import annotations

import copy
import fnmatch
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from difflib import get_close_matches
from typing import Any

import torch
from torch import Tensor, nn

from tdaf.errors import UserError
from tdaf.model.backbones.cut import Cut, Operations, Refused, cut, first_line, strides
from tdaf.model.pretrained import torchvision_weights
from tdaf.model.staged import Staged

LIBRARIES = ("timm", "torchvision")
# Arguments of `timm.create_model` that say where weights come from, or that are said elsewhere.
_NOT_OPTIONS = (
    *("pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "pretrained_strict", "checkpoint_path", "cache_dir"),
    *("features_only", "num_classes", "weights", "progress", "out_indices", "model_name", "name"),
)
# What frees a network of timm's from the size of input that it is made for, where it has such an argument.
_ANY_SIZE: tuple[dict[str, bool], ...] = ({}, {"strict_img_size": False}, {"dynamic_img_size": True})


def stages(
    network: str | nn.Module,
    out_indices: Sequence[int] | None = None,
    pretrained: bool = False,
    options: Mapping[str, Any] | None = None,
    nodes: Sequence[str] | None = None,
    leaves: Sequence[type] = (),
    attention: Any = None,
    dims: int = 2,
) -> Staged:
    """A network as stages whose maps are exactly those that its library gives; for `TDAF(stages(...), flows=3)`.

    Args:
        network: "timm/NAME", "torchvision/NAME", or a module from images (B, 3, H, W) to one tensor, whose own
            submodules the stages then have.
        out_indices: which of the library's maps end a stage, counted from 0 as in timm; None: those that the library
            itself gives (`features_only`), which are all but for a few.
        pretrained: with the library's weights, downloaded; else with random ones as the library draws them.
        options: more arguments for the library's constructor, as {"drop_path_rate": 0.1}.
        nodes: of a module of one's own, names of the submodules whose outputs end the stages; None: the last map of
            each size.
        leaves: of a module of one's own, classes of submodules that torch.fx is not to look into.
        attention, dims: only None and 2: there is no place in such a network for a mechanism, and it is for images.

    Raises:
        UserError: a name that the library does not have (with the nearest that it has), or a pattern ("timm/resnet*",
            with what matches); a network that has no stages, with the reason (`Refused`).
    """
    if attention is not None:
        raise UserError("attention: a mechanism has no place in a network of another library; choose attention=none")
    if dims != 2:
        raise UserError(f"dims={dims}: networks of other libraries are for images, dims=2")
    if isinstance(network, nn.Module):
        return _staged(cut(network, nodes, None, out_indices, leaves))
    if nodes is not None or leaves:
        raise UserError(
            f"{network}: nodes and leaves are for modules of one's own; out_indices chooses maps of this one"
        )
    library, name = find(network)
    wrong = sorted(set(options or {}).intersection(_NOT_OPTIONS))
    if wrong:
        raise UserError(f"options: {wrong[0]} is nothing to set here")
    build = {"timm": _timm, "torchvision": _torchvision}[library]
    try:
        return build(name, pretrained, dict(options or {}), out_indices)
    except Refused as error:
        raise Refused(f"{network} cannot have TDAF: {error}") from error


def find(network: str) -> tuple[str, str]:
    """The library and the name in it. Raises UserError for what is not exactly one network of a library's."""
    library, _, name = network.partition("/")
    if library not in LIBRARIES:
        raise UserError(f"{network}: give timm/NAME or torchvision/NAME")
    known = names(library)
    if any(sign in name for sign in "*?["):
        found = fnmatch.filter(known, name)
        raise UserError(f"model={name}: {len(found)} networks of {library}'s match: {', '.join(found) or 'none'}")
    if not name:
        raise UserError(f"model=: name one of {library}'s networks; model=* lists all")
    base, _, tag = name.partition(".")
    if base not in known:
        close = get_close_matches(base, known, n=3)
        hint = f"did you mean {' or '.join(close)}?" if close else "model=* lists all"
        raise UserError(f"model={name}: {library} has no such network; {hint}")
    if tag and (library != "timm" or name not in (tagged := _timm_module().list_pretrained(f"{base}.*"))):
        hint = f"there are {', '.join(tagged)}" if library == "timm" else "give its name alone"
        raise UserError(f"model={name}: there are no such weights; {hint}")
    return library, name


def names(library: str) -> list[str]:
    """Of all image classifiers of a library."""
    if library == "timm":
        return _timm_module().list_models()
    from torchvision import models

    return models.list_models(module=models)


def preprocessing(network: str) -> dict[str, Any]:
    """How the library prepares pictures for its weights of this network.

    Returns:
        "mean" and "std", RGB in units of 0..1; "size", pixels of the input's side; "short_side", to which a picture is
        resized before that square is cut from its middle; "interpolation", "bilinear" or "bicubic"; "jitter", the
        smallest and largest short side of scale jitter, in proportion to 256 and 480 for 224.

    Raises:
        UserError: as `find`.
    """
    library, name = find(network)
    if library == "timm":
        config = _timm_module().data.resolve_data_config(pretrained_cfg=vars(_timm_module().get_pretrained_cfg(name)))
        size = config["input_size"][-1]
        short = math.floor(size / config["crop_pct"])
        values = {"mean": config["mean"], "std": config["std"], "interpolation": config["interpolation"]}
    else:
        from torchvision.models import get_model_weights

        transform = get_model_weights(name).DEFAULT.transforms()
        size, short = transform.crop_size[0], transform.resize_size[0]
        values = {"mean": transform.mean, "std": transform.std, "interpolation": transform.interpolation.value}
    lists = {key: list(value) if isinstance(value, tuple | list) else value for key, value in values.items()}
    jitter = [round(size * side / 224) for side in (256, 480)]
    return {**lists, "size": size, "short_side": short, "jitter": jitter}


def weights(network: str) -> dict[str, Tensor]:
    """The library's own weights of a network, by the library's names, downloaded unless cached, and never unpickled.
    Raises UserError: as `find`; a network without weights; a download that fails."""
    library, name = find(network)
    if library == "torchvision":
        from torchvision.models import get_model_weights

        return torchvision_weights(str(get_model_weights(name).DEFAULT))
    try:
        return _timm_module().create_model(name, pretrained=True).state_dict()
    except Exception as error:  # of the hub's client, of HTTP, of files
        raise UserError(f"pretrained weights {network} could not be fetched ({first_line(error)})") from None


def _timm_module() -> Any:
    try:
        import timm
    except ImportError:
        raise UserError("backbone=timm: timm is not installed; pip install 'tdaf[timm]' brings it") from None
    return timm


def _timm(name: str, pretrained: bool, options: dict[str, Any], out_indices: Sequence[int] | None) -> Staged:
    timm = _timm_module()
    from timm.layers import get_notrace_functions, get_notrace_modules

    refusal: Exception | None = None
    for freed in _ANY_SIZE:
        arguments = {**freed, **options}
        create = functools.partial(timm.create_model, name, **arguments)
        try:
            network = _made(create, pretrained=pretrained)
        except TypeError as error:  # it has no such argument
            refusal = refusal or _not_built(name, error)
            continue
        except (ValueError, AssertionError, LookupError, AttributeError) as error:
            raise _not_built(name, error) from error
        reported = getattr(network, "feature_info", None)
        reported = getattr(reported, "info", reported)
        if not reported:
            raise Refused("timm reports no maps of it (feature_info)")
        if len(reported) > 1 and len({entry["reduction"] for entry in reported}) == 1:
            size = reported[0]["reduction"]
            raise Refused(f"all {len(reported)} maps have one size, 1/{size} of the image: it is no pyramid")
        ends = [entry["module"] for entry in reported]
        if out_indices is None:
            out_indices = _usual_maps(name, arguments) or list(range(len(ends)))
        try:
            found = cut(
                network,
                ends,
                [entry["num_chs"] for entry in reported],
                out_indices,
                get_notrace_modules(),
                get_notrace_functions(),
            )
        except Refused as error:
            refusal = refusal or error
            continue
        return _staged(found, _Head(network, found, create), [reported[k]["reduction"] for k in out_indices])
    raise refusal


def _not_built(name: str, error: Exception) -> UserError:
    return UserError(f"{name} cannot be built with these options: {first_line(error)}")


def _made(create: Callable[..., nn.Module], **arguments: Any) -> nn.Module:
    """A network on the default device, also where that is the meta device and its constructor computes with values."""
    try:
        return create(**arguments)
    except RuntimeError:
        if torch.get_default_device().type != "meta":
            raise
        with torch.device("cpu"):
            network = create(**arguments)
        return network.to("meta")


def _usual_maps(name: str, arguments: dict[str, Any]) -> list[int] | None:
    """Those of its maps that timm gives where nobody chooses: not always all."""
    try:
        with torch.device("meta"):
            network = _made(_timm_module().create_model, model_name=name, features_only=True, **arguments)
        return list(network.feature_info.out_indices)
    except Exception:  # a network that timm reports maps of, and cannot be asked for them
        return None


def _torchvision(name: str, pretrained: bool, options: dict[str, Any], out_indices: Sequence[int] | None) -> Staged:
    from torchvision.models import get_model, get_model_weights

    create = functools.partial(get_model, name, **options)
    try:
        network = _made(create, weights=get_model_weights(name).DEFAULT if pretrained else None)
    except (TypeError, ValueError, AssertionError, LookupError, AttributeError) as error:
        raise _not_built(name, error) from error
    if hasattr(network, "transform_input"):
        raise Refused("with pretrained weights it changes the colours itself, and without them it does not")
    found = cut(network, None, None, out_indices)
    return _staged(found, _Head(network, found, create))


class _Head:
    """`Staged.classifier` of a library's network: all that comes after its last map, for any number of classes."""

    def __init__(self, network: nn.Module, found: Cut, create: Callable[..., nn.Module]) -> None:
        self.network, self.rest, self.width, self.create = network, found.rest, found.widths[-1], create
        self.classes = getattr(network, "num_classes", 1000)  # torchvision's do not say it, and are ImageNet's

    def __call__(self, width: int, classes: int) -> nn.Module:
        """(B, width, H, W) -> (B, classes). Raises UserError where the body's last map is not the network's own."""
        if width != self.width:
            raise UserError(
                f"head=published: the network's own takes {self.width} channels, not {width}; use head=linear"
            )
        network = self.network if classes == self.classes else _made(self.create, num_classes=classes)
        return copy.deepcopy(Operations(network, self.rest))

    def __deepcopy__(self, memo: dict[int, Any]) -> _Head:
        return self


def _staged(found: Cut, head: _Head | None = None, reported: list[int] | None = None) -> Staged:
    return Staged(found.stages, found.widths, reported or strides(found.stages), classifier=head)
