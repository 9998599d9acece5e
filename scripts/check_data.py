"""Reads every sample of a data set once and lists those that cannot be read:

    python scripts/check_data.py task=imagenet data.root=PATH [out=skip.txt] [loader.workers=N] [key=value ...]

Settings are train.py's. The list (one path a line) is what data.skip_list=FILE leaves out of training and evaluation, where
its length is printed beside the metric. Exit codes: 0 all can be read; 1 some cannot, and are in the list; 2 a mistake.
"""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path, PurePath
from typing import Any

from configs.arguments import main
from configs.compose import Config, compose
from tdaf.errors import UserError


def check(arguments: list[str]) -> int:
    out = next((a.partition("=")[2] for a in arguments if a.startswith("out=")), "") or "skip.txt"
    config = compose([a for a in arguments if not a.startswith("out=")])
    bad: dict[str, str] = {}
    for split in ("train", "val"):
        bad |= _scan(config, split)
    if not bad:
        print("every sample can be read")
        return 0
    try:
        Path(out).write_text("".join(f"{name}\n" for name in bad))
    except OSError as error:
        raise UserError(f"out={out} cannot be written: {error.strerror}") from error
    for name, reason in list(bad.items())[:20]:
        print(f"  {name}: {reason}")
    for folder, count in Counter(str(PurePath(name).parent) for name in bad).most_common(20):
        print(f"{count:6d} in {folder}")
    print(f"{len(bad)} samples cannot be read; listed in {out}: use data.skip_list={out}")
    return 1


def _scan(config: Config, split: str) -> dict[str, str]:
    """The unreadable samples of a split: name to reason."""
    import torch  # takes seconds to import; a misspelt setting needs none of it

    from configs import build
    from configs.run import loading, validation
    from tdaf.engine.log import Bar

    dataset: Any = build.task(config).dataset(split)
    settings = {**loading(config, torch.device("cpu")), "max_bad": len(dataset)}
    loader, bar = validation(dataset, 32, settings), Bar(split, -(-len(dataset) // 32))
    for _ in loader:
        bar.advance()
    bar.stop()
    print(f"{split}: {len(dataset)} samples read, {len(loader.bad)} cannot be, {dataset.skipped} on the skip list")
    return {name: reason for name, reason in loader.bad.values()}


if __name__ == "__main__":
    sys.exit(main(check, __doc__))
