"""The three ways in which something goes wrong that is not a bug. Each message is one line: what, where, what to do."""


class UserError(ValueError):
    """A setting, path or file that cannot work. Found before training starts; exit code 2."""


class RunError(Exception):
    """A fault met while running (full disk, unreadable sample, non-finite loss). Exit code 1."""


class UnreadableSample(Exception):
    """One sample that cannot be read; the engine names, counts and, up to `data.max_bad`, skips it."""
