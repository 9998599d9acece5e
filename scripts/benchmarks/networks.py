"""What TDAF costs beside its plain backbone: multiply-adds, memory and time, as it is, folded and compiled.

Each function measures one thing and returns it by the name under which the table of scripts/benchmark.py has it. Both
sides are built and placed as train.py does it: the same settings but for flows=1, the same seed, channels last.
"""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
import torchvision
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from benchmarks import BRIDGED
from benchmarks.data import photograph
from benchmarks.timing import Settings, Times, interleaved
from tdaf import measure
from tdaf.build import make
from tdaf.cli import build
from tdaf.cli.compose import Config, compose
from tdaf.engine.precision import Precision, float32
from tdaf.errors import RunError
from tdaf.model.backbones.library import stages
from tdaf.model.fold import fold
from tdaf.model.normalise import Normalise
from tdaf.task import Batch, Task

PLAIN, TDAF, TORCHVISION = "plain", "TDAF", "torchvision's own network"
OWN = "timm's own network"
CLASSES = {"imagenet": 1000, "coco_fcos": 80}
Found = dict[str, Times | dict[str, float]]


def gflops(settings: Settings) -> Found:
    """Multiply-adds of an image, and of TDAF's parts."""
    plain, tdaf = _gflops(sides(settings), images(settings, batch=1))
    parts = {"its flows": tdaf.flows, "its gates": tdaf.gates, "the rest": tdaf.rest}
    return {"gflops": {PLAIN: plain.total, TDAF: tdaf.total, **parts}}


