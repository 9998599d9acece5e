"""Reads every file of a data set once and lists those that cannot be read:

    python scripts/check_data.py task=imagenet data.root=PATH [out=skip.txt] [scan=full] [loader.workers=N] [...]

Settings are train.py's. The list (one path a line) is what data.skip_list=FILE leaves out of training and evaluation,
where its length is printed beside the metric; it is written, empty, also where all can be read, and what a list given
as data.skip_list leaves out is in the new one again. Printed are the files that cannot be read, each once, how many
those are in each folder, which in most layouts is a class, and a table: of each split the files read, with what was
mended or is to be looked at in how many of them; refused, by reasons; left out; and what is noted of the annotations.
Of videos, every frame is decoded; scan=quick only looks for their frames, which finds what is missing, cut off or no
video, but not damage within. scan=strict also decodes JPEGs with simplejpeg and refuses
those of whose damage other decoders only warn. Exit codes: 0 all can be read; 1 some cannot, and are in the list; 2 a
mistake.
"""

from __future__ import annotations

import re
import sys
from collections import Counter
from pathlib import Path
from typing import Any, Literal

import tdaf.cli.ending  # noqa: F401  first: from here on Ctrl-C is a line
from tdaf.cli.script import main
from tdaf.errors import UnreadableSample, UserError
from tdaf.media.files import read_skip_list, write_skip_list
from tdaf.streams import Bar

Scan = Literal["full", "quick", "strict"]
NAMED = 20  # files
FILES, READ, REFUSED, LEFT_OUT, NOTED = "files", "read, of which", "refused, of which", "on the skip list", "noted"
Column = dict[str, Counter[str]]  # a part of the table: numbers by kind, that of all under ""


def check(*, out: Path = Path("skip.txt"), scan: Scan = "full", rest: list[str]) -> int:
    from tdaf.cli.compose import compose

    config = compose(rest)
    bad: dict[str, str] = {}
    sizes: Counter[str] = Counter()
    table = {split: _scan(config, split, scan, bad, sizes) for split in ("train", "val")}
    known = read_skip_list(config["data"].get("skip_list"))  # not tried again, so a new list must keep them
    write_skip_list(out, [*known, *bad])
    for name, reason in list(bad.items())[:NAMED]:
        print(f"  {name}: {reason}")
    for folder, count in Counter(map(_folder, bad)).most_common():
        print(f"{count:6d} in {folder}, of {sizes[folder]}")
    print("".join(f"{split:>8}" for split in table))
    for part in (FILES, READ, REFUSED, LEFT_OUT, NOTED):
        kinds = Counter() if part == NOTED else Counter({"": 0})
        for column in table.values():
            kinds.update(column[part])
        for kind in sorted(kinds, key=lambda kind: (kind != "", -kinds[kind])):
            label = part if not kind else f"  {kind}" if part != NOTED else kind
            print("".join(f"{column[part][kind]:8d}" for column in table.values()) + f"  {label}")
    if not bad:
        print(f"every file can be read; {len(known)} are listed in {out}")
        return 0
    print(f"{len(bad)} files cannot be read; listed in {out}: use data.skip_list={out}")
    return 1


class Files:
    """The files of a data set (`Dataset.files`), as a data set that reads each and keeps what is noted of it."""

    groups, skipped, notes = None, 0, {}

    def __init__(self, files: Any, scan: Scan) -> None:
        self.files, self.scan = files, scan

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> dict[str, Any]:
        try:
            return {"notes": self.files.check(index, self.scan)}
        except UnreadableSample as error:
            raise UnreadableSample(str(error).removesuffix(f" ({self.files.path(index)})")) from error

    def name(self, index: int) -> str:
        return self.files.name(index)

    def collate(self, samples: list[dict[str, Any]]) -> dict[str, Any]:
        return {"notes": [note for sample in samples for note in sample["notes"]]}


def _scan(config: dict[str, Any], split: str, scan: Scan, bad: dict[str, str], sizes: Counter[str]) -> Column:
    """The table's column of a split. bad: gets the unreadable files, name to reason. sizes: the number of files in each
    folder."""
    from tdaf.cli import build  # imports torch, for seconds; a misspelt setting needs none of it
    from tdaf.cli.run import loader_settings
    from tdaf.engine.data import EvaluationOrder, Loader

    dataset: Any = build.task(config).dataset(split)
    files = getattr(dataset, "files", None)
    scans = getattr(files, "scans", ("full",))
    if scan not in scans:
        raise UserError(f"scan={scan}: the files of this task can be read with scan={' or '.join(scans)}")
    read: Any = Files(files, scan) if hasattr(files, "check") else dataset
    skipped = files.skipped if read is not dataset else dataset.skipped
    batch = 4 if "quick" in scans else 32
    loader = Loader(
        read,
        EvaluationOrder(len(read), batch),
        seed=config["seed"],
        **{**vars(loader_settings(config)), "max_bad": None},
    )
    mended: Counter[str] = Counter()
    with Bar(split, -(-len(read) // batch)) as bar:
        for found in loader:
            mended.update(found.get("notes", ()))
            bar.advance()
    names = {read.name(index) for index in range(len(read))}
    found = dict(loader.bad.values())
    bad |= found
    sizes.update(map(_folder, names))
    reasons = Counter(re.sub(r"\d+", "N", reason) for reason in found.values())
    return {
        FILES: Counter({"": len(names) + skipped}),
        READ: mended + Counter({"": len(names) - len(found)}),
        REFUSED: reasons + Counter({"": len(found)}),
        LEFT_OUT: Counter({"": skipped}),
        NOTED: Counter(dataset.notes),
    }


def _folder(name: str) -> str:
    return name.rpartition("/")[0] or "."


if __name__ == "__main__":
    sys.exit(main(check, __doc__))
