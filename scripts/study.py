"""Does top-down attention help, measured here? Trains every row of configs/study.yaml and writes what came out:

    python scripts/study.py [--quick] [groups=comparison,ablations] [seeds=0,1,2] [processes=N] [threads=1]
                            [runs=runs/study] [out=docs/study.md] [key=value ...]

Several single-threaded runs at a time (processes: the machine's cores). What is finished is not trained again, what was
stopped goes on, so the same command, started again, ends where it would have; the page is written from all runs that
are finished. --quick: a few rows, few steps, in minutes, into runs/study-quick/study.md. Other settings (trainer.epochs=3,
gpus=1) go to every run; give them another runs=FOLDER. Of a page that exists only the measured part is written anew.
Needs pip install -e '.[study]'. Exit codes as train.py's.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path

from tdaf.cli.arguments import given, main
from tdaf.errors import UserError

OWN = ("groups", "seeds", "processes", "threads", "runs", "out")
NEEDED = ("scipy", "matplotlib")


def study(arguments: list[str]) -> int:
    quick = "--quick" in arguments
    own, more = given([argument for argument in arguments if argument != "--quick"], OWN)
    absent = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if absent:
        raise UserError(f"the study needs {' and '.join(absent)}: pip install -e '.[study]'")
    processes = _number("processes", own["processes"], os.cpu_count() or 1)
    threads = _number("threads", own["threads"], 1)
    runs = Path(own["runs"] or ("runs/study-quick" if quick else "runs/study"))
    out = Path(own["out"] or (runs / "study.md" if quick else "docs/study.md"))
    seeds = [_number("seeds", text, 0) for text in own["seeds"].split(",")] if own["seeds"] else None

    from studies import page, plan, trials
    from tdaf.engine.health import REQUEUE

    chosen = plan.read(quick, own["groups"].split(",") if own["groups"] else None, seeds)
    asked = plan.trials(chosen, runs, more)
    missing = trials.missing(asked)
    print(f"{len(asked)} runs, {len(missing)} of them to train, {processes} at a time; {runs}", flush=True)
    try:
        failed = trials.run(missing, processes, threads)
    except trials.Stopped:
        print("stopped: the same command goes on", file=sys.stderr)
        return REQUEUE
    command = " ".join(["python scripts/study.py", *arguments])
    page.write(out, plan.with_seeds(plan.read(quick), seeds or []), more, runs, command, rounds=1 if quick else None)
    print(out)
    for trial, reason in failed.items():
        print(f"error: {trial.row.name}, seed {trial.seed}: {reason}", file=sys.stderr)
    return 1 if failed else 0


def _number(name: str, text: str | None, default: int) -> int:
    if text is None:
        return default
    if not text.isascii() or not text.isdigit() or (name != "seeds" and int(text) < 1):
        raise UserError(f"{name}={text}: give a whole number, {0 if name == 'seeds' else 1} or more")
    return int(text)


if __name__ == "__main__":
    sys.exit(main(study, __doc__))
