"""TDAF against the plain backbone: as it is, folded, compiled, and in memory."""

from __future__ import annotations

import copy
import gc
from collections.abc import Callable

import torch
from torch import Tensor, nn

from benchmarks.networks import forward, images, milliseconds, network, placed, published, settled, training
from benchmarks.settings import Settings
from benchmarks.timing import Result, Times, interleaved, timed
from tdaf import measure
from tdaf.engine.precision import Precision
from tdaf.errors import RunError
from tdaf.model.fold import fold

PLAIN, TDAF, TORCHVISION = "plain", "TDAF", "torchvision"
FORWARD, TRAINING = 25, 12  # rounds, where the command line does not say


def model(settings: Settings) -> dict[str, Result]:
    """Forward and training step of TDAF / plain, multiply-adds of both, and the plain one / torchvision's own."""
    precision, make = placed(settings)
    x, plain, tdaf = images(settings), make(1), make(settings.flows)
    candidates = {PLAIN: forward(plain, x, precision), TDAF: forward(tdaf, x, precision)}
    other = published(settings)
    if other is not None:
        candidates[TORCHVISION] = forward(precision.place(other), _normalised(x), precision)
    times = interleaved(candidates, settings.rounds(FORWARD), settings.device)
    found = {"gflops": _gflops(settings), "forward": against(times, TDAF, PLAIN, settings.batch)}
    if other is not None:
        found["torchvision"] = against(times, PLAIN, TORCHVISION, settings.batch)
    candidates = {PLAIN: training(plain, x, precision), TDAF: training(tdaf, x, precision)}
    times = interleaved(candidates, settings.rounds(TRAINING), settings.device)
    return {**found, "training": against(times, TDAF, PLAIN, settings.batch)}


def folding(settings: Settings) -> dict[str, Result]:
    """Inference with batch norms folded into convolutions, and how far its logits are from the others."""
    precision = Precision("auto", settings.device)
    x = images(settings)
    few = x[:8].cpu()
    tdaf, plain = settled(network(settings, settings.flows), few), settled(network(settings, 1), few)
    short, short_plain = fold(tdaf), fold(plain)
    difference = _difference(settings, tdaf, short, few)
    names = {"TDAF": tdaf, "TDAF folded": short, "plain folded": short_plain}
    candidates = {name: forward(precision.place(each), x, precision) for name, each in names.items()}
    times = interleaved(candidates, settings.rounds(FORWARD), settings.device)
    return {
        "folded": against(times, "TDAF folded", "TDAF", settings.batch),
        "folded_plain": against(times, "TDAF folded", "plain folded", settings.batch),
        "folded_difference": difference,
    }


def compiling(settings: Settings) -> dict[str, Result]:
    """torch.compile on both sides, as trainer.compile=true does; the training step on a GPU only."""
    precision, make = placed(settings)
    x, networks = images(settings), {PLAIN: make(1), TDAF: make(settings.flows)}
    for each in networks.values():
        each.compile()
    found = {}
    try:
        found["compiled"] = compiled(settings, forward, networks, x, precision, FORWARD)
        if settings.gpu:
            found["compiled_training"] = compiled(settings, training, networks, x, precision, TRAINING)
    except torch._dynamo.exc.TorchDynamoException as error:
        found.setdefault("compiled", Result(None, note=f"torch.compile failed: {str(error).splitlines()[0][:120]}"))
    return found


def memory(settings: Settings) -> dict[str, Result]:
    """Bytes kept for backward, counted; on a GPU also the peak of a training step."""
    pixels = images(settings, batch=2).cpu()
    networks = [network(settings, flows).train() for flows in (1, settings.flows)]
    plain, tdaf = (measure.saved_bytes(each, pixels) / len(pixels) for each in networks)
    absolute = {PLAIN: f"{plain / 2**20:.1f} MiB a sample", TDAF: f"{tdaf / 2**20:.1f} MiB a sample"}
    found = {"saved": Result(tdaf / plain, absolute=absolute, note="counted in float32")}
    if settings.gpu:
        plain, tdaf = (peak(settings, flows) for flows in (1, settings.flows))
        absolute = {PLAIN: f"{plain / 2**30:.2f} GiB", TDAF: f"{tdaf / 2**30:.2f} GiB"}
        found["peak"] = Result(tdaf / plain, absolute=absolute)
    return found


def _difference(settings: Settings, tdaf: nn.Module, short: nn.Module, x: Tensor) -> Result:
    """Of the largest logit, in float32; a network with exact statistics shows what float32's own rounding does."""
    rounded = settled(network(settings, settings.flows), x, exactly=True)
    with torch.no_grad():
        found = _apart(short(x), tdaf(x))
        single, folded, double = rounded(x), fold(rounded)(x), copy.deepcopy(rounded).double()(x)
    note = (
        f"float32; with the batch's own statistics {_apart(folded, single):.1e}, where float32 itself is "
        f"{_apart(single, double):.1e} from float64"
    )
    return Result(found, note=note)


def _apart(a: Tensor, b: Tensor) -> float:
    return float((a - b).abs().max() / b.abs().max())


def _gflops(settings: Settings) -> Result:
    x = images(settings, batch=1).to("meta")
    plain, tdaf = (measure.gflops(network(settings, n).to("meta"), x).total for n in (1, settings.flows))
    absolute = {PLAIN: f"{plain:.3f} GFLOPs", TDAF: f"{tdaf:.3f} GFLOPs"}
    return Result(tdaf / plain, absolute=absolute, note="multiply-adds")


def against(times: Times, name: str, peer: str, batch: int) -> Result:
    """Time of `name` / time of `peer`, with the absolute figures of both."""
    return times.result(name, peer, milliseconds({name: times.median(name), peer: times.median(peer)}, batch))


def compiled(
    settings: Settings,
    make: Callable[[nn.Module, Tensor, Precision], Callable[[], object]],
    networks: dict[str, nn.Module],
    x: Tensor,
    precision: Precision,
    rounds: int,
) -> Result:
    """Of networks that are compiled already. make: from a network to the call that is timed."""
    candidates = {name: make(each, x, precision) for name, each in networks.items()}
    times = interleaved(candidates, settings.rounds(rounds), settings.device, warm=3)
    return against(times, TDAF, PLAIN, settings.batch)


def _normalised(x: Tensor) -> Tensor:
    """What torchvision's network is fed with: floats, channels last."""
    return (x.float() / 127.5 - 1).contiguous(memory_format=torch.channels_last)


def peak(settings: Settings, flows: int) -> int:
    """Bytes allocated at most in a training step, with nothing else on the GPU."""
    gc.collect()
    torch.cuda.empty_cache()
    if torch.cuda.memory_allocated(settings.device) > 2**28:
        raise RunError("peak memory: another measurement's tensors are still on the GPU")
    precision, make = placed(settings)
    step = training(make(flows), images(settings), precision)
    timed(step, 2, settings.device)
    torch.cuda.reset_peak_memory_stats(settings.device)
    timed(step, 2, settings.device)
    return torch.cuda.max_memory_allocated(settings.device)
