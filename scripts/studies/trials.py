"""Running the study: several single-threaded runs of train.py at a time, each of which can be stopped and goes on."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from types import FrameType

from tdaf.cli import rehearsal
from tdaf.cli.compose import Config, compose
from tdaf.cli.run import finished
from studies.plan import Trial
from tdaf.engine.health import REQUEUE

TRAIN = Path(__file__).resolve().parents[2] / "train.py"


def missing(trials: list[Trial]) -> list[Trial]:
    """Those that are not finished. Raises UserError for settings that cannot work, and for a folder of other settings."""
    found, rehearsed = [], set()
    for trial in trials:
        config: Config = compose(list(trial.command))
        if finished(config):
            continue
        found.append(trial)
        if trial.row.name not in rehearsed:  # seeds change nothing of it
            rehearsed.add(trial.row.name)
            rehearsal.settings(config)
    return found


class Stopped(Exception):
    """SIGTERM or Ctrl-C. The runs have saved what they had; the same command goes on."""


def run(trials: list[Trial], processes: int, threads: int) -> dict[Trial, str]:
    """Runs all of them, `processes` at a time with `threads` each. Returns why the failed ones failed.

    Raises Stopped when told to stop.
    """
    running: set[subprocess.Popen] = set()
    stop = threading.Event()

    def one(trial: Trial) -> str | None:
        if stop.is_set():
            return None
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
        command = [sys.executable, str(TRAIN), *trial.command]
        with subprocess.Popen(
            command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        ) as process:
            running.add(process)
            if stop.is_set():
                process.terminate()
            said = process.communicate()[1].strip().splitlines()
            running.discard(process)
        return None if process.returncode in (0, REQUEUE) else said[-1] if said else f"exit code {process.returncode}"

    def halt(number: int, frame: FrameType | None) -> None:
        stop.set()
        for process in list(running):
            process.terminate()

    before = {number: signal.signal(number, halt) for number in (signal.SIGTERM, signal.SIGINT)}
    failed: dict[Trial, str] = {}
    try:
        with ThreadPoolExecutor(processes) as pool:
            futures = {pool.submit(one, trial): trial for trial in trials}
            for number, future in enumerate(as_completed(futures), start=1):
                trial, reason = futures[future], future.result()
                if reason is not None:
                    failed[trial] = reason
                if not stop.is_set():
                    outcome = f"failed: {reason}" if reason else "done"
                    print(f"{number} of {len(trials)}: {trial.row.name}, seed {trial.seed}: {outcome}", flush=True)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if stop.is_set():
        raise Stopped
    return failed
