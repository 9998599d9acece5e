"""scripts/gpu_day.py without a GPU: its real commands are such as can be given, and it is stopped and goes on."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from commands import ROOT, process, script
from tiny_run import until

from tdaf.cli.compose import compose

sys.path.insert(0, str(ROOT / "scripts"))

import benchmark  # noqa: E402
import gpu_day  # noqa: E402

HELLO = ["-c", "print('hello')"]
SLOW = "import pathlib, sys, time; pathlib.Path(sys.argv[1]).touch(); time.sleep(600)"


def day(out: Path, monkeypatch: pytest.MonkeyPatch, *stages: gpu_day.Stage) -> int:
    monkeypatch.setattr(gpu_day, "_stages", lambda *unused: list(stages))
    before = signal.getsignal(signal.SIGTERM)
    try:
        return script(gpu_day.gpu_day, [f"out={out}", "device=cpu"])
    finally:
        signal.signal(signal.SIGTERM, before)


def test_the_real_commands_can_be_given() -> None:
    real = {stage.name: stage for stage in gpu_day._stages(Path("/out"), True, ["seed=3", "trainer.epochs=1"])}
    settings = compose(real["training"].arguments[1:])
    assert settings["trainer"]["epochs"] == 1 and settings["seed"] == 3 and settings["run_dir"] == "/out/training"
    assert real.keys() == {"environment", "tests", "training", *gpu_day.SUBJECTS}
    for_gpus = {name for name, rows in benchmark.ROWS.items() if any(row.device == "gpu" for row in rows)}
    assert for_gpus <= gpu_day.SUBJECTS.keys() <= benchmark.ROWS.keys()
    assert sum(stage.minutes for stage in real.values()) < 120


def test_what_ended_well_is_not_repeated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    count, slow = tmp_path / "count", tmp_path / "slow"
    counting = f"open({str(count)!r}, 'a').write('x'); print('hello')"
    stages = [gpu_day.Stage("tests", ["-c", counting], 1), gpu_day.Stage("b", ["-c", "exit(3)"], 1)]
    late = gpu_day.Stage("c", ["-c", SLOW, str(slow)], 0.02)
    for _ in range(2):
        assert day(tmp_path / "out", monkeypatch, *stages, late) == 1
    assert count.read_text() == "x" and slow.exists()
    page = (tmp_path / "out/gpu_day.md").read_text()
    assert "| tests | done |" in page and "| b | exit 3 |" in page and "| c | out of time |" in page and "hello" in page
    again = [gpu_day.Stage(name, HELLO, 1) for name in ("b", "c")]
    assert day(tmp_path / "out", monkeypatch, stages[0], *again) == 0


def test_it_stops_cleanly_and_goes_on(tmp_path: Path) -> None:
    """Its stage hears of it, and nothing is left running."""
    started = tmp_path / "started"
    program = (
        "import sys\nsys.path.append('scripts')\nimport gpu_day\nfrom tdaf.cli.script import main\n"
        f"stage = gpu_day.Stage('a', ['-c', {SLOW!r}, {str(started)!r}], 5)\n"
        "gpu_day._stages = lambda *unused: [stage]\nsys.exit(main(gpu_day.gpu_day, ''))"
    )
    command = [sys.executable, "-c", program, f"out={tmp_path / 'out'}", "device=cpu"]
    running = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
    assert until(started.exists, running)
    children = Path(f"/proc/{running.pid}/task/{running.pid}/children").read_text().split()
    os.kill(running.pid, signal.SIGTERM)
    assert running.communicate(timeout=60)[1] == "stopped: interrupted\n" and running.returncode == 130
    assert children and not any(Path(f"/proc/{child}").exists() for child in children)


def test_the_tests_for_a_gpu_can_be_tried_on_the_cpu(tmp_path: Path) -> None:
    done = process(["scripts/gpu_day.py", f"out={tmp_path}", "device=cpu", "stages=tests"], ROOT)
    assert done.returncode == 0, done.stdout + done.stderr + (tmp_path / "tests.txt").read_text()
    found: dict[str, Any] = json.loads((tmp_path / "tests.json").read_text())
    assert found["code"] == 0 and "5 passed" in (tmp_path / "gpu_day.md").read_text()
