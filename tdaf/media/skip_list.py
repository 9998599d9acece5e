"""Lists of files that training and evaluation leave out, as scripts/check_data.py writes them."""

from __future__ import annotations

from pathlib import Path

from tdaf.errors import UserError


def read_skip_list(path: str | None, folders: tuple[str, ...] = (), example: str | None = None) -> frozenset[str]:
    """The paths in a text file, one a line, with / between their parts; none where `path` is None.

    folders: paths must begin with one of these; where none are given, they must only not begin at the file system's
    root. example: what a path looks like, for the message; by default the folders.
    Raises UserError, in the words of the setting data.skip_list.
    """
    if path is None:
        return frozenset()
    try:
        lines = Path(path).expanduser().read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    except OSError as error:
        raise UserError(f"data.skip_list={path}: {error.strerror}; scripts/check_data.py writes such a list") from error
    paths = frozenset(line.strip().replace("\\", "/") for line in lines if line.strip())
    for line in paths:
        if not line.startswith(folders) if folders else line.startswith("/"):
            like = example or " or ".join(f"{folder}..." for folder in folders)
            raise UserError(f"data.skip_list={path}: '{line}' is not a path below data.root ({like})")
    return paths
