"""Starting the ranks of a job and turning whatever ends one into a line and an exit code."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import torch

from configs.compose import Config
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


def together(make: Callable[[], Any]) -> Any:
    """`make()` on every rank; a mistake that any rank finds is said once and ends all of them."""
    result, said = None, None
    try:
        result = make()
    except UserError as error:
        said = str(error)
    found = dist.broadcast([text for text in dist.gather(said) if text])
    if found:
        raise UserError(found[0] if dist.rank() == 0 else "")
    return result


def _rank(job: Job, config: Config, gpus: int) -> int:
    patience = config["loader"]["timeout"] + config["trainer"]["hang_timeout"] + 60
    try:
        job(config, dist.join(gpus, patience))
        return OK
    except Preempted:
        return _complain("told to stop; everything is saved and the same command goes on", REQUEUE)
    except UserError as error:
        return _complain(error, MISTAKE)
    except RunError as error:
        return _complain(error, FAULT)
    except torch.cuda.OutOfMemoryError as error:
        first = str(error).splitlines()[0]
        hint = "try a smaller trainer.batch, trainer.accumulate=2 or tdaf.rematerialise=true"
        return _complain(f"out of GPU memory: {first} ({hint})", FAULT)
    except KeyboardInterrupt:
        return _complain("interrupted; the same command goes on from the last checkpoint", INTERRUPTED)
    finally:
        dist.leave()


def _complain(said: object, code: int) -> int:
    rank = f"rank {dist.rank()}: " if dist.rank() else ""
    if str(said):
        print(f"{'stopped' if code in (REQUEUE, INTERRUPTED) else 'error'}: {rank}{said}", file=sys.stderr, flush=True)
    return code
