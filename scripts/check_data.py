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
from typing import Any

from tdaf.cli.arguments import main
from tdaf.cli.compose import Config, compose
from tdaf.errors import UserError


def check(arguments: list[str]) -> int:
    own = dict(a.split("=", 1) for a in arguments if a.startswith(("out=", "scan=")))
    out, scan = own.get("out") or "skip.txt", own.get("scan", "full")
    if scan not in ("full", "quick"):
        raise UserError(f"scan={scan}: give full or quick")
    config = compose([a for a in arguments if not a.startswith(("out=", "scan="))])
    bad: dict[str, str] = {}
    sizes: Counter[str] = Counter()
    for split in ("train", "val"):
        bad |= _scan(config, split, scan == "full", sizes)
    known = _listed(config["data"].get("skip_list"))
    try:
        text = "".join(f"{name}\n" for name in [*known, *bad])
        Path(out).write_text(text, encoding="utf-8", errors="surrogateescape")
    except OSError as error:
        raise UserError(f"out={out} cannot be written: {error.strerror}") from error
    if not bad:
        print(f"every sample can be read; {len(known)} are listed in {out}")
        return 0
    for name, reason in list(bad.items())[:20]:
        print(f"  {name}: {reason}")
    for folder, count in Counter(map(_folder, bad)).most_common():
        print(f"{count:6d} in {folder}, of {sizes[folder]}")
    print(f"{len(bad)} samples cannot be read; listed in {out}: use data.skip_list={out}")
    return 1


def _scan(config: Config, split: str, full: bool, sizes: Counter[str]) -> dict[str, str]:
    """The unreadable samples of a split: name to reason. sizes: gets the number of samples in each folder."""
    from tdaf.cli import build  # imports torch, for seconds; a misspelt setting needs none of it
    from tdaf.cli.run import loader_settings
    from tdaf.engine.data import EvaluationOrder, Loader
    from tdaf.engine.log import Bar

    dataset: Any = build.task(config).dataset(split)
    batch = 32
    if hasattr(dataset, "checked"):  # whose samples are not all there is to read
        dataset, batch = dataset.checked(full), 4
    elif not full:
        raise UserError("scan=quick: this is for videos; the samples of this task can only be read whole")
    how = {**vars(loader_settings(config)), "max_bad": len(dataset)}
    loader = Loader(dataset, EvaluationOrder(len(dataset), batch), seed=config["seed"], **how)
    bar = Bar(split, -(-len(dataset) // batch))
    for _ in loader:
        bar.advance()
    bar.stop()
    sizes.update(_folder(dataset.name(index)) for index in range(len(dataset)) if loader.bad)
    print(f"{split}: {len(dataset)} samples read, {len(loader.bad)} cannot be, {dataset.skipped} on the skip list")
    for note, count in dataset.notes.items():
        print(f"{split} annotations: {count} {note}")
    return {name: reason for name, reason in loader.bad.values()}


def _listed(path: str | None) -> list[str]:
    """The lines of the skip list that was given. Its samples are not tried again, so a new list must keep them."""
    if path is None:
        return []
    lines = Path(path).expanduser().read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    return [line for line in lines if line.strip()]


def _folder(name: str) -> str:
    return name.rpartition("/")[0] or "."


if __name__ == "__main__":
    sys.exit(main(check, __doc__))
