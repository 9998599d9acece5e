"""Starting the ranks of a job and turning whatever ends one into a line and an exit code."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable

import torch

from tdaf.cli.compose import Config
from tdaf.engine import dist
from tdaf.engine.preempt import REQUEUE, Preempted
from tdaf.errors import RunError, UserError

OK, FAULT, MISTAKE, INTERRUPTED = 0, 1, 2, 130
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
        return _rank(job, config, gpus)
    return dist.spawn(_rank, (job, config, gpus), gpus)


def _rank(job: Job, config: Config, gpus: int) -> int:
    hang = config["trainer"]["hang_timeout"]
    patience = hang and hang + config["loader"]["timeout"] + 60
    try:
        with dist.losing_a_rank():
            job(config, dist.join(gpus, patience))
        return OK
    except Preempted as told:
        return _complain(told, REQUEUE)
    except UserError as error:
        return _complain(error, MISTAKE)
    except RunError as error:
        return _complain(error, FAULT)
    except torch.cuda.OutOfMemoryError as error:
        first = str(error).splitlines()[0]
        hint = "try a smaller trainer.batch, trainer.accumulate=2 or tdaf.rematerialise=true"
        return _complain(f"out of GPU memory: {first} ({hint})", FAULT)
    except KeyboardInterrupt:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal and `spawn` both send one
        return _complain("interrupted; the same command goes on from the last checkpoint", INTERRUPTED)
    finally:
        dist.leave()


def _complain(said: object, code: int) -> int:
    stopped = code in (REQUEUE, INTERRUPTED)
    rank = f"rank {dist.rank()}: " if dist.rank() else ""
    if str(said) and not (stopped and rank):  # all ranks stop alike, and one says so
        print(f"{'stopped' if stopped else 'error'}: {rank}{said}", file=sys.stderr, flush=True)
    return code
