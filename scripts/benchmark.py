"""Measures speed and memory, each figure as a ratio to a named peer which is timed in turns with it:

    python scripts/benchmark.py [what=model,fold,...] [backbone=res50] [anar=3] [flows=3] [batch=N]
                                [size=224] [device=auto] [threads=N] [pairs=N] [images=160]
                                [out=PATH]

what: startup, loader, archives, trainer, model, bridge, fold, memory, compile, detection, clips, latency; all by
    default.
backbone: res50 by default, and for latency a table each of res50 and res101. batch: 8 by default, 128 on a GPU.
device: auto, cpu or cuda. threads: of torch in this process.
pairs: timed rounds of each measurement, instead of its own number. images: files for the loaders, a multiple of 32.
out: PATH.md gets a table of each subject measured (its other text stays) and PATH.json everything; without it nothing
is written. out=docs/benchmarks renews the project's own page. Each row says its bar and whether the median meets it;
the null is the peer against itself in the same rounds. Peers that are not installed have a dash. Exit codes as
train.py's.
"""

from __future__ import annotations

import datetime
import importlib
import json
import os
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tdaf.cli.ending  # noqa: F401  first: from here on Ctrl-C is a line
from benchmarks import BRIDGED
from results.tabular import markdown_table, write_section
from tdaf.cli.script import Positive, main
from tdaf.errors import UserError

if TYPE_CHECKING:  # torch, which takes seconds
    from benchmarks.timing import Settings, Times

HEAD = ("what", "against", "bar", "ratio (quartiles)", "null (quartiles)", "pairs", "bar met", "figures, notes")


@dataclass(frozen=True)
class Row:
    """One line of a table: the ratio `of` / `to`, two candidates of one measurement, and the bar of this project.

    key: its name in the JSON file, which scripts/table.py reads. measured: the measurement, where its name is another.
    low, high: the bar, what the ratio is to lie between. rate: of images a second, say, so that the ratio of seconds is
    turned round. device: where the row is measured, "any", "cpu" or "gpu". reference: the bar is for ResNet-50, ANAR-3,
    three flows, 224 pixels and 8 images or more, on a GPU 128.
    """

    key: str
    what: str
    of: str
    to: str
    measured: str = ""
    low: float | None = None
    high: float | None = None
    device: str = "any"
    rate: bool = False
    reference: bool = False

    @property
    def bar(self) -> str:
        if self.low is not None and self.high is not None:
            return f"{self.low:g} to {self.high:g}"
        return f"<= {self.high:g}" if self.high is not None else f">= {self.low:g}" if self.low is not None else "-"

    def holds(self, settings: Settings) -> bool:
        """Whether there is a bar, and for what was measured."""
        network = (settings.backbone, settings.anar, settings.flows, settings.size) == ("res50", 3, 3, 224)
        large = settings.batch >= (128 if settings.gpu else 8)
        return self.bar != "-" and (not self.reference or network and large)


Images = Annotated[int, "a multiple of 32, 64 or more", lambda value: value >= 64 and value % 32 == 0]
network = partial(Row, of="TDAF", to="plain", reference=True)  # its bar is for one network and batch
rate = partial(Row, of="ours", rate=True)
startup = partial(Row, to="import torch", measured="startup")

