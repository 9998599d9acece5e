"""Starting one process a rank on this machine. This module is torch-free, so that a rank watches its parent before it
imports anything that takes seconds."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import sys
import threading
import time
from collections.abc import Callable
from multiprocessing import connection
from typing import Any

SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP, signal.SIGINT)
GRACE = 30  # seconds for the other ranks, which may be saving the same checkpoint or naming the same fault


def spawn(function: Callable[..., int], args: tuple, ranks: int) -> int:
    """Runs `function(*args)` as `ranks` processes of this machine, each seeing torchrun's environment variables.

    SIGTERM, SIGUSR1, SIGHUP and Ctrl-C reach the ranks, which also end with this process.

    Returns:
        The first exit code that is not zero (the other ranks are then ended), or 0. Signal N gives 128 + N.
    """
    from torch.distributed import TCPStore

    # the ranks meet at a store of this process, which has its port before they start: nobody else can take it
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    context = multiprocessing.get_context("spawn")
    payload = pickle.dumps((function, args))
    processes = [
        context.Process(target=_rank, args=(payload, r, ranks, store.port), name=f"rank {r}") for r in range(ranks)
    ]
    early: list[int] = []  # signals that came before all ranks were there to hear them

    def forward(number: int, frame: Any = None) -> None:
        if processes[-1].pid is None:
            early.append(number)
            return
        for process in processes:
            if process.is_alive():
                os.kill(process.pid, number)

    heard = [s for s in SIGNALS if signal.getsignal(s) is not signal.SIG_IGN]  # `nohup` ignores SIGHUP, for ranks too
    previous = {s: signal.signal(s, forward) for s in heard}
    try:
        for process in processes:
            process.start()
        for number in early:
            forward(number)
        return _wait(processes)
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _wait(processes: list[Any]) -> int:
    """The exit code of them all, once they have ended."""
    while any(p.is_alive() for p in processes) and not any(p.exitcode for p in processes):
        time.sleep(0.1)
    code = next((p.exitcode for p in processes if p.exitcode), 0)
    if code < 0:
        print(f"error: a rank was ended by {signal.Signals(-code).name}", file=sys.stderr, flush=True)
    end = time.monotonic() + GRACE
    while any(p.is_alive() for p in processes) and time.monotonic() < end:
        time.sleep(0.1)
    for process in processes:
        process.kill()
    return code if code >= 0 else 128 - code


def _rank(payload: bytes, rank: int, ranks: int, port: int) -> None:
    threading.Thread(target=_end_with_parent, daemon=True).start()
    os.environ.update(
        RANK=str(rank),
        LOCAL_RANK=str(rank),
        WORLD_SIZE=str(ranks),
        LOCAL_WORLD_SIZE=str(ranks),
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port),
        TORCHELASTIC_USE_AGENT_STORE="True",  # rank 0 joins the parent's store too, and opens none of its own
        TORCHELASTIC_RESTART_COUNT="0",
    )
    function, args = pickle.loads(payload)
    sys.exit(function(*args))


def _end_with_parent() -> None:
    """A killed parent must not leave ranks behind that go on, and hold the run folder's lock."""
    connection.wait([multiprocessing.parent_process().sentinel])
    os._exit(1)
