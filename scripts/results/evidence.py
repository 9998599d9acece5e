"""What the study's runs say, and how sure it is: tests paired by seed, step times, what masks are worth; its page."""

from __future__ import annotations

import datetime
import json
import math
import os
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib
import numpy as np
import torch
from matplotlib.figure import Figure
from PIL import Image, ImageDraw
from torch import Tensor, nn
from torch.nn import functional as F

import curves
from results.comparison import (
    METRICS,
    ROUNDS,
    difference_text,
    finished,
    holm,
    interval,
    paired,
    points,
    said,
    step_times,
)
from results.runs import Run
from results.tabular import markdown_table, write_section
from tdaf.demo.classification import SCENES
from tdaf.engine.log import RunFolder
from tdaf.engine.summary import versions
from tdaf.engine.trained import load_checkpoint
from tdaf.env import commit, processor
from tdaf.errors import RunError
from tdaf.model.anar import ANAR
from tdaf.model.maps import attention_maps, gate_statistics

if TYPE_CHECKING:
    from study import Group

BATCH, LOOKED_AT = 100, 200
EXCHANGES = ("its own", "even over the places", "of another image", "the mean of all images", "one number", "1 - eta")
# of (flow, stage), over all images: the mean mask, on the object and beside it, and what tdaf/model/maps.py says:
# the shares of saturated values, and the deviations within a mask, of the mean mask, and over the images at a place
COLUMNS = ("mean", "on the object", "beside it", "closed", "open", "within", "fixed", "varying")
BEGIN, END = "<!-- measured -->", "<!-- end of what was measured -->"
NEW = f"# Does top-down attention help, measured here?\n\n{BEGIN}\n{END}\n"
MASKED = ("TDAF", "TDAF, 16 epochs")  # rows whose masks are looked into
LOSSES = [f"{name}{schedule}" for schedule in ("", ", 16 epochs") for name in ("plain", "multi-scale", "TDAF")]

Change = Callable[[nn.Module, Tensor], Tensor]


def cached(path: Path, key: Any, measure: Callable[[], Any]) -> Any:
    """What `measure` gives, as JSON has it, from a file where that has it for the same `key`; the file is written whole
    or not at all, and a damaged one is measured again."""
    try:
        content = json.loads(path.read_text())
        if content["key"] == key:
            return content["figures"]
    except (OSError, ValueError, KeyError, TypeError):
        pass
    text = json.dumps({"key": key, "figures": measure()}, indent=2) + "\n"
    RunFolder(path.parent).write(path.name, text)
    return json.loads(text)["figures"]


@torch.no_grad()
def masks(folder: Path) -> dict[str, Any]:
    """What the masks of a trained network are worth, over `LOOKED_AT` validation images of a run of the study.

    A mask that tells something of its own image cannot be exchanged for another image's without a loss; one that only
    scales a stage can be exchanged for one number. Returns "top1": in percent, by what stands in the place of the masks
    (`EXCHANGES`); "places": (flow, stage, *`COLUMNS`) of each.
    """
    run = load_checkpoint(folder)
    task = run.task(data=True)
    network, dataset = run.network(task), task.dataset("val")
    # the files lie class by class: a batch is to hold all classes, and "another image" mostly one of another class
    order = [int(i) for i in np.random.default_rng(0).permutation(len(dataset))][:LOOKED_AT]
    samples = [dataset[i] for i in order]
    inputs = torch.stack([sample["input"] for sample in samples]).split(BATCH)
    labels = torch.tensor([sample["label"] for sample in samples])
    means: dict[nn.Module, Tensor] = defaultdict(lambda: torch.zeros(()))  # (1, 1, h, w)

    def add(gate: nn.Module, mask: Tensor) -> Tensor:
        means[gate] = means[gate] + mask.sum(0, keepdim=True) / len(samples)
        return mask

    with _exchanged(network, add):
        for part in inputs:
            network(part)
    changes: tuple[Change, ...] = (
        lambda gate, mask: mask,
        lambda gate, mask: mask.mean((2, 3), keepdim=True).expand_as(mask),
        lambda gate, mask: mask.roll(1, 0),
        lambda gate, mask: means[gate].expand_as(mask),
        lambda gate, mask: means[gate].mean().expand_as(mask),
        lambda gate, mask: torch.full_like(mask, 1 - run.settings["eta"]),
    )
    top1 = {}
    for name, change in zip(EXCHANGES, changes, strict=True):
        with _exchanged(network, change):
            classes = torch.cat([network(part).argmax(1) for part in inputs])
        top1[name] = 100 * (classes == labels).float().mean().item()
    outlines = torch.stack([_outline(run.settings, dataset.name(i), inputs[0].shape[-1]) for i in order])
    return {"top1": top1, "places": _places(network, inputs, outlines[:, None].split(BATCH))}