# A subject: the functions of scripts/benchmarks/ that measure it, and its table with the bars, which are this project's
# goals. In the order of their length: short processes before large networks.
MEASURED_BY = {
    "startup": ("process.startup",),
    "loader": ("data.loader",),
    "archives": ("data.archives",),
    "trainer": ("process.trainer",),
    "model": ("networks.gflops", "networks.forward", "networks.training"),
    "bridge": ("networks.bridge",),
    "fold": ("networks.folding",),
    "memory": ("networks.memory", "networks.traffic"),
    "compile": ("networks.compiled",),
    "detection": ("networks.detection",),
    "clips": ("data.clips",),
    "latency": ("networks.gflops", "networks.memory", "networks.folding", "networks.training", "networks.compiled"),
}
ROWS = {
    "startup": [
        startup("start_help", "train.py --help", of="--help", high=0.2),
        startup("start_cfg", "train.py --cfg job", of="--cfg job", high=0.2),
        startup("start_mistake", "train.py with a misspelt key", of="a misspelt key", high=0.2),
    ],
    "loader": [
        rate("loader", "image loader, images/s", to="PIL + torchvision v1 transforms", low=1.9),
        rate("loader_timm", "image loader, images/s", to="timm's create_loader", measured="loader", low=1.55),
        rate(
            "loader_cache", "image loader, images/s", of="data.cache=ram, cache_side=256", to="ours", measured="loader"
        ),
    ],
    "archives": [
        Row(f"archive_{kind}_{form.replace(' ', '_')}", what, form, "folder", f"archive_{kind}", low, rate=True)
        for form, low in (("tar", 0.98), ("stored zip", 0.98), ("deflated zip", None))
        for kind, what in (("reading", f"image loader, {form}"), ("work", f"the same, of a core's work, {form}"))
    ],
    "trainer": [
        Row("trainer", "Trainer's step, small network", "Trainer", "bare PyTorch loop", high=1.01),
        Row("trainer_large", "Trainer's step, this network", "Trainer", "bare PyTorch loop", device="gpu", high=1.01),
    ],
    "model": [
        network("gflops", "GFLOPs", low=1.231, high=1.241),
        network("forward", "forward", device="cpu", high=1.26),
        network("forward", "forward", device="gpu", high=1.38),
        network("training", "training step", device="cpu", high=1.32),
        network("training", "training step", device="gpu", high=1.42),
        network("torchvision", "forward, plain", of="plain", to="torchvision's own network", measured="forward"),
    ],
    "bridge": [
        Row(f"bridge_{kind}{name}", f"{what}, {name}", "ours", "timm's own network", high=1.02)
        for name in BRIDGED
        for kind, what in (("", "forward"), ("training_", "training step"))
    ],
    "fold": [
        network("folded", "forward, TDAF folded", of="TDAF folded", to="TDAF", high=0.90),
        Row("folded_difference", "change of a logit by folding", "difference", "largest logit", high=1e-5),
        network("folded_plain", "forward, both folded", of="TDAF folded", to="plain folded", measured="folded"),
    ],
    "memory": [
        network("saved", "MiB saved for backward, an image", high=1.30),
        network("moved", "MiB that a step reads and writes, an image"),
        network("moved_rest", "the same without convolutions"),
        network("peak", "peak GiB of a training step", device="gpu"),
    ],
    "compile": [
        network("compiled", "forward, both compiled", device="cpu", high=1.23),
        network("compiled", "forward, both compiled", device="gpu", high=1.30),
        network("compiled_training", "training step, both compiled", device="gpu", high=1.35),
    ],
    "detection": [
        network("fcos_gflops", "GFLOPs of FCOS, 800x1344", low=1.091, high=1.101),
        network("fcos", "forward of FCOS, 800x1344", device="cpu", high=1.14),
        network("fcos", "forward of FCOS, 800x1344", device="gpu"),
    ],
    "clips": [
        rate(f"{name}_{gop}{end}", f"{what}, a key frame every {gop}", to=peer, measured=f"{name}_{gop}", low=low)
        for name, what, peer, end, bars in (
            ("clips", "clip loader, clips/s", "plain PyAV", "", {250: 1.55, 12: 1.7}),
            ("clips", "clip loader, clips/s", "torchcodec", "_torchcodec", {250: 1.1, 12: 1.05}),
            ("clips_work", "clips a second of a core's work", "plain PyAV", "", {250: None, 12: None}),
            ("clips_work", "clips a second of a core's work", "torchcodec", "_torchcodec", {250: None, 12: None}),
        )
        for gop, low in bars.items()
    ],
    # compared with the paper rather than with a bar; each network is a table of its own
    "latency": [
        network("forward", "forward, eager", measured="folded"),
        network("forward_folded", "forward, both folded", of="TDAF folded", to="plain folded", measured="folded"),
        network("forward_compiled", "forward, both compiled", measured="compiled"),
        network("forward_graphs", "as CUDA graphs", of="TDAF graph", to="plain graph", measured="folded", device="gpu"),
        network("training", "training step, eager"),
        network("training_compiled", "training step, both compiled", measured="compiled_training", device="gpu"),
        network("saved", "MiB saved for backward, an image"),
        network("peak", "peak GiB of a training step", device="gpu"),
        network("gflops", "GFLOPs"),
        network("gflops_flows", "GFLOPs of TDAF's flows", of="its flows", measured="gflops"),
        network("gflops_gates", "GFLOPs of TDAF's ANARs", of="its gates", measured="gflops"),
        network("gflops_rest", "GFLOPs of the rest", of="the rest", measured="gflops"),
    ],
}


