"""Packs a folder, or what is in an archive, into one plain tar that training reads as it is (data.root=ITS_FOLDER):

    python scripts/pack.py PATH/train out=SHARED/train.tar

One large file instead of a million small ones is what network storage and file systems with few inodes like; see
docs/cluster.md. The files lie in the order in which a data set lists them, links are followed, and the same files make
the same archive. PATH may also be a tar or zip file: pack.py train.zip out=train.tar. Exit codes: 0 done; 2 a mistake.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import tdaf.cli.ending  # noqa: F401  first: from here on Ctrl-C is a line
from tdaf.cli.script import main
from tdaf.errors import RunError, UnreadableSample, UserError
from tdaf.media import archive
from tdaf.media.files import refuse_unreadable
from tdaf.media.tar import Writer
from tdaf.streams import Bar


def pack(*words: str, out: Path) -> None:
    if len(words) != 1:
        raise UserError(f"give one folder to pack, not {len(words)}: pack.py FOLDER out=train.tar")
    folder = os.path.normpath(os.path.expanduser(words[0]))
    if not archive.is_folder(folder):
        raise UserError(f"{folder}: no such folder")
    if out.suffix.lower() != ".tar":
        raise UserError(f"out={out}: give a name that ends in .tar")
    if out.exists():
        raise UserError(f"out={out} is there already: delete it, or give another name")
    if out.resolve().is_relative_to(Path(folder).resolve()):
        raise UserError(f"out={out} lies in {folder}: give a place outside")
    archive.check_whole(folder, 0)
    places = sorted(archive.walk(folder, refuse_unreadable))
    names = [os.path.join(place, name) for place, _, files in places for name in sorted(files)]
    empty = [place for place, folders, files in places if place != folder and not folders and not files]
    try:
        with Bar("files", len(names)) as bar, Writer(out) as tar:
            for place in empty:
                tar.add(os.path.relpath(place, folder), None)
            for name in names:
                size, _ = archive.about(name)
                with archive.open_file(name) as content:
                    tar.add(os.path.relpath(name, folder), content, size)
                bar.advance()
    except (OSError, UnreadableSample) as error:
        raise RunError(
            f"{getattr(error, 'filename', None) or ''} {error}; nothing was left in {out}".strip()
        ) from error
    print(f"{out}: {tar.count} files, {out.stat().st_size / 1e9:.2f} GB")


if __name__ == "__main__":
    sys.exit(main(pack, __doc__))