@contextmanager
def _exchanged(network: nn.Module, change: Change) -> Iterator[None]:
    gates = [module for module in network.modules() if isinstance(module, ANAR)]
    handles = [gate.register_forward_hook(lambda gate, inputs, mask: change(gate, mask)) for gate in gates]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _places(network: nn.Module, inputs: Sequence[Tensor], outlines: Sequence[Tensor]) -> list[tuple[float, ...]]:
    """outlines: (B, 1, H, W), 1 on the object. Each image counts alike."""
    shares: dict[tuple[int, int], list[Tensor]] = defaultdict(list)
    for part, outline in zip(inputs, outlines, strict=True):
        for key, mask in attention_maps(network, part).items():
            covered = F.adaptive_avg_pool2d(outline, mask.shape[2:])
            weights = torch.stack([covered, 1 - covered])
            shares[key].append((mask * weights).sum((2, 3, 4)) / weights.sum((2, 3, 4)))  # (2, B)
    places = []
    for key, one in gate_statistics(network, inputs).items():
        on_and_beside = torch.cat(shares[key], 1).mean(1).tolist()
        places.append((*key, one.mean, *on_and_beside, one.closed, one.open, one.within, one.fixed, one.varying))
    return places


def _outline(config: dict[str, Any], name: str, size: int) -> Tensor:
    """(size, size), 1 on the object of a validation image as the network sees it: resized and cut at the centre."""
    demo, short = config["demo"], config["task"]["val_transforms"]["1crop"]["short_side"]
    index = int(Path(name).stem.rpartition("_")[2]) - 1
    image, points = SCENES[demo["kind"]](demo["seed"], "val", index, demo["size"])
    scale = short / min(image.size)
    corner = (np.round(np.array(image.size) * scale) - size) / 2
    canvas = Image.new("L", (size, size))
    ImageDraw.Draw(canvas).polygon([tuple(point) for point in points * scale - corner], fill=1)
    return torch.from_numpy(np.asarray(canvas, np.float32).copy())


