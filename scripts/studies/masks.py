"""What the masks of a trained network are worth: its top-1 with other masks put in their place, and where they are high.

A mask that tells something of its own image cannot be exchanged for another image's without a loss; one that only
scales a stage can be exchanged for one number.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor, nn
from torch.nn import functional as F

from tdaf.demo.classification import imagenet_scene
from tdaf.engine.trained import load_checkpoint
from tdaf.model.anar import ANAR
from tdaf.model.maps import attention_maps
from tdaf.model.maps import gate_statistics

BATCH = 100
EXCHANGES = ("its own", "even over the places", "of another image", "the mean of all images", "one number", "1 - eta")
Change = Callable[[nn.Module, Tensor], Tensor]


@dataclass(frozen=True)
class Evidence:
    """top1: in percent, by what stands in the place of the masks. places: by (flow, stage), over all images: the mean
    mask, on the object and beside it, and what tdaf/model/maps.py says: the shares of saturated values, closed
    and open, and the deviations within a mask, of the mean mask, and over the images at a place."""

    top1: dict[str, float]
    places: dict[tuple[int, int], tuple[float, ...]]

    def plain(self) -> dict[str, Any]:
        """As JSON takes it."""
        return {"top1": self.top1, "places": [[*key, *values] for key, values in self.places.items()]}

    @classmethod
    def of(cls, plain: dict[str, Any]) -> Evidence:
        return cls(plain["top1"], {(flow, stage): tuple(values) for flow, stage, *values in plain["places"]})


@torch.no_grad()
def masks(folder: Path) -> Evidence:
    """Of a run of the study with TDAF, over its whole validation split."""
    run = load_checkpoint(folder)
    config = run.settings
    task = run.task(data=True)
    network = run.network(task)
    dataset = task.dataset("val")
    # the files lie class by class: a batch is to hold all classes, and "another image" mostly one of another class
    order = np.random.default_rng(0).permutation(len(dataset))
    samples = [dataset[int(i)] for i in order]
    inputs = torch.stack([sample["input"] for sample in samples]).split(BATCH)
    labels = torch.tensor([sample["label"] for sample in samples])
    means = _means(network, inputs)
    changes: dict[str, Change | None] = {
        "its own": None,
        "even over the places": lambda gate, mask: mask.mean((2, 3), keepdim=True).expand_as(mask),
        "of another image": lambda gate, mask: mask.roll(1, 0),
        "the mean of all images": lambda gate, mask: means[gate].expand_as(mask),
        "one number": lambda gate, mask: means[gate].mean().expand_as(mask),
        "1 - eta": lambda gate, mask: torch.full_like(mask, 1 - config["eta"]),
    }
    top1 = {}
    for name in EXCHANGES:
        with _exchanged(network, changes[name]):
            said = torch.cat([network(part).argmax(1) for part in inputs])
        top1[name] = 100 * (said == labels).float().mean().item()
    outlines = torch.stack([_outline(config, dataset.name(int(i)), inputs[0].shape[-1]) for i in order])
    return Evidence(top1, _places(network, inputs, outlines.split(BATCH)))


@contextmanager
def _exchanged(network: nn.Module, change: Change | None) -> Iterator[None]:
    gates = [module for module in network.modules() if isinstance(module, ANAR)] if change else []
    handles = [gate.register_forward_hook(lambda gate, inputs, mask: change(gate, mask)) for gate in gates]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _means(network: nn.Module, inputs: tuple[Tensor, ...]) -> dict[nn.Module, Tensor]:
    """Of each gate the mean mask (1, 1, h, w) of all images."""
    sums: dict[nn.Module, Tensor] = {}

    def add(gate: nn.Module, mask: Tensor) -> Tensor:
        sums[gate] = sums.get(gate, 0) + mask.sum(0, keepdim=True)
        return mask

    with _exchanged(network, add):
        for part in inputs:
            network(part)
    return {gate: total / sum(map(len, inputs)) for gate, total in sums.items()}


def _places(
    network: nn.Module, inputs: tuple[Tensor, ...], outlines: tuple[Tensor, ...]
) -> dict[tuple[int, int], tuple[float, ...]]:
    """outlines: (B, H, W), 1 on the object. Each image counts alike."""
    on: dict[tuple[int, int], list[Tensor]] = defaultdict(list)
    beside: dict[tuple[int, int], list[Tensor]] = defaultdict(list)
    for part, outline in zip(inputs, outlines, strict=True):
        for key, mask in attention_maps(network, part).items():
            covered = F.adaptive_avg_pool2d(outline[:, None], mask.shape[2:])
            for found, weight in ((on, covered), (beside, 1 - covered)):
                found[key].append((mask * weight).sum((1, 2, 3)) / weight.sum((1, 2, 3)))
    statistics = gate_statistics(network, inputs)
    return {
        key: (
            one.mean,
            torch.cat(on[key]).mean().item(),
            torch.cat(beside[key]).mean().item(),
            *(one.closed, one.open, one.within, one.fixed, one.varying),
        )
        for key, one in statistics.items()
    }


def _outline(config: dict, name: str, size: int) -> Tensor:
    """(size, size), 1 on the object of a validation image as the network sees it: resized and cut at the centre."""
    demo, short = config["demo"], config["task"]["val_transforms"]["1crop"]["short_side"]
    index = int(Path(name).stem.rpartition("_")[2]) - 1
    image, points = imagenet_scene(demo["seed"], "val", index, demo["size"])
    scale = short / min(image.size)
    corner = (np.round(np.array(image.size) * scale) - size) / 2
    canvas = Image.new("L", (size, size))
    ImageDraw.Draw(canvas).polygon([tuple(point) for point in points * scale - corner], fill=1)
    return torch.from_numpy(np.asarray(canvas, np.float32).copy())