def benchmark(
    *,
    what: list[str] | None = None,
    backbone: str | None = None,
    anar: Positive = 3,
    flows: Positive = 3,
    batch: Positive | None = None,
    size: Positive = 224,
    device: Literal["auto", "cpu", "cuda"] = "auto",
    threads: Positive | None = None,
    pairs: Positive | None = None,
    images: Images = 160,
    out: Path | None = None,
) -> int:
    words = [word for word in sys.argv[1:] if not word.startswith("out=")]
    command = " ".join(["python scripts/benchmark.py", *words])
    for name in what or ():
        if name not in ROWS:
            raise UserError(f"what={','.join(what)}: {name!r} is none of {', '.join(ROWS)}")
    import torch

    from benchmarks.timing import Settings

    if device == "cuda" and not torch.cuda.is_available():
        raise UserError("device=cuda: torch sees no GPU here; give device=cpu")
    on_gpu = device != "cpu" and torch.cuda.is_available()
    torch.set_num_threads(threads or torch.get_num_threads())
    place, batch = torch.device("cuda" if on_gpu else "cpu"), batch or (128 if on_gpu else 8)
    settings = Settings(backbone or "res50", anar, flows, batch, size, place, pairs, images)
    for subject in (name for name in ROWS if not what or name in what):
        for section, one in sections(subject, settings, backbone).items():
            print(f"measuring {section} ...", file=sys.stderr, flush=True)
            about, table = measure(subject, one, command)
            text = markdown(table, about)
            print(text, flush=True)
            if out:
                write(out, section, table, about, text)
    return 0


def sections(subject: str, settings: Settings, backbone: str | None) -> dict[str, Settings]:
    """What a subject is measured with, by the name of its table: latency with both networks of the paper."""
    if subject != "latency":
        return {subject: settings}
    several = (backbone,) if backbone else ("res50", "res101")
    return {f"{subject}_{each}": replace(settings, backbone=each) for each in several}


def measure(subject: str, settings: Settings, command: str) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """On what, with what and when it was measured, and the subject's rows."""
    import torch

    import tdaf
    from tdaf import env
    from tdaf.engine.precision import Precision

    load, start, found = os.getloadavg()[0], time.perf_counter(), {}
    for function in MEASURED_BY[subject]:
        module, _, name = function.partition(".")
        found |= getattr(importlib.import_module(f"benchmarks.{module}"), name)(settings)
    about = {
        "date": datetime.date.today().isoformat(),
        "command": command,
        "commit": env.commit(),
        "machine": env.processor(),
        "cores": len(os.sched_getaffinity(0)),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name(settings.device) if settings.gpu else None,
        "precision": Precision("auto", settings.device).kind,
        **{name: getattr(settings, name) for name in ("backbone", "anar", "flows", "batch", "size")},
        "versions": {
            "tdaf": tdaf.__version__,
            **env.versions("torch", "torchvision", "pillow", "timm", "av", "torchcodec"),
        },
        "load": [load, os.getloadavg()[0]],  # processes that wanted a core, the mean of the last minute
        "seconds": round(time.perf_counter() - start),
    }
    return about, [filled(row, found, settings) for row in ROWS[subject]]


