"""Training samples as the network sees them, after augmentation, with what is to be learnt of them drawn in:

    python scripts/show_data.py task=TASK data.root=PATH [out=data.png] [samples=8] [draws=3] [key=value ...]

A row a sample, evenly over the training split: what it is made from, and a column for each of `draws` draws of the
augmentation. Classes and mixing weights; boxes, and the locations of FCOS that answer for them, larger on coarser
levels; the heat maps of key points; frames of clips. Beside it, in data-counts.png, samples a class and boxes by size.
Other settings are train.py's. Exit codes as train.py's.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import tdaf.cli.ending  # noqa: F401  first: from here on Ctrl-C is a line
from tdaf.cli.evaluation import write_pictures
from tdaf.cli.script import Positive, main
from tdaf.errors import RunError, UnreadableSample, UserError

if TYPE_CHECKING:
    from torch import Tensor

SIDE = 320  # pixels of a cell's short side, at most


def show_data(*, out: Path = Path("data.png"), samples: Positive = 8, draws: Positive = 3, rest: list[str]) -> None:
    from tdaf.cli.compose import compose

    config = compose(rest)
    import torch
    from torchvision.transforms.v2.functional import pad
    from torchvision.utils import make_grid

    from tdaf.cli import build
    from tdaf.engine.data import mix_seed
    from tdaf.engine.visualize import targets
    from tdaf.media.drawing import bars

    task = build.task(config)
    if not hasattr(task, "draw_targets"):
        raise UserError(f"{config['name']}: its task has no method draw_targets (see tdaf/task.py)")
    dataset = task.dataset("train")
    count = min(samples, len(dataset))
    indices = [len(dataset) * k // count for k in range(count)]
    originals, whole = [], hasattr(task, "original")
    for index in indices.copy():
        try:  # a sample that cannot be read is in no column
            dataset[index]
            originals += [task.original(dataset, index)] if whole else []
        except UnreadableSample:
            indices.remove(index)
    columns = [targets(task, dataset, indices, mix_seed(config["seed"], "show", draw)) for draw in range(draws)]
    columns = [[_shrunk(picture) for picture in column] for column in columns]
    if whole:
        sides = [picture.shape[1] for picture in columns[0]]
        columns.insert(0, [_of_height(own, side) for own, side in zip(originals, sides, strict=True)])
    cells = [picture for row in zip(*columns, strict=True) for picture in row]
    if not cells:
        raise RunError(f"not one of {count} samples could be read; see scripts/check_data.py")
    height, width = (max(cell.shape[axis] for cell in cells) for axis in (1, 2))
    cells = [pad(cell, [0, 0, width - cell.shape[2], height - cell.shape[1]], fill=255) for cell in cells]
    write_pictures(out, [make_grid(cells, nrow=len(columns), pad_value=255)])
    print(f"{out}: {len(columns[-1])} of {len(dataset)} training samples, {draws} draws each")
    counts = task.counts(dataset) if hasattr(task, "counts") else {}
    if counts:
        target = out.with_stem(f"{out.stem}-counts")
        drawn = [bars(title, by_name) for title, by_name in counts.items()]
        write_pictures(target, [torch.cat(drawn, dim=1)])
        print(f"{target}: {', '.join(counts)}")


def _shrunk(picture: Tensor) -> Tensor:
    return _of_height(picture, round(picture.shape[1] * min(1, SIDE / min(picture.shape[1:]))))


def _of_height(picture: Tensor, height: int) -> Tensor:
    from torchvision.transforms.v2.functional import resize

    return resize(picture, [height, max(1, round(picture.shape[2] * height / picture.shape[1]))])


if __name__ == "__main__":
    sys.exit(main(show_data, __doc__))
