"""Training samples as the network sees them, after augmentation, with what is to be learnt of them drawn in:

    python scripts/show_data.py task=TASK data.root=PATH [out=data.png] [samples=8] [draws=3] [key=value ...]

A row a sample, evenly over the training split, and a column for each of `draws` draws of the augmentation. Classes and
mixing weights; boxes, and the locations of FCOS that answer for them, larger on coarser levels; the heat maps of key
points; frames of clips. Other settings are train.py's. Exit codes as train.py's.
"""

from __future__ import annotations

import sys
from pathlib import Path

import tdaf.cli.ending  # noqa: F401  first: from here on Ctrl-C is a line
from tdaf.cli.evaluation import write_pictures
from tdaf.cli.script import Positive, main
from tdaf.errors import RunError, UserError

SIDE = 320  # pixels of a cell's short side, at most


def show(*, out: Path = Path("data.png"), samples: Positive = 8, draws: Positive = 3, rest: list[str]) -> None:
    from tdaf.cli.compose import compose

    config = compose(rest)
    from torchvision.transforms.v2.functional import pad, resize
    from torchvision.utils import make_grid

    from tdaf.cli import build
    from tdaf.engine.data import mix_seed
    from tdaf.engine.visualize import targets

    task = build.task(config)
    if not hasattr(task, "draw_targets"):
        raise UserError(f"{config['name']}: its task has no method draw_targets (see tdaf/task.py)")
    dataset = task.dataset("train")
    count = min(samples, len(dataset))
    indices = [len(dataset) * k // count for k in range(count)]
    columns = [targets(task, dataset, indices, mix_seed(config["seed"], "show", draw)) for draw in range(draws)]
    cells = []
    for row in zip(*columns, strict=True):
        for picture in row:
            scale = SIDE / min(picture.shape[1:])
            height, width = (max(1, round(side * scale)) for side in picture.shape[1:])
            cells.append(resize(picture, [height, width]) if scale < 1 else picture)
    if not cells:
        raise RunError(f"not one of {count} samples could be read; see scripts/check_data.py")
    height, width = (max(cell.shape[axis] for cell in cells) for axis in (1, 2))
    cells = [pad(cell, [0, 0, width - cell.shape[2], height - cell.shape[1]], fill=255) for cell in cells]
    write_pictures(out, [make_grid(cells, nrow=draws, pad_value=255)])
    print(f"{out}: {len(cells) // draws} of {len(dataset)} training samples, {draws} draws each")


if __name__ == "__main__":
    sys.exit(main(show, __doc__))