def filled(row: Row, measured: Mapping[str, Times | dict[str, float]], settings: Settings) -> dict[str, Any]:
    """The row as plain data; "value" is None where this machine has none.

    measured: seconds in turns, or what was counted, by the name of the measurement.
    """
    found: Any = measured.get(row.measured or row.key)
    entry = {"key": row.key, "what": row.what, "peer": row.to, "device": row.device, "bar": row.bar, "met": None}
    entry |= {"value": None, "ratio": None, "null": None, "absolute": {}, "note": ""}
    if not found or row.device not in ("any", "gpu" if settings.gpu else "cpu"):
        return entry
    if isinstance(found, dict):
        entry["value"] = value = found[row.of] / found[row.to]
        entry["absolute"] = {name: f"{found[name]:.4g}" for name in (row.of, row.to)}
    elif row.to not in found.seconds:
        return {**entry, "note": "not installed here, or none of this backbone"}
    else:
        ratio = found.ratio(row.to, row.of) if row.rate else found.ratio(row.of, row.to)
        entry |= {"value": ratio.median, "ratio": asdict(ratio), "null": asdict(found.null()), "note": found.note}
        entry["absolute"], value = {name: found.figure(name) for name in (row.of, row.to)}, ratio.median
    if not row.holds(settings):
        return {**entry, "bar": "-"}
    return {**entry, "met": (row.high is None or value <= row.high) and (row.low is None or value >= row.low)}


def markdown(table: list[dict[str, Any]], about: dict[str, Any]) -> str:
    """Absolute seconds are printed of a GPU alone; of a CPU that others use too, the ratio is what can be told."""
    versions = ", ".join(f"{name} {version}" for name, version in about["versions"].items() if version)
    loads = " and ".join(f"{load:.1f}" for load in about["load"])
    head = (
        f"{about['date']}, commit {about['commit'] or '-'}. {about['machine']}, {about['cores']} cores, "
        f"{about['threads']} threads, {about['gpu'] or 'no GPU'}; load at start and end {loads}. {versions}. "
        f"{about['precision']}, batch {about['batch']}, {about['seconds'] / 60:.0f} minutes:\n\n    {about['command']}"
    )
    rows = []
    for row in table:
        what = row["what"] + (f" ({row['device'].upper()})" if row["device"] != "any" else "")
        value = "-" if row["value"] is None else format(row["value"], ".3f" if row["value"] > 0.001 else ".1e")
        ratio, pairs = (_spread(row["ratio"]), str(row["ratio"]["pairs"])) if row["ratio"] else (value, "-")
        figures = row["absolute"].items() if about["gpu"] or not row["ratio"] else ()
        notes = "; ".join([*(f"{name} {figure}" for name, figure in figures), *filter(None, [row["note"]])]) or "-"
        met = {None: "-", True: "yes", False: "**no**"}[row["met"]]
        rows.append([what, row["peer"], row["bar"], ratio, _spread(row["null"]), pairs, met, notes])
    return f"{head}\n\n{markdown_table(HEAD, rows)}"


def _spread(spread: dict[str, float] | None) -> str:
    return f"{spread['median']:.3f} ({spread['low']:.3f}, {spread['high']:.3f})" if spread else "-"


def write(out: Path, subject: str, table: list[dict[str, Any]], about: dict[str, Any], text: str) -> None:
    """`out`.json, and the section of this subject and kind of device in `out`.md; what else that file says stays."""
    kind = f"{subject} {'gpu' if about['gpu'] else 'cpu'}"
    begin, end = f"<!-- measured: {kind} -->", f"<!-- end: {kind} -->"
    write_section(out.with_suffix(".md"), begin, end, f"### {kind}\n\n{text}", "# Benchmarks\n")
    data = out.with_suffix(".json")
    known = json.loads(data.read_text()) if data.exists() else {}
    data.write_text(json.dumps({**known, kind: {**about, "rows": table}}, indent=2) + "\n")


if __name__ == "__main__":
    sys.exit(main(benchmark, __doc__))
