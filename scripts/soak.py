"""A bad night: tiny runs, killed, signalled, starved and unheard at random, that must end as if nothing had been.

    python scripts/soak.py [tasks=imagenet,coco_fcos] [rounds=6] [out=soak] [seed=0]

Of each task (cifar10, imagenet, coco_fcos, coco_pose, kinetics; all by default) one run of recipe=demo, cut small, is
left in peace. Another is started with the same settings and met by `rounds` mishaps at random moments, one after
another, and then finished; where one ends before that, the next begins anew. A mishap is SIGKILL, SIGTERM, SIGUSR1,
SIGHUP or Ctrl-C to all its processes; too few open files (ulimit -n), or files that may not grow (ulimit -f, as a full
disk); an output that closes after its first line, or is full. What is met by one of the last four is killed later.

Every tensor of the last checkpoint, of weights, averages, optimizer and generators, must be that of the run in peace,
and nothing that was said may be a stack trace. Prints a line a mishap and one a task; OUT/<task>/output.txt holds what
the runs said. On the CPU. Exit codes: 0 all held; 1 something did not; 2 a mistake.
"""

from __future__ import annotations

import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tdaf.cli.ending  # noqa: F401  first: from here on Ctrl-C is a line
from tdaf.cli.script import Natural, Positive, main
from tdaf.errors import RunError, UserError

TRAIN = Path(__file__).resolve().parents[1] / "train.py"
SMALL = (
    "recipe=demo gpus=0 loader.workers=2 trainer.batch=4 trainer.max_steps=100 trainer.checkpoint_every=3 "
    "trainer.log_every=2 trainer.pictures=0 trainer.evaluate_every=2 trainer.ema=0.9 demo.train=40 demo.val=20"
).split()
TASKS = {
    "cifar10": [],
    "imagenet": [],
    "coco_fcos": ["demo.size=64"],
    "coco_pose": ["demo.size=96"],
    "kinetics": ["demo.size=64"],
}
SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP, signal.SIGINT)
LIMITS = {"open files": (resource.RLIMIT_NOFILE, (24, 96)), "file size": (resource.RLIMIT_FSIZE, (2_000, 2_000_000))}
OUTPUTS = ("closed pipe", "full device")


@dataclass(frozen=True)
class Mishap:
    """What a run meets: a signal after `seconds`, and before that perhaps a limit or an output that goes away."""

    kind: str
    number: signal.Signals
    seconds: float
    value: int = 0

    def __str__(self) -> str:
        first = self.kind + (f" {self.value}" if self.value else "")
        return f"{first + ', ' if first else ''}{self.number.name} after {self.seconds:.1f} s"


def soak(
    *,
    tasks: list[str] | None = None,
    rounds: Positive = 6,
    out: Path = Path("soak"),
    seed: Natural = 0,
) -> int:
    for name in tasks or ():
        if name not in TASKS:
            raise UserError(f"tasks={name}: there is no such task; choose from {', '.join(TASKS)}")
    held = [_soak_task(name, rounds, out.resolve() / name, random.Random(f"{seed} {name}")) for name in tasks or TASKS]
    print(f"{sum(held)} of {len(held)} tasks held")
    return 0 if all(held) else 1


def _soak_task(task: str, rounds: int, folder: Path, draw: random.Random) -> bool:
    """Whether a run of the task held against `rounds` mishaps."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    command = [sys.executable, str(TRAIN), f"task={task}", *SMALL, *TASKS[task], f"demo.root={folder / 'demo'}"]
    peace, begun = folder / "peace", time.monotonic()
    if _run(command, peace, folder) != 0:
        raise RunError(f"{task}: the run in peace failed; {folder / 'output.txt'} says why")
    seconds = time.monotonic() - begun
    print(f"{task}: {seconds:.1f} s in peace", flush=True)
    ended: Counter[str] = Counter()
    lives, differing = 1, []
    for number in range(1, rounds + 1):
        mishap = _drawn(draw, seconds)
        code = _run(command, folder / f"run{lives}", folder, mishap)
        ended[_named(code)] += 1
        print(f"{task} {number}/{rounds}: {mishap}: {_named(code)}", flush=True)
        if code == 0:
            differing += _differences(peace, folder / f"run{lives}")
            lives += 1
    if _run(command, folder / f"run{lives}", folder) != 0:
        differing.append("the last run did not end well")
    else:
        differing += _differences(peace, folder / f"run{lives}")
    traces = (folder / "output.txt").read_text(errors="replace").count("Traceback")
    outcome = f"differ: {', '.join(differing[:5])}" if differing else "every tensor is that of the run in peace"
    how = ", ".join(f"{count} {name}" for name, count in ended.most_common())
    print(f"{task}: {rounds} mishaps ({how}), {lives} runs, {traces} stack traces; {outcome}", flush=True)
    return not differing and not traces


def _drawn(draw: random.Random, seconds: float) -> Mishap:
    kind = draw.choice(["", "", *LIMITS, *OUTPUTS])
    number = draw.choice(SIGNALS if not kind else SIGNALS[:2])
    value = draw.randint(*LIMITS[kind][1]) if kind in LIMITS else 0
    return Mishap(kind, number, draw.uniform(0.5, 1.1 * seconds), value)


def _run(command: list[str], run_dir: Path, folder: Path, mishap: Mishap | None = None) -> int:
    """The exit code of a run that meets `mishap`, or is left in peace."""
    kind = mishap.kind if mishap else ""

    def limited() -> None:
        what, _ = LIMITS[kind]
        resource.setrlimit(what, (mishap.value, mishap.value))

    with open(folder / "output.txt", "ab") as output, open("/dev/full", "wb") as full:
        process = subprocess.Popen(
            [*command, f"run_dir={run_dir}"],
            env={"OMP_NUM_THREADS": "1", **os.environ},
            stdout={"closed pipe": subprocess.PIPE, "full device": full}.get(kind, output),
            stderr=output,
            preexec_fn=limited if kind in LIMITS else None,
            start_new_session=True,
        )
        end = time.monotonic() + (mishap.seconds if mishap else 3600)
        if process.stdout is not None:
            process.stdout.readline()
            process.stdout.close()
        try:
            return process.wait(max(0.1, end - time.monotonic()))
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, mishap.number if mishap else signal.SIGKILL)
        try:
            return process.wait(120)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            raise RunError(f"{run_dir} did not end within 120 s of {mishap}") from None


def _named(code: int) -> str:
    return f"ended by {signal.Signals(-code).name}" if code < 0 else f"exit {code}"


def _differences(first: Path, second: Path) -> list[str]:
    """The entries of two runs' last checkpoints that are not equal, bit for bit."""
    from tdaf.engine import checkpoint

    a, b = (checkpoint.load(folder / "checkpoints" / checkpoint.LAST) for folder in (first, second))
    return [name for name in a if name not in ("pace", "about") and not _equal(a[name], b.get(name))]


def _equal(a: Any, b: Any) -> bool:
    import torch
    from torch.utils._pytree import tree_flatten

    (ours, form), (theirs, other) = tree_flatten(a), tree_flatten(b)
    return form == other and all(
        type(x) is type(y) and (x.dtype == y.dtype and torch.equal(x, y) if isinstance(x, torch.Tensor) else x == y)
        for x, y in zip(ours, theirs, strict=True)
    )


if __name__ == "__main__":
    sys.exit(main(soak, __doc__))
