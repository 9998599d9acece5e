"""The paper's tables: ours beside the paper's, and what is missing trained.

    python scripts/table.py TABLE [format=markdown] [out=FILE] [seeds=0,1,2] [runs=FOLDER] [recipe=demo] [run=true]
                                  [key=value ...]
    python scripts/table.py FOLDER [protocol=10crop] [format=markdown] [out=FILE]

TABLE: 1, 2, 3a, 3b, 4, 5, 6, latency, multiscale (configs/table/), several of them as 4,5, or all. Parameters and
multiply-adds are counted at once, without data. Accuracies are those of finished runs below `runs` (runs) that have
the settings of a row, of any seed or of `seeds`; a dash stands where there is none.

FOLDER: of runs, as runs/cifar10; a table of the settings in which its runs differ. protocol: of which evaluation.

run=true: what is missing is trained and then evaluated as the table asks: in here, or on a cluster with
hydra/launcher=submitit_slurm. What is finished is not repeated, what is unfinished goes on. seeds: one run of each row
for each; mean and standard deviation are shown. recipe=demo: the table in miniature, without data.
format: terminal, markdown, csv, latex; by default that of out's ending, else terminal. out: a file to write to.
Other settings are overrides of every row's training: data.root=PATH, gpus=8, trainer.epochs=30.
--run, --recipe demo, --format csv and so on mean run=true, recipe=demo, format=csv. Exit codes as train.py's.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from tdaf.cli.arguments import main
from tdaf.errors import UserError

if TYPE_CHECKING:
    from tables.asked import Asked
    from tables.render import Grid


def table(arguments: list[str]) -> int:
    from tables import rows
    from tables.asked import asked

    given = asked(arguments)
    names = rows.names()
    if given.what[0] not in ("all", *names) and Path(given.what[0]).is_dir():
        return _folder(given)
    if given.protocol:
        raise UserError(f"protocol={given.protocol}: a table of the paper has its own; protocol is for a folder")
    keys = names if "all" in given.what else given.what
    tables = [rows.read(key) for key in dict.fromkeys(keys)]
    if given.run and not any(one.samples for one in tables):
        raise UserError(f"table {', '.join(one.key for one in tables)}: there is nothing to train in it")
    rows.check(tables, given.more)  # a mistake is told before torch, which takes seconds, is imported
    from tables import show, wanted

    code = wanted.run(tables, given) if given.run else 0
    _write([show.grid(one, given.more, given.seeds, [given.runs]) for one in tables], given)
    return code


def _folder(given: Asked) -> int:
    if given.more or given.hydra or given.seeds or given.run or len(given.what) > 1:
        raise UserError(f"{given.what[0]}: a folder's table shows what is there; it takes protocol, format and out")
    from tables.folder import of_folder

    protocol = [f"protocol={given.protocol}"] if given.protocol else []
    _write(of_folder(Path(given.what[0]), protocol), given)
    return 0


def _write(grids: list[Grid], given: Asked) -> None:
    from tables import render

    if given.out is None and given.form == "terminal":
        text = "\n\n".join(map(render.on_screen, grids))
    else:
        text = "\n".join(map(render.FORMATS[given.form], grids))
    if given.out is None:
        print(text, end="")
        return
    try:
        given.out.write_text(text)
    except OSError as error:
        raise UserError(f"out={given.out} cannot be written: {error.strerror}") from error
    print(f"written: {given.out}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main(table, __doc__))
