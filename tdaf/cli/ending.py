"""How every command ends: in an exit code and, where it is not 0, in one line.

Commands import this module before anything else of ours, and with it Ctrl-C is a line from then on, whatever is being
imported; it is for commands, and no library.
"""

from __future__ import annotations

import errno
import os
import signal
import sys
import threading
from collections.abc import Callable
from types import FrameType

from tdaf.errors import REQUEUE, Preempted, RunError, UserError, explained_files
from tdaf.streams import LossyStream, mute, open_closed_streams

OK, FAULT, MISTAKE, INTERRUPTED, UNHEARD = 0, 1, 2, 130, 141  # the last as the shell has it of SIGPIPE
STOPPED = (REQUEUE, INTERRUPTED)  # the rest of a sweep is not started

_begun = False


def end_well(command: Callable[[], int]) -> int:
    """`exit_code` of a whole process's command; 141, and no line, where nobody reads standard output any more."""
    global _begun
    _begun = True
    open_closed_streams()
    errors, sys.stderr = sys.stderr, LossyStream(sys.stderr, "standard error")
    try:
        return exit_code(lambda: command() or sys.stdout.flush())
    except BrokenPipeError:
        mute(sys.stdout)
        return UNHEARD
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EIO):
            raise
        mute(sys.stdout)
        return _complain(f"standard output: {error.strerror}", FAULT)
    finally:
        sys.stderr = errors
        try:
            sys.stdout.flush()
        except (OSError, ValueError):  # of which the interpreter would complain as it ends
            mute(sys.stdout)


def exit_code(
    command: Callable[[], int | None], interrupted: str = "interrupted", rank: Callable[[], int] = lambda: 0
) -> int:
    """The exit code of `command()`: its own, 0 for None, or that of what ends it, which is told in one line on standard
    error: 1 for a fault, 2 for a mistake of the user's, 75 for a run that was told to stop, 130 for Ctrl-C.

    rank: of the process, when the command has ended; all ranks stop alike, and rank 0 says so.
    """
    try:
        with explained_files():
            return command() or OK
    except Preempted as stopped:
        return _complain(stopped, REQUEUE, rank())
    except UserError as error:
        return _complain(error, MISTAKE, rank())
    except RunError as error:
        return _complain(error, FAULT, rank())
    except KeyboardInterrupt:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal and `spawn` both send one
        return _complain(interrupted, INTERRUPTED, rank())


def _complain(message: object, code: int, rank: int = 0) -> int:
    stopped = code in STOPPED
    if str(message) and not (stopped and rank):
        where = f"rank {rank}: " if rank else ""
        print(f"{'stopped' if stopped else 'error'}: {where}{message}", file=sys.stderr, flush=True)
    return code


def handle_interrupts() -> None:
    """Ctrl-C raises KeyboardInterrupt as it does everywhere, but ends the process at once while a module is being
    imported, where such an exception comes out as any other, or before the command has begun."""
    if threading.current_thread() is threading.main_thread():
        if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            signal.signal(signal.SIGINT, _interrupted)


def _interrupted(number: int, frame: FrameType | None) -> None:
    if _begun and not _is_importing(frame):
        raise KeyboardInterrupt
    processes = sys.modules.get("multiprocessing.process")  # may be what is being imported
    name = processes.current_process().name if hasattr(processes, "current_process") else "MainProcess"
    if name in ("MainProcess", "rank 0"):  # a terminal sends one to every rank, and one says so
        os.write(2, b"stopped: interrupted\n")
    os._exit(INTERRUPTED)


def _is_importing(frame: FrameType | None) -> bool:
    while frame is not None:
        if frame.f_globals.get("__name__") in ("importlib._bootstrap", "_frozen_importlib"):
            return True
        frame = frame.f_back
    return False


handle_interrupts()
