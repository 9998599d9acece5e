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

from tdaf.errors import RunError, UserError, explained_files
from tdaf.streams import LossyStream, mute, open_closed_streams

OK, FAULT, MISTAKE, INTERRUPTED, UNHEARD = 0, 1, 2, 130, 141  # the last as the shell has it of SIGPIPE

_begun = False


def end_well(command: Callable[[], int]) -> int:
    """The exit code of `command()`: its own, or that of what ends it, which is told in one line: 1 for a fault, 2 for a
    mistake of the user's, 130 for Ctrl-C; 141, and no line, where nobody reads standard output any more."""
    global _begun
    _begun = True
    open_closed_streams()
    errors, sys.stderr = sys.stderr, LossyStream(sys.stderr, "standard error")
    try:
        with explained_files():
            code = command()
            sys.stdout.flush()
        return code
    except KeyboardInterrupt:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # nobody sees the second one
        return complain("interrupted", INTERRUPTED)
    except UserError as error:
        return complain(error, MISTAKE)
    except RunError as error:
        return complain(error, FAULT)
    except BrokenPipeError:
        mute(sys.stdout)
        return UNHEARD
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EIO):
            raise
        mute(sys.stdout)
        return complain(f"standard output: {error.strerror}", FAULT)
    finally:
        sys.stderr = errors
        if not _can_print():  # of which the interpreter would complain as it ends
            mute(sys.stdout)


def complain(message: object, code: int) -> int:
    """Says on standard error what ended a command. Returns `code`."""
    print(f"{'stopped' if code == INTERRUPTED else 'error'}: {message}", file=sys.stderr, flush=True)
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


def _can_print() -> bool:
    try:
        sys.stdout.flush()
        return True
    except (OSError, ValueError):
        return False


handle_interrupts()