def write_page(
    out: Path,
    groups: Sequence[Group],
    more: Sequence[str],
    runs: Path,
    command: str,
    rounds: int = ROUNDS,
    difference: float | None = None,
) -> None:
    """Writes the measured part of a page, and its plots into a folder of the same name; the rest of the page stays. It
    is of all finished runs; a group that has none is not on it.

    more: settings of every run. rounds: of the timing. difference: in points, of which it is told how many seeds would
    see it; None: nothing is told beyond the tables. Raises RunError where no run is finished.
    """
    by_name = finished(groups, runs)
    values = points(by_name)
    groups = [group for group in groups if any(row.name in values for row in group.rows)]
    if not groups:
        raise RunError(f"{runs}: no run of the study is finished, so there is nothing to write")
    timed = [row for group in groups for row in group.rows if group.timed and row.name in values]
    names = [row.name for row in timed]
    costs = cached(runs / "costs.json", names, lambda: step_times(timed, more, rounds)) if timed else {}
    every = [run.summary for own in by_name.values() for run in own.values()]
    counted = sorted({summary["samples"] for summary in every})
    devices = sorted({summary["device"].replace("cpu", "no GPU") for summary in every})
    metric = METRICS.get(every[0]["metric"]["name"], (every[0]["metric"]["name"], 1.0))[0]
    software = ", ".join(f"{name} {version}" for name, version in versions().items())
    images = " or ".join(map(str, counted))
    parts = [
        f"{datetime.date.today()}, commit {commit() or '-'}. {processor()}, {os.cpu_count()} cores, "
        f"{', '.join(devices)}. {software}. {len(every)} runs, each evaluated on {images} samples:"
        f"\n\n    {command}"
    ]
    folder = out.with_suffix("")
    for group in groups:
        parts.append(f"## {group.title}\n\n{_table(group, by_name, values, costs, metric)}")
        parts += ["\n".join(f"- {row.name}: {row.note}" for row in group.rows if row.note)]
        curves.save(_accuracies(group, values, metric), folder / f"{group.name}.svg")
        words = f"{metric} of {group.title.lower()}: every seed, means, 95 % intervals"
        parts.append(f"![{words}]({folder.name}/{group.name}.svg)")
    if difference is not None and (lines := said(groups, runs, difference)):
        parts.append("\n".join(["## What can be said", "", *(f"- {line}" for line in lines)]))
    curves.save(_losses(by_name), folder / "losses.svg")
    parts.append(f"## Training losses\n\n![training loss by step, mean of the seeds]({folder.name}/losses.svg)")
    for name in MASKED if difference is None else by_name:
        own = [run.folder for _, run in sorted(by_name.get(name, {}).items()) if _has_masks(run.config)]
        if own:
            cache = runs / f"masks-{own[0].name.rpartition('-seed')[0]}.json"
            parts.append(_masks(name, cached(cache, [*map(str, own)], lambda own=own: [*map(masks, own)])))
    write_section(out, BEGIN, END, "\n\n".join(filter(None, parts)), NEW)


def _has_masks(config: dict[str, Any]) -> bool:
    """Whether the run's network has masks, and it is known where the objects of its images are."""
    drawn = bool(config.get("demo")) and config["demo"]["kind"] in SCENES and config["data"]["root"] is None
    return drawn and config["flows"] > 1 and config["tdaf"]["_target_"] == "tdaf.model.flows.TDAF"


def _mean(values: Sequence[float]) -> str:
    mean, half = interval(values) if values else (math.nan, math.nan)
    return f"{mean:.1f} ± {half:.1f}".replace(" ± nan", "").replace("nan", "-")


def _table(
    group: Group,
    runs: Mapping[str, dict[int, Run]],
    values: Mapping[str, dict[int, float]],
    costs: Mapping[str, float],
    metric: str,
) -> str:
    """A row a network, with its difference to each reference and the p of that, adjusted for all rows of this table
    that are tested against it."""
    rows = [row.name for row in group.rows]
    rows = [*(name for name in group.references if name not in rows and name in values), *rows]
    own = [[*values.get(name, {}).values()] for name in rows]
    columns = [
        ["network", *rows],
        [f"{metric}, 95 % interval", *map(_mean, own)],
        ["seeds", *(str(len(v)) for v in own)],
    ]
    for reference in group.references:
        against = [row.name for row in group.rows if reference in row.against]
        tests = {name: paired(values.get(name, {}), values.get(reference, {})) for name in against}
        tests = {name: test for name, test in tests.items() if test}
        adjusted = dict(zip(tests, holm([test.p for test in tests.values()]), strict=True))
        columns.append([f"to {reference}", *(difference_text(tests.get(name)) for name in rows)])
        columns.append(["p", *(f"{adjusted.get(name, math.nan):.3f}".replace("nan", "-") for name in rows)])
    summaries = [next(iter(runs[name].values())).summary if name in runs else None for name in rows]
    columns.append(["parameters", *(f"{summary['params'] / 1e3:.1f}k" if summary else "-" for summary in summaries)])
    columns.append(["GFLOPs", *(f"{summary['gflops']:.4f}" if summary else "-" for summary in summaries)])
    if costs:
        columns.append(["training step", *(f"{costs[name]:.2f}" if name in costs else "-" for name in rows)])
    header, *cells = zip(*columns, strict=True)
    return markdown_table(header, cells)


