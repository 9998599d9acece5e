"""Measures speed and memory, each figure as a ratio to a named peer which is timed in turns with it:

    python scripts/benchmark.py [what=model,fold,...] [backbone=res50] [anar=3] [flows=3] [batch=N]
                                [size=224] [device=auto] [threads=N] [pairs=N] [images=160]
                                [out=PATH]

what: startup, loader, trainer, model, fold, memory, compile, detection, pose, clips, latency; all by default.
backbone: res50 by default, and for latency a table each of res50 and res101. batch: 8 by default, 128 on a GPU.
device: auto, cpu or cuda. threads: of torch in this process.
pairs: timed rounds of each measurement, instead of its own number. images: files for the loaders, a multiple of 32.
out: PATH.md gets a table of each subject measured (its other text stays) and PATH.json everything; without it nothing
is written. out=docs/benchmarks renews the project's own page. Each row says its bar and whether the median meets it;
the null is the peer against itself in the same rounds. Peers that are not installed have a dash. Exit codes as
train.py's.
"""

from __future__ import annotations

import dataclasses
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from tdaf.cli.arguments import given, main
from tdaf.errors import UserError

if TYPE_CHECKING:
    import torch
    from benchmarks.settings import Settings
    from benchmarks.timing import Result

NUMBERS = {"anar": 3, "flows": 3, "batch": None, "size": 224, "threads": None, "pairs": None, "images": 160}
OWN = ("what", "backbone", *NUMBERS, "device", "out")
WHAT = ("startup", "loader", "trainer", "model", "fold", "memory", "compile", "detection", "pose", "clips", "latency")
LATENCY = ("res50", "res101")  # the paper's


def benchmark(arguments: list[str]) -> int:
    own, rest = given(arguments, OWN, others=False)
    if rest:
        raise UserError(f"{rest[0]}: this script has no such setting; it has {', '.join(OWN)}")
    chosen = _chosen(own["what"])
    numbers = {name: _number(name, own[name], default) for name, default in NUMBERS.items()}
    if numbers["images"] % 32 or numbers["images"] < 64:
        raise UserError(f"images={numbers['images']}: give a multiple of 32, 64 or more")
    device = _device(own["device"] or "auto")
    import torch

    from benchmarks import machine, report
    from benchmarks.settings import Settings

    threads = numbers.pop("threads")
    if threads:
        torch.set_num_threads(threads)
    numbers["batch"] = numbers["batch"] or (128 if device.type == "cuda" else 8)
    settings = Settings(backbone=own["backbone"] or "res50", device=device, **numbers)
    subjects = _subjects()
    for name in chosen:
        for section, one in _tables(name, settings, own["backbone"]).items():
            print(f"measuring {section} ...", file=sys.stderr, flush=True)
            about, start = {**machine.describe(one, arguments), "load": [machine.load()]}, time.perf_counter()
            table = report.rows(name, subjects[name](one), one)
            about |= {"load": [*about["load"], machine.load()], "seconds": round(time.perf_counter() - start)}
            text = report.markdown(table, about, figures=one.gpu)
            print(text, flush=True)
            if own["out"]:
                report.write(Path(own["out"]), section, table, about, text)
    return 0


def _tables(name: str, settings: Settings, backbone: str | None) -> dict[str, Settings]:
    """What a subject is measured with, by the name of its table."""
    if name != "latency":
        return {name: settings}
    several = (backbone,) if backbone else LATENCY
    return {f"{name}_{each}": dataclasses.replace(settings, backbone=each) for each in several}


def _subjects() -> dict[str, Callable[[Settings], dict[str, Result]]]:
    from benchmarks import clips, detection, latency, loader, model, pose, startup, trainer

    measures = (
        startup.starting,
        loader.reading,
        trainer.training_loop,
        model.model,
        model.folding,
        model.memory,
        model.compiling,
        detection.detection,
        pose.cropping,
        clips.clips,
        latency.latency,
    )
    return dict(zip(WHAT, measures, strict=True))


def _chosen(text: str | None) -> list[str]:
    """In the order of WHAT: short processes before large networks."""
    asked = text.split(",") if text else WHAT
    for name in asked:
        if name not in WHAT:
            raise UserError(f"what={text}: {name!r} is none of {', '.join(WHAT)}")
    return [name for name in WHAT if name in asked]


def _number(name: str, text: str | None, default: int | None) -> int | None:
    if text is None:
        return default
    if not text.isascii() or not text.isdigit() or int(text) < 1:
        raise UserError(f"{name}={text}: give a whole number, 1 or more")
    return int(text)


def _device(text: str) -> torch.device:
    if text not in ("auto", "cpu", "cuda"):
        raise UserError(f"device={text}: give auto, cpu or cuda")
    import torch

    if text == "cuda" and not torch.cuda.is_available():
        raise UserError("device=cuda: torch sees no GPU here; give device=cpu")
    return torch.device("cuda" if text != "cpu" and torch.cuda.is_available() else "cpu")


if __name__ == "__main__":
    sys.exit(main(benchmark, __doc__))
