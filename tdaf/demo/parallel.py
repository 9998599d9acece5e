"""Drawing on all cores."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import TypeVar

Result = TypeVar("Result")
_WORTH = 50  # samples for which a process pays


def drawn(draw: Callable[[int], Result], count: int) -> list[Result]:
    """[draw(0), ..., draw(count - 1)], shared among as many forked processes as there are cores; alone for a few.

    An exception in one of them is raised here. A process ends with its share, so that none is left behind by a
    command that was killed."""
    workers = min(len(os.sched_getaffinity(0)), count // _WORTH)
    if workers < 2:
        return [draw(index) for index in range(count)]
    # Forked, since a spawned process would import the user's script again. Nothing but numpy and Pillow runs in it.
    context = multiprocessing.get_context("fork")
    shares, processes = [], []
    try:
        for first in range(workers):
            share, sender = context.Pipe(duplex=False)
            process = context.Process(target=_send, args=(sender, draw, range(first, count, workers)), daemon=True)
            process.start()
            sender.close()
            shares.append(share)
            processes.append(process)
        results: list[Result] = [None] * count  # type: ignore[list-item]
        for first, share in enumerate(shares):
            results[first::workers] = _received(share)
        return results
    finally:
        for process in processes:
            process.terminate()
            process.join()


def _send(sender: Connection, draw: Callable[[int], Result], indices: range) -> None:
    try:
        sender.send([draw(index) for index in indices])
    except Exception as error:
        sender.send(error)
    except KeyboardInterrupt:
        pass


def _received(share: Connection) -> list[Result]:
    try:
        results = share.recv()
    except EOFError:
        raise OSError("a drawing process died") from None
    if isinstance(results, Exception):
        raise results
    return results