def _masks(name: str, evidence: Sequence[dict[str, Any]]) -> str:
    """Two tables on the masks of a row's runs, means over the seeds."""
    own, rows = dict(enumerate(one["top1"]["its own"] for one in evidence)), []
    for exchange in EXCHANGES:
        values = dict(enumerate(one["top1"][exchange] for one in evidence))
        change = "-" if exchange == "its own" else difference_text(paired(values, own))
        rows.append([exchange, _mean([*values.values()]), change])
    first = markdown_table(["in the place of the masks", "top-1, 95 % interval", "to its own"], rows)
    means = np.mean([one["places"] for one in evidence], 0)
    fixed, varying = means[:, 2 + COLUMNS.index("fixed")] ** 2, means[:, 2 + COLUMNS.index("varying")] ** 2
    shared = np.mean(fixed / (fixed + varying).clip(1e-12))
    share = f"Over {LOOKED_AT} images a seed. A pattern that all masks have is {shared:.0%} of their variance."
    places = [[f"{flow:.0f}", f"{stage:.0f}", *(f"{value:.3f}" for value in own)] for flow, stage, *own in means]
    return f"## The masks of {name}\n\n{first}\n\n{markdown_table(['flow', 'stage', *COLUMNS], places)}\n\n{share}"


def _accuracies(group: Group, values: Mapping[str, dict[int, float]], metric: str) -> Figure:
    """A line a row: its seeds as small dots, their mean with its interval; dashed, the rows it is compared with."""
    rows = [name for name in group.references if name not in [row.name for row in group.rows]]
    rows = [name for name in (*rows, *(row.name for row in group.rows)) if name in values]
    blue, orange, *_ = curves.COLOURS
    with matplotlib.rc_context(curves.STYLE):
        figure = Figure(figsize=(7, 0.7 + 0.3 * len(rows)), layout="constrained")
        axes = figure.subplots()
        for place, name in enumerate(rows):
            own = [*values[name].values()]
            mean, half = interval(own)
            colour = orange if name in group.references else blue
            axes.plot(own, [place] * len(own), ".", color="#888888", markersize=4)
            axes.errorbar(mean, place, xerr=None if math.isnan(half) else half, fmt="o", color=colour, capsize=3)
            if name in group.references:
                axes.axvline(mean, color=orange, linewidth=0.8, linestyle="--")
        axes.set_yticks(range(len(rows)), rows)
        axes.invert_yaxis()
        axes.set_xlabel(f"{metric} in percent")
    return figure


def _losses(runs: Mapping[str, dict[int, Run]]) -> Figure:
    """The training loss of the plain network, the control and TDAF over the steps, each the mean of its seeds."""
    means = []
    for name in LOSSES:
        by_step: dict[float, list[float]] = defaultdict(list)
        for run in runs.get(name, {}).values():
            one = curves.Run(run.folder, run.config, curves.events(run.folder / "metrics.jsonl"))
            for step, loss in one.curve("train/loss", "step"):
                by_step[step].append(loss)
        events = [{"split": "train", "step": step, "loss": float(np.mean(by_step[step]))} for step in sorted(by_step)]
        means += [(name, curves.Run(Path(), {}, events))] if events else []
    return curves.figure(means or [("", curves.Run(Path(), {}, []))], ["train/loss"], "step", 0.0, "")
