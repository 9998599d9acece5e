"""Reads every sample of a data set once and lists those that cannot be read:

    python scripts/check_data.py task=imagenet data.root=PATH [out=skip.txt] [scan=full] [loader.workers=N] [...]

Settings are train.py's. The list (one path a line) is what data.skip_list=FILE leaves out of training and evaluation,
where its length is printed beside the metric; it is written, empty, also where all can be read, and what a list given
as data.skip_list leaves out is in the new one again. Of videos, every frame is decoded; scan=quick only looks for their
frames, which finds what is missing, cut off or no video, but not damage within. How many cannot be read is also said
for each folder, which in most layouts is a class. Exit codes: 0 all can be read; 1 some cannot, and are in the list;
2 a mistake.
"""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path
from typing import Any, Literal

import tdaf.cli.ending  # noqa: F401  first: from here on Ctrl-C is a line
from tdaf.cli.script import main
from tdaf.errors import UserError
from tdaf.media.files import read_skip_list, write_skip_list


def check(*, out: Path = Path("skip.txt"), scan: Literal["full", "quick"] = "full", rest: list[str]) -> int:
    from tdaf.cli.compose import compose

    config = compose(rest)
    bad: dict[str, str] = {}
    sizes: Counter[str] = Counter()
    for split in ("train", "val"):
        bad |= _scan(config, split, scan == "full", sizes)
    known = read_skip_list(config["data"].get("skip_list"))  # not tried again, so a new list must keep them
    write_skip_list(out, [*known, *bad])
    if not bad:
        print(f"every sample can be read; {len(known)} are listed in {out}")
        return 0
    for name, reason in list(bad.items())[:20]:
        print(f"  {name}: {reason}")
    for folder, count in Counter(map(_folder, bad)).most_common():
        print(f"{count:6d} in {folder}, of {sizes[folder]}")
    print(f"{len(bad)} samples cannot be read; listed in {out}: use data.skip_list={out}")
    return 1


def _scan(config: dict[str, Any], split: str, full: bool, sizes: Counter[str]) -> dict[str, str]:
    """The unreadable samples of a split: name to reason. sizes: gets the number of samples in each folder."""
    from tdaf.cli import build  # imports torch, for seconds; a misspelt setting needs none of it
    from tdaf.cli.run import loader_settings
    from tdaf.engine.data import EvaluationOrder, Loader
    from tdaf.engine.predict import progress

    dataset: Any = build.task(config).dataset(split)
    batch = 32
    if hasattr(dataset, "checked"):  # whose samples are not all there is to read
        dataset, batch = dataset.checked(full), 4
    elif not full:
        raise UserError("scan=quick: this is for videos; the samples of this task can only be read whole")
    how = {**vars(loader_settings(config)), "max_bad": len(dataset)}
    loader = Loader(dataset, EvaluationOrder(len(dataset), batch), seed=config["seed"], **how)
    with progress(split, -(-len(dataset) // batch)) as bar:
        for _ in loader:
            bar.advance()
    sizes.update(_folder(dataset.name(index)) for index in range(len(dataset)) if loader.bad)
    print(f"{split}: {len(dataset)} samples read, {len(loader.bad)} cannot be, {dataset.skipped} on the skip list")
    for note, count in dataset.notes.items():
        print(f"{split} annotations: {count} {note}")
    return {name: reason for name, reason in loader.bad.values()}


def _folder(name: str) -> str:
    return name.rpartition("/")[0] or "."


if __name__ == "__main__":
    sys.exit(main(check, __doc__))
