"""The ways in which a run ends early that are not a bug. Each message is one line: what, where, what to do."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager

_OF_NAMES_AND_RIGHTS = (
    errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG, errno.ELOOP,
)  # fmt: skip
REQUEUE = 75  # EX_TEMPFAIL of sysexits.h: the run is whole and wants to be started again


class UserError(ValueError):
    """A setting, path or file that cannot work. Found before training starts; exit code 2."""


class RunError(Exception):
    """A fault met while running (full disk, unreadable sample, non-finite loss). Exit code 1."""


class UnreadableSample(Exception):
    """One sample that cannot be read; the engine names, counts and, up to `data.max_bad`, skips it."""


class Preempted(SystemExit):
    """The run was told to stop and has saved. Not caught, it ends the process with exit code REQUEUE."""

    def __init__(self) -> None:
        super().__init__(REQUEUE)

    def __str__(self) -> str:
        return "told to stop; everything is saved and the same command goes on"


def first_line(error: BaseException) -> str:
    """The first line of an error's message that says something, up to 300 characters of it, or the error's kind."""
    return next((line.strip()[:300] for line in str(error).splitlines() if line.strip()), type(error).__name__)


def explain_file(error: OSError) -> UserError | RunError | None:
    """What the system's refusal of a file comes to: a mistake, where it is about names and rights, or a fault. None for
    an error of something else than a file."""
    if error.filename is None or error.strerror is None:
        return None
    kind = UserError if error.errno in _OF_NAMES_AND_RIGHTS else RunError
    return kind(f"{error.filename}: {error.strerror}")


@contextmanager
def explained_files() -> Iterator[None]:
    """Raises what `explain_file` says in place of the system's error, where it says something."""
    try:
        yield
    except OSError as error:
        raise explain_file(error) or error from error.__cause__


@contextmanager
def refused_files(what: object, verb: str = "read", kind: type[Exception] = UserError) -> Iterator[None]:
    """Raises `kind`, which says that `what` cannot be read (or what the verb is), in place of the system's refusal."""
    try:
        yield
    except OSError as error:
        raise kind(f"{what} cannot be {verb}: {error.strerror or error}") from error
