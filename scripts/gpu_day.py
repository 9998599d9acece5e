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
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import tdaf.cli.ending  # noqa: F401  first: from here on Ctrl-C is a line
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


@dataclass
class Outcome:
    """How a stage ended: its exit code, or None where it ran out of time."""

    code: int | None
    seconds: float
    command: str

    def __str__(self) -> str:
        return "out of time" if self.code is None else "done" if self.code == 0 else f"exit {self.code}"


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
    signal.signal(signal.SIGTERM, _interrupt)
    for stage in everything:
        if stages and stage.name not in stages:
            continue
        found = _outcome(out, stage.name)
        if found is None or found.code != 0:
            print(f"{stage.name} (at most {min(stage.minutes, limit or stage.minutes):g} min) ...", flush=True)
            found = _run(stage, out, 60 * min(stage.minutes, limit or stage.minutes), device)
            (out / f"{stage.name}.json").write_text(json.dumps(asdict(found)) + "\n")
        _write_page(out, names)
        print(f"{stage.name}: {found}, {found.seconds:.0f} s", flush=True)
    print(f"{out / 'gpu_day.md'}", flush=True)
    outcomes = [_outcome(out, name) for name in stages or names]
    return int(any(each is None or each.code != 0 for each in outcomes))


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


def _run(stage: Stage, out: Path, seconds: float, device: str) -> Outcome:
    """A stage in a process group of its own, ended where its time is up or this process is told to stop."""
    command, begun = [sys.executable, *stage.arguments], time.monotonic()
    shown = "..." if stage.arguments[0] == "-c" else " ".join(stage.arguments)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TDAF_GPU_TESTS_ON": device}
    with open(out / f"{stage.name}.txt", "ab") as said:
        process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=said, stderr=said, start_new_session=True)
        try:
            code = process.wait(seconds)
        except subprocess.TimeoutExpired:
            code = None
        finally:
            _end(process)
    return Outcome(code, time.monotonic() - begun, f"python {shown}")


def _end(process: subprocess.Popen) -> None:
    """SIGTERM to what is left of its group, so that a training saves; then SIGKILL."""
    for number, seconds in ((signal.SIGTERM, 60), (signal.SIGKILL, 60)):
        try:
            os.killpg(process.pid, number)
            process.wait(seconds)
        except ProcessLookupError:
            return
        except subprocess.TimeoutExpired:
            continue


def _interrupt(number: int, frame: Any) -> None:
    raise KeyboardInterrupt


def _outcome(out: Path, name: str) -> Outcome | None:
    try:
        return Outcome(**json.loads((out / f"{name}.json").read_text()))
    except (OSError, ValueError, TypeError):
        return None


def _write_page(out: Path, names: list[str]) -> None:
    lines = ["# A day on a GPU", "", "| stage | ended | seconds | command |", "|---|---|---:|---|"]
    for name in names:
        found = _outcome(out, name)
        rest = f"{found} | {found.seconds:.0f} | `{found.command}`" if found else "not begun | |"
        lines.append(f"| {name} | {rest} |")
    for name in ("environment", "tests", "training"):
        if (out / f"{name}.txt").is_file():
            said = (out / f"{name}.txt").read_text(errors="replace").splitlines()
            lines += ["", f"## {name}", "", "```", *said[-(60 if name == "tests" else 40) :], "```"]
    if (out / "benchmarks.md").is_file():
        lines += ["", "## benchmarks", "", (out / "benchmarks.md").read_text().removeprefix("# Benchmarks\n").strip()]
    (out / "gpu_day.md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    sys.exit(main(gpu_day, __doc__))
