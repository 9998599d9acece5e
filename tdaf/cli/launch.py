"""Starting the ranks of a job and turning whatever ends one into a line and an exit code."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable

import torch

from tdaf.cli.compose import Config
from tdaf.cli.ending import FAULT, INTERRUPTED, MISTAKE, OK
from tdaf.engine import dist
from tdaf.engine.health import REQUEUE, Preempted
from tdaf.errors import RunError, UserError, explained_files
from tdaf.streams import lossy_streams

Job = Callable[[Config, torch.device], None]


def launch(job: Job, config: Config) -> int:
    """Runs `job(config, device)` on as many ranks as `gpus` asks for, or as one rank of torchrun's.

    Returns 0, 1 for a fault, 2 for a mistake of the user's, 75 when told to stop, 130 for Ctrl-C.
    """
    try:
        gpus = dist.count_gpus(config["gpus"])
    except UserError as error:
        return _complain(error, MISTAKE)
    if dist.under_torchrun() or gpus <= 1:
        return run_rank(job, config, gpus)
    from tdaf.engine.spawn import spawn

    return spawn(run_rank, (job, config, gpus), gpus)


@lossy_streams()
def run_rank(job: Job, config: Config, gpus: int) -> int:
    """One rank of the job, on a GPU if `gpus` is not 0. Returns its exit code."""
    timeout = dist.collective_timeout(config["trainer"]["hang_timeout"], config["loader"]["timeout"])
    try:
        with explained_files(), dist.explain_peer_failure():
            job(config, dist.join("cuda" if gpus else "cpu", timeout))
        return OK
    except Preempted as stopped:
        return _complain(stopped, REQUEUE)
    except UserError as error:
        return _complain(error, MISTAKE)
    except RunError as error:
        return _complain(error, FAULT)
    except torch.cuda.OutOfMemoryError as error:
        return _complain(f"out of GPU memory: {str(error).splitlines()[0]} ({_smaller(config)})", FAULT)
    except KeyboardInterrupt:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal and `spawn` both send one
        return _complain("interrupted; the same command goes on from the last checkpoint", INTERRUPTED)
    finally:
        dist.leave()


def _smaller(config: Config) -> str:
    """What makes a run take less of a GPU's memory."""
    batch, parts = config["trainer"]["batch"], config["trainer"]["accumulate"]
    again = "" if config.get("tdaf", {}).get("rematerialise") else ", or tdaf.rematerialise=true (slower)"
    return f"try trainer.accumulate={2 * parts} (the same run), less than trainer.batch={batch}{again}"


def _complain(message: object, code: int) -> int:
    stopped = code in (REQUEUE, INTERRUPTED)
    rank = f"rank {dist.rank()}: " if dist.rank() else ""
    if str(message) and not (stopped and rank):  # all ranks stop alike, and one says so
        print(f"{'stopped' if stopped else 'error'}: {rank}{message}", file=sys.stderr, flush=True)
    return code