def forward(settings: Settings) -> Found:
    """The forward pass; also of torchvision's own network, where it has this backbone."""
    networks, weights = sides(settings), configured(settings, 1)[0]["weights"]
    if weights is not None:
        name = weights.split(".")[0].removesuffix("_Weights").lower()
        normalise = Normalise([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
        networks[TORCHVISION] = nn.Sequential(normalise, torchvision.models.get_model(name))
    return {"forward": _forward_times(networks, images(settings), settings)}


def bridge(settings: Settings) -> Found:
    """The forward pass and a training step of timm's networks as stages, without TDAF, beside timm's own modules."""
    import timm

    found: Found = {}
    x = torch.randn(settings.batch, 3, settings.size, settings.size, device=settings.device)
    for name in BRIDGED:
        staged = stages(f"timm/{name}")
        ours = nn.Sequential(nn.Sequential(*staged.stages), staged.classifier(staged.widths[-1], 1000))
        networks = {"ours": ours, OWN: timm.create_model(name, **staged.classifier.create.keywords)}
        found[f"bridge_{name}"] = _forward_times(networks, x, settings)
        found[f"bridge_training_{name}"] = _training_times(networks, settings, {**labelled(settings), "input": x})
    return found


def training(settings: Settings) -> Found:
    """A training step: forward, backward, update."""
    return {"training": _training_times(sides(settings), settings)}


def folding(settings: Settings) -> Found:
    """Inference as it is and with batch norms folded into convolutions, on a GPU the latter as CUDA graphs too, all in
    the same rounds; and how far the logits of TDAF folded are from its own, in float32."""
    x = images(settings)
    networks = _folded_sides(settings, x)
    with torch.no_grad():
        whole, folded = (networks[name](x[:8].cpu()) for name in (TDAF, f"{TDAF} folded"))
    difference = {"difference": float((folded - whole).abs().max()), "largest logit": float(whole.abs().max())}
    return {"folded": _forward_times(networks, x, settings), "folded_difference": difference}


def compiled(settings: Settings) -> Found:
    """torch.compile on both sides, as trainer.compile=true does; the training step on a GPU only."""
    networks, found = sides(settings), {}
    for each in networks.values():
        each.compile()
    try:
        found["compiled"] = _forward_times(networks, images(settings), settings)
        if settings.gpu:
            found["compiled_training"] = _training_times(networks, settings)
    except torch._dynamo.exc.TorchDynamoException as error:
        print(f"torch.compile failed: {str(error).splitlines()[0][:120]}", file=sys.stderr)
    return found


def memory(settings: Settings) -> Found:
    """MiB an image that are kept for backward in float32, counted; on a GPU also the peak of a training step in GiB."""
    x = images(settings, batch=2).cpu()
    saved = {name: measure.saved_bytes(each.train(), x) / 2 / 2**20 for name, each in sides(settings).items()}
    peak = {name: _peak(settings, name) / 2**30 for name in saved} if settings.gpu else {}
    return {"saved": saved, "peak": peak}


class _Traffic(TorchDispatchMode):
    """Adds up the bytes of what each operation is given and gives, convolutions apart."""

    def __init__(self) -> None:
        super().__init__()
        self.convolutions = self.rest = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if not func.is_view:
            # what is given by keyword is out=, the result itself
            tensors = [leaf for leaf in tree_leaves((args, result)) if isinstance(leaf, Tensor)]
            moved = sum(each.numel() * each.element_size() for each in tensors)
            if "convolution" in func.name():
                self.convolutions += moved
            else:
                self.rest += moved
        return result


def traffic(settings: Settings) -> Found:
    """MiB an image that forward and backward read and write in float32, an operation at a time, counted."""
    batch, counted = {key: value.to("meta") for key, value in labelled(settings).items()}, {}
    for name, network in sides(settings).items():
        own = configured(settings, 1)[1]
        with _Traffic() as counted[name]:
            sum(own.losses(network.to("meta").train()(batch["input"]), batch).values()).backward()
    mib = settings.batch * 2**20
    return {
        "moved": {name: (each.convolutions + each.rest) / mib for name, each in counted.items()},
        "moved_rest": {name: each.rest / mib for name, each in counted.items()},
    }


def detection(settings: Settings) -> Found:
    """FCOS with 80 classes on one image of the size at which COCO is tested, without the suppression of boxes."""
    x = torch.randint(0, 256, (1, 3, 800, 1344), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    plain, tdaf = _gflops(sides(settings, "coco_fcos"), x)
    times = _forward_times(sides(settings, "coco_fcos"), x.to(settings.device), settings, rounds=10)
    return {"fcos_gflops": {PLAIN: plain.total, TDAF: tdaf.total}, "fcos": times}


def configured(settings: Settings, flows: int, task: str = "imagenet") -> tuple[Config, Task]:
    """The resolved settings of a training run and its task, which knows its classes' names but no images."""
    network = [f"backbone={settings.backbone}", f"anar={settings.anar}", f"flows={flows}"]
    config = compose([f"task={task}", *network, f"trainer.batch={settings.batch}"])
    return config, make(config["task"], "task", data=SimpleNamespace(classes=[*map(str, range(CLASSES[task]))]))


def sides(settings: Settings, task: str = "imagenet") -> dict[str, nn.Module]:
    """The plain network and TDAF, always with the same weights, on the CPU."""
    networks = {}
    for name, flows in ((PLAIN, 1), (TDAF, settings.flows)):
        torch.manual_seed(0)
        networks[name] = build.network(*configured(settings, flows, task))
    return networks


def images(settings: Settings, batch: int | None = None) -> Tensor:
    """Bytes (B, 3, size, size) on the device: eight drawn photographs, repeated."""
    batch, generator = batch or settings.batch, np.random.default_rng(0)
    drawn = np.stack([photograph(settings.size, settings.size, generator) for _ in range(min(8, batch))])
    x = torch.from_numpy(drawn).permute(0, 3, 1, 2).contiguous()
    return x.repeat(-(-batch // len(x)), 1, 1, 1)[:batch].to(settings.device)


def labelled(settings: Settings) -> Batch:
    """A batch of `images`, each of another class."""
    x = images(settings)
    label = torch.arange(len(x), device=x.device)
    return {"input": x, "label": label % CLASSES["imagenet"], "index": label}


def _folded_sides(settings: Settings, x: Tensor) -> dict[str, nn.Module]:
    """Both sides with the running statistics of three batches, as they are and folded."""
    networks = sides(settings)
    with torch.no_grad():
        for each in networks.values():
            for _ in range(3):
                each.train()(x[:8].cpu())
    return {**networks, **{f"{name} folded": fold(each.eval()) for name, each in networks.items()}}


def _forward_times(networks: dict[str, nn.Module], x: Tensor, settings: Settings, rounds: int = 25) -> Times:
    """Folded networks, of a name that ends so, are timed as CUDA graphs as well where there is a GPU."""
    precision = Precision("auto", settings.device)

    def evaluating(network: nn.Module) -> Callable[[], Tensor]:
        @torch.no_grad()
        def call() -> Tensor:
            with precision.autocast():
                return network(x)

        precision.place(network).eval()
        return call

    calls: dict[str, Callable[[], object]] = {name: evaluating(each) for name, each in networks.items()}
    if settings.gpu:
        graphed = {name: call for name, call in calls.items() if name.endswith(" folded")}
        calls |= {name.replace("folded", "graph"): _graph(call) for name, call in graphed.items()}
    return interleaved(calls, settings.pairs or rounds, settings.device, warm=3).of(len(x), "images")


def _graph(call: Callable[[], object]) -> Callable[[], None]:
    """The call as a CUDA graph, to be replayed without the CPU's part in it."""
    aside = torch.cuda.Stream()
    aside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(aside):  # what is allocated and chosen in the first calls must not be captured
        for _ in range(3):
            call()
    torch.cuda.current_stream().wait_stream(aside)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    return graph.replay


def _training_times(networks: dict[str, nn.Module], settings: Settings, batch: Batch | None = None) -> Times:
    calls = {name: _step(each, settings, batch) for name, each in networks.items()}
    return interleaved(calls, settings.pairs or 12, settings.device, warm=3).of(settings.batch, "images")


def _step(network: nn.Module, settings: Settings, batch: Batch | None = None) -> Callable[[], None]:
    return training_step(
        network, *configured(settings, 1), batch or labelled(settings), Precision("auto", settings.device)
    )


def training_step(
    network: nn.Module, config: Config, task: Task, batch: Batch, precision: Precision
) -> Callable[[], None]:
    """A call that makes one step with the recipe's own optimizer: forward, losses, backward, update."""
    network = precision.place(network).train()
    optimizer = build.optimizer(config)(network)

    def call() -> None:
        with precision.autocast():
            outputs = network(batch["input"])
        sum(task.losses(float32(outputs), batch).values()).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return call


def _gflops(networks: dict[str, nn.Module], x: Tensor) -> list[measure.Gflops]:
    return [measure.gflops(each.to("meta"), x.to("meta")) for each in networks.values()]


def _peak(settings: Settings, side: str) -> int:
    """Bytes allocated at most in a training step, with nothing else on the GPU."""
    gc.collect()
    torch.cuda.empty_cache()
    if torch.cuda.memory_allocated(settings.device) > 2**28:
        raise RunError("peak memory: another measurement's tensors are still on the GPU")
    step = _step(sides(settings)[side], settings)
    step()
    torch.cuda.reset_peak_memory_stats(settings.device)
    step()
    return torch.cuda.max_memory_allocated(settings.device)
