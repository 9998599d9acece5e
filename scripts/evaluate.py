"""Evaluates a checkpoint, or the best one of a run folder:

    python scripts/evaluate.py checkpoint=RUN_FOLDER [protocol=10crop] [boxes=[gt,FILE.json]] [folded=true] [gpus=N]
                               [data.root=PATH] [key=value ...]

Settings are the run's own but for those given here. The numbers go to standard output and, with the protocol and how
many samples were counted, to evaluation-<protocol>.json in the run folder; what else the task writes (detections in
COCO's format, say) goes to evaluation-<protocol>/. Exit codes as train.py's.
"""

from __future__ import annotations

import sys

from tdaf.cli.arguments import flag, given, main


def evaluate(arguments: list[str]) -> int:
    own, overrides = given(arguments, ("checkpoint", "folded"), {"protocol": "task.protocol", "boxes": "task.boxes"})
    folded = flag("folded", own["folded"])
    from tdaf.cli.evaluation import evaluate_checkpoint

    return evaluate_checkpoint(own["checkpoint"], overrides, folded)


if __name__ == "__main__":
    sys.exit(main(evaluate, __doc__))
