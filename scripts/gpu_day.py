"""All there is to try on a machine with a GPU: an hour by estimate, ten minutes of which tell if it works.

    python scripts/gpu_day.py out=FOLDER [device=cuda] [stages=tests,training] [limit=MINUTES] [data.root=PATH ...]

Stages, each a process with a time limit: environment (versions, GPUs, how they are connected), tests (pytest -m gpu),
training (some minutes of ResNet-50 with TDAF on drawn pictures of 224 pixels, or what settings of train.py say), then
scripts/benchmark.py with each of its subjects that a GPU has a part in.

OUT/gpu_day.md is the page, OUT/<stage>.txt what a stage said, OUT/benchmarks.md and .json the tables, whose sections
docs/benchmarks.md takes over as they are. Ctrl-C or SIGTERM stop it at any time; the same command goes on: what ended
with exit code 0 is not repeated, what failed or ran out of time is tried again. limit: of each stage, at most.
device=cpu goes through all of it with everything tiny, which says nothing but that it can be started.
Exit codes: 0 all stages ended well; 1 one did not; 2 a mistake; 130 stopped.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import tdaf.cli.ending  # noqa: F401  first: from here on Ctrl-C is a line
from results.tabular import markdown_table
from tdaf.cli.script import Positive, main
from tdaf.errors import UserError

ROOT = Path(__file__).resolve().parents[1]
SUBJECTS = {  # minutes
    "model": 5, "fold": 5, "memory": 5, "compile": 15, "trainer": 5, "loader": 5, "detection": 5,
    "latency": 20,
}  # fmt: skip
REAL = "demo.train=4000 demo.val=500 demo.size=256 trainer.epochs=20 trainer.evaluate_every=5 trainer.batch=128".split()
TINY = (
    "backbone=tiny demo.train=16 demo.val=10 demo.size=48 trainer.max_steps=2 trainer.batch=4 trainer.pictures=0 "
    "loader.workers=0 gpus=0"
).split()
ENVIRONMENT = """
import subprocess
from tdaf import env
print("\\n".join(f"{name}: {fact}" for name, fact in env.facts().items()), flush=True)
for command in (["nvidia-smi"], ["nvidia-smi", "topo", "-m"]):
    try:
        subprocess.run(command, timeout=60)
    except OSError:
        print(*command, "is not installed")
"""


@dataclass(frozen=True)
class Stage:
    name: str
    arguments: list[str]  # of Python
    minutes: float


def gpu_day(
    *,
    out: Path,
    device: Literal["cuda", "cpu"] = "cuda",
    stages: list[str] | None = None,
    limit: Positive | None = None,
    rest: list[str],
) -> int:
    import torch

    if device == "cuda" and not torch.cuda.is_available():
        raise UserError("device=cuda: torch sees no GPU here; device=cpu only tries whether all can be started")
    everything = _stages(out.resolve(), device == "cuda", rest)
    names = [stage.name for stage in everything]
    for name in stages or ():
        if name not in names:
            raise UserError(f"stages={','.join(stages)}: {name!r} is none of {', '.join(names)}")
    out.mkdir(parents=True, exist_ok=True)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    chosen = [stage for stage in everything if not stages or stage.name in stages]
    for stage in chosen:
        minutes = min(stage.minutes, limit or stage.minutes)
        if _ended(out, stage.name).get("code") != 0:
            print(f"{stage.name} (at most {minutes:g} min) ...", flush=True)
            ended = json.dumps(_run(stage, out, 60 * minutes, device))
            (out / f"{stage.name}.json").write_text(ended + "\n")
        _write_page(out, names)
        print(f"{stage.name}: {_outcome(_ended(out, stage.name))}", flush=True)
    print(f"{out / 'gpu_day.md'}", flush=True)
    return int(any(_ended(out, stage.name).get("code") != 0 for stage in chosen))


def _stages(out: Path, real: bool, settings: list[str]) -> list[Stage]:
    recipe = ["task=imagenet", "recipe=demo", "anar=3", "flows=3", f"demo.root={out / 'data'}"]
    recipe += ["backbone=res50", "stem=imagenet", *REAL] if real else TINY
    tests = ["-m", "pytest", "-n", "0", "-m", "gpu", "tests/test_gpu.py", "--durations=0"]
    tests += [] if real else ["-k", "imagenet-bf16 or folded or too_little or scale or pinned"]
    small = [] if real else ["device=cpu", "backbone=tiny", "size=32", "batch=2", "pairs=1", "images=64", "threads=1"]
    return [
        Stage("environment", ["-c", ENVIRONMENT], 2),
        Stage("tests", tests, 10),
        Stage("training", ["train.py", *recipe, f"run_dir={out / 'training'}", *settings], 15),
        *(
            Stage(name, ["scripts/benchmark.py", f"what={name}", f"out={out / 'benchmarks'}", *small], minutes)
            for name, minutes in SUBJECTS.items()
            if real or name == "memory"
        ),
    ]


def _run(stage: Stage, out: Path, seconds: float, device: str) -> dict[str, Any]:
    """A stage in a process group of its own. Where its time is up or this process is told to stop, coreutils' timeout
    sends the group SIGTERM, so that a training saves, and a minute later SIGKILL. Returns how it ended."""
    command, begun = ["timeout", "--kill-after=60", str(seconds), sys.executable, *stage.arguments], time.monotonic()
    shown = "..." if stage.arguments[0] == "-c" else " ".join(stage.arguments)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TDAF_GPU_TESTS_ON": device}
    with open(out / f"{stage.name}.txt", "ab") as said:
        with subprocess.Popen(command, cwd=ROOT, env=environment, stdout=said, stderr=said) as process:
            try:
                code = process.wait()
            except KeyboardInterrupt:
                process.terminate()
                process.wait()
                raise
    return {"code": code, "seconds": round(time.monotonic() - begun), "command": f"python {shown}"}


def _ended(out: Path, name: str) -> dict[str, Any]:
    """How a stage ended; empty where it has not."""
    try:
        return json.loads((out / f"{name}.json").read_text())
    except (OSError, ValueError):
        return {}


def _outcome(ended: dict[str, Any]) -> str:
    return {None: "not begun", 0: "done", 124: "out of time", 137: "out of time"}.get(
        ended.get("code"), f"exit {ended.get('code')}"
    )


def _write_page(out: Path, names: list[str]) -> None:
    every = {name: _ended(out, name) for name in names}
    rows = [
        [name, _outcome(one), str(one.get("seconds", "")), f"`{one['command']}`" if one else ""]
        for name, one in every.items()
    ]
    parts = ["# A day on a GPU", markdown_table(["stage", "ended", "seconds", "command"], rows)]
    for name in ("environment", "tests", "training"):
        if (out / f"{name}.txt").is_file():
            said = (out / f"{name}.txt").read_text(errors="replace").splitlines()
            parts += [f"## {name}", "\n".join(["```", *said[-60:], "```"])]
    if (out / "benchmarks.md").is_file():
        parts += ["## benchmarks", (out / "benchmarks.md").read_text().removeprefix("# Benchmarks\n").strip()]
    (out / "gpu_day.md").write_text("\n\n".join(parts) + "\n")


if __name__ == "__main__":
    sys.exit(main(gpu_day, __doc__))
