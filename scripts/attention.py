"""Attention maps of every flow and stage over pictures and videos (paper, Fig. 3b), and what the flows differ in:

    python scripts/attention.py checkpoint=RUN_FOLDER [input=IMAGE_OR_FOLDER_OR_VIDEO] [out=attention] [style=both]
                                [scale=full] [tile=320] [moments=4] [samples=4] [statistics=64] [trust=MODULE]
                                [key=value ...]

OUT/NAME.png of each input has what the network saw at its left, then a row a flow and a column a stage, each mask in
its place over the picture; sizes are height x width. Of a video it shows `moments` moments. Without `input`, `samples`
of the run's validation samples are drawn, evenly over the split.
style: overlay, over the picture in grey; mask, by itself; both. scale: full, from 0 to 1; own, from each mask's
smallest value to its largest, for masks that hardly differ from place to place. tile: pixels of a mask's long side, or
about so.

Printed, and in OUT/statistics.json, over up to `statistics` inputs or validation samples: how far the masks vary within
an image and between images, and how many of their values are saturated; and of the batch norms of each flow (MFBN) the
running means and variances, and how far they lie from the last flow's. What the checkpoint's task takes besides is
given as for predict; for poses, boxes=FILE.json. A network without masks is refused. Exit codes as predict's.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import tdaf.cli.ending  # noqa: F401  first: from here on Ctrl-C is a line
from tdaf.cli.evaluation import media_files, open_to_predict, write_pictures, write_text
from tdaf.cli.script import Positive, main
from tdaf.errors import RunError, UnreadableSample, UserError
from tdaf.media.files import is_video
from tdaf.streams import Bar

if TYPE_CHECKING:
    from torch import Tensor

    from tdaf.engine.predict import Predictor
    from tdaf.media.attention_sheet import Panel
    from tdaf.task import Dataset, PredictDataset

MOST = 8  # samples of one picture that are drawn, such as its persons
SEVERAL = 0.6  # of a tile's side where a sheet has several panels
LEGEND = (
    "closed, open: shares of values below 0.05 and above 0.95. within, between: deviation inside a mask, and of the "
    "masks' means. fixed, varying: deviation over the places of the mean mask, and from mask to mask at a place; where "
    "varying is 0, every input has the same mask. mean, variance of a batch norm: of |running mean| and of running "
    "variance; distances: from the last flow's, relative to it."
)


class Subject(NamedTuple):
    """One picture to draw. title: over it. target: its file, below `out`. indices: its samples, in their order.
    moving: whether they are of a video."""

    title: str
    target: Path
    indices: Sequence[int]
    moving: bool = False


def attention(
    *,
    checkpoint: Path,
    input: Path | None = None,
    out: Path = Path("attention"),
    style: Literal["both", "overlay", "mask"] = "both",
    scale: Literal["full", "own"] = "full",
    tile: Positive = 320,
    moments: Positive = 4,
    samples: Positive = 4,
    statistics: Positive = 64,
    trust: list[str] | None = None,
    rest: list[str],
) -> None:
    paths, base = media_files(input, out) if input else ([], Path())
    run, options = open_to_predict(checkpoint, rest, attention, trust or ())
    from tdaf.engine.predict import Predictor  # torch takes seconds to import; a mistake above needs none
    from tdaf.media.attention_sheet import sheet
    from tdaf.model.maps import mask_eta, mask_strides

    if options and not paths:
        name, value = next(iter(options.items()))
        raise UserError(f"{name}={value}: this goes with input=...; of validation samples there is no such setting")
    predictor = Predictor(run)
    strides, eta = mask_strides(predictor.network), mask_eta(predictor.network)
    if eta is None:
        raise UserError(f"{run.path} has no attention maps: {_why_none(run.settings)}")
    left_out: dict[str, str] = {}
    if paths:
        dataset = predictor.task.predict_dataset(paths, **options)
        subjects = list(_of_files(dataset, base))
        left_out |= {str(path): why for path, why in dataset.pictures.faults.items()}
    else:
        dataset = run.task(data=True).dataset("val")
        evenly = _evenly(dataset, samples)
        subjects = [Subject(f"val: {dataset.name(index)}", Path(f"val-{index:05}.png"), [index]) for index in evenly]
    files = []
    with Bar("attention", len(subjects)) as bar:
        for subject in subjects:
            if panels := list(_panels(predictor, dataset, subject, moments, left_out)):
                side = max(1, round(tile * (SEVERAL if panels[1:] else 1)))
                drawn = sheet(panels, strides, eta, subject.title, tile=side, style=style, scale=scale)
                write_pictures(out / subject.target, [drawn])
                files.append(subject.target)
            bar.advance()
    for name, why in left_out.items():
        print(f"left out {name}: {why}", file=sys.stderr)
    if not files:
        raise RunError(f"not one of {len(subjects)} inputs could be drawn")
    print(_statistics(predictor, dataset, statistics, out))
    more = f" and {len(files) - 1} more" if files[1:] else ""
    print(f"drawn in {out}: {files[0]}{more}; statistics.json")


def _panels(
    predictor: Predictor, dataset: Dataset, subject: Subject, moments: int, left_out: dict[str, str]
) -> Iterator[Panel]:
    """Of images of all samples; of clips and videos `moments` moments, evenly over their time. A sample that cannot be
    read is left out, with the reason."""
    from tdaf.engine.visualize import attention_panels
    from tdaf.model.maps import attention_maps

    length = _length(predictor, dataset, subject)
    total = len(subject.indices) * (length or 1)
    count = min(moments, total) if length or subject.moving else total
    places = [int((moment + 0.5) / count * total) for moment in range(count)]
    for sample, group in groupby(places, lambda place: place // (length or 1)):
        index = subject.indices[sample]
        try:
            x = dataset.collate([dataset[index]])["input"]
        except UnreadableSample as error:
            left_out[dataset.name(index)] = str(error)
            continue
        title = Path(dataset.name(index)).name if subject.moving else f"{sample + 1} of {len(subject.indices)}"
        with predictor.precision.autocast():
            masks = attention_maps(predictor.network, x.to(predictor.precision.device))
        frames = [place % length for place in group] if length else None
        yield from attention_panels(x, masks, 0, frames, title if len(subject.indices) > 1 else "")


def _length(predictor: Predictor, dataset: Dataset, subject: Subject) -> int:
    """Frames of a clip; 0 of images, and where no sample can be read."""
    from tdaf.model.flows import TDAF

    tdaf = next(module for module in predictor.network.modules() if isinstance(module, TDAF))
    for index in subject.indices if tdaf.dims == 3 else ():
        try:
            return dataset[index]["input"].shape[-3]
        except UnreadableSample:
            continue
    return 0


def _of_files(dataset: PredictDataset, base: Path) -> Iterator[Subject]:
    """A picture a file."""
    media = dataset.pictures
    for path, group in groupby(range(len(dataset)), lambda index: media.file(dataset.shown(index)[0])):
        indices, name, moving = list(group), path.relative_to(base), is_video(path)
        several = len(indices) > MOST and not moving
        title = f"{name} (the first {MOST} of {len(indices)})" if several else str(name)
        yield Subject(title, name.with_name(f"{name.name}.png"), indices[:MOST] if several else indices, moving)


def _evenly(dataset: Dataset, count: int) -> list[int]:
    """At most `count` places, evenly over the data set."""
    count = min(count, len(dataset))
    return [place * len(dataset) // count for place in range(count)]


def _why_none(settings: dict[str, Any]) -> str:
    if settings["tdaf"].get("flows") == 1:
        return "flows=1 is the plain network, which looks once"
    if settings["tdaf"]["_target_"].endswith("MultiScale"):
        return "tdaf=multiscale runs its flows without gates"
    return "no stage has a gate (see tdaf.gated)"


def _statistics(predictor: Predictor, dataset: Dataset, count: int, out: Path) -> str:
    """Markdown tables of at most `count` samples, evenly over the data set; the same in OUT/statistics.json."""
    from tdaf.model.maps import flow_statistics, gate_statistics

    def inputs() -> Iterator[Tensor]:
        for index in indices:  # one sample each: those of a batch would be padded to the largest of them
            try:
                yield dataset.collate([dataset[index]])["input"].to(predictor.precision.device)
            except UnreadableSample:
                continue  # named where it was to be drawn

    indices = _evenly(dataset, count)
    with predictor.precision.autocast():
        gates = gate_statistics(predictor.network, inputs())
    flows = flow_statistics(predictor.network)
    document = {
        "checkpoint": str(predictor.run.path),
        "samples": len(indices),
        "gates": [{"flow": flow, "stage": stage, **asdict(one)} for (flow, stage), one in gates.items()],
        "flows": [{"part": part, "flow": flow, **asdict(one)} for (part, flow), one in flows.items()],
    }
    write_text(out / "statistics.json", json.dumps(document, indent=2) + "\n")
    return f"{_markdown(document['gates'])}\n\n{_markdown(document['flows'])}\n\n{LEGEND}\n"


def _markdown(rows: list[dict[str, Any]]) -> str:
    """A table in columns that are also even to the eye."""
    cells = [list(rows[0]), *([_short(value) for value in row.values()] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = ["| " + " | ".join(map(str.ljust, line, widths)) + " |" for line in cells]
    return "\n".join([lines[0], "|" + "|".join("-" * (width + 2) for width in widths) + "|", *lines[1:]])


def _short(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return "x".join(map(str, value))
    if not isinstance(value, float):
        return "-" if value is None else str(value)
    return f"{value:.3g}" if abs(value) >= 1000 else f"{value:.3f}"


if __name__ == "__main__":
    sys.exit(main(attention, __doc__))
