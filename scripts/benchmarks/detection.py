"""FCOS with TDAF against plain FCOS, on an image of the size at which COCO is tested."""

from __future__ import annotations

import copy
from types import SimpleNamespace

import torch
from torch import nn

from benchmarks.networks import forward, milliseconds
from benchmarks.settings import Settings
from benchmarks.timing import Result, interleaved
from tdaf.cli import build
from tdaf.cli.compose import compose
from tdaf import measure
from tdaf.engine.precision import Precision

PLAIN, TDAF = "plain", "TDAF"
ROUNDS = 10
CLASSES, HEIGHT, WIDTH = 80, 800, 1344


def detection(settings: Settings) -> dict[str, Result]:
    """Multiply-adds and forward pass of the network, without the suppression of overlapping boxes, one image a call."""
    x = torch.randint(0, 256, (1, 3, HEIGHT, WIDTH), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    networks = {PLAIN: _network(settings, 1), TDAF: _network(settings, settings.flows)}
    empty = {name: copy.deepcopy(each).to("meta") for name, each in networks.items()}
    gflops = {name: measure.gflops(each, x.to("meta")).total for name, each in empty.items()}
    counted = Result(gflops[TDAF] / gflops[PLAIN], absolute={n: f"{g:.1f} GFLOPs" for n, g in gflops.items()})
    precision = Precision("auto", settings.device)
    pixels = x.to(settings.device)
    candidates = {name: forward(precision.place(each), pixels, precision) for name, each in networks.items()}
    times = interleaved(candidates, settings.rounds(ROUNDS), settings.device)
    medians = milliseconds({name: times.median(name) for name in candidates}, 1)
    note = f"{HEIGHT} x {WIDTH} px, batch 1"
    return {"fcos_gflops": counted, "fcos": times.result(TDAF, PLAIN, medians, note)}


def _network(settings: Settings, flows: int) -> nn.Module:
    config = compose(["task=coco_fcos", f"backbone={settings.backbone}", f"anar={settings.anar}", f"flows={flows}"])
    torch.manual_seed(0)
    names = SimpleNamespace(classes=[str(k) for k in range(CLASSES)])
    return build.network(config, build.make(config["task"], "task", data=names))

