"""Evaluates a checkpoint, or the best one of a run folder:

    python scripts/evaluate.py checkpoint=RUN_FOLDER [protocol=10crop] [boxes=[gt,FILE.json]] [folded=true] [gpus=N]
                               [report=true] [out=FOLDER] [data.root=PATH] [trust=MODULE] [key=value ...]

Settings are the run's own but for those given here. The numbers go to standard output and, with the protocol and how
many samples were counted, to evaluation-<protocol>.json in the run folder, or in out=FOLDER; what else the task writes
(detections in COCO's format, say) goes to evaluation-<protocol>/ there, and with report=true report.html, a page that
shows the mistakes. trust: modules of yours that the run's settings may name, as those of a task of your own; without it
only tdaf's own parts are imported. Exit codes as train.py's.
"""

from __future__ import annotations

import sys
from pathlib import Path

import tdaf.cli.ending  # noqa: F401  first: from here on Ctrl-C is a line
from tdaf.cli.evaluation import evaluate_checkpoint
from tdaf.cli.script import main


def evaluate(
    *,
    checkpoint: Path,
    protocol: str | None = None,
    boxes: str | None = None,
    folded: bool = False,
    report: bool = False,
    out: Path | None = None,
    trust: list[str] | None = None,
    rest: list[str],
) -> int:
    short = {"task.protocol": protocol, "task.boxes": boxes}
    overrides = [f"{key}={text}" for key, text in short.items() if text is not None]
    return evaluate_checkpoint(checkpoint, [*overrides, *rest], folded, trust or (), out, report)


if __name__ == "__main__":
    sys.exit(main(evaluate, __doc__))
