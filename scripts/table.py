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
Exit codes as train.py's.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import tdaf.cli.ending  # noqa: F401  first: from here on Ctrl-C is a line
from tdaf.cli.evaluation import writing
from tdaf.cli.script import Natural, main
from tdaf.errors import UserError

SUFFIXES = {".md": "markdown", ".csv": "csv", ".tex": "latex"}


def table(
    *words: str,
    format_: Literal["terminal", "markdown", "csv", "latex"] | None = None,
    out: Path | None = None,
    seeds: list[Natural] | None = None,
    runs: Path = Path("runs"),
    run: bool = False,
    protocol: str | None = None,
    rest: Sequence[str] = (),
) -> int:
    from results import paper, tabular
    from results.ablation import folder_tables
    from results.runs import by_key, find, run_missing

    if not words:
        raise UserError("give a table (1, 2, 3a, ... or all) or a folder of runs; --help says more")
    if out:
        with writing(out):  # a file that cannot be written shows before the work
            out.parent.mkdir(parents=True, exist_ok=True)
            open(out, "a").close()
    seeds, code, width = sorted({*(seeds or [])}), 0, None
    words = tuple(str(Path(word).expanduser()) if word.startswith("~") else word for word in words)
    names = [name for word in words for name in ([word] if Path(word).is_dir() else word.split(","))]
    if Path(names[0]).is_dir() and names[0] not in paper.names():
        if rest or seeds or run or len(names) > 1:
            raise UserError(f"{names[0]}: a folder's table shows what is there; it takes protocol, format and out")
        tables = folder_tables(Path(names[0]), [f"protocol={protocol}"] if protocol else [])
    else:
        for text in rest:
            if text.startswith(("seed=", "run_dir=", "resume=")):
                raise UserError(f"{text}: a table has many runs; seeds=0,1,2 are their seeds, runs=FOLDER has them all")
        if protocol:
            raise UserError(f"protocol={protocol}: a table of the paper has its own; protocol is for a folder")
        hydra = [text for text in rest if text.startswith(("hydra.", "hydra/"))]
        more = [text for text in rest if text not in hydra]
        keys = dict.fromkeys(paper.names() if "all" in names else names)
        chosen = [paper.adapted(paper.read(name), more) for name in keys]
        # a mistake is told before torch, which takes seconds, is imported
        folders = [runs, *(Path(config["run_dir"]) for one in chosen for config in paper.configs(one, seeds))]
        if run:
            trained = [one for one in chosen if one.samples]
            if not trained:
                raise UserError(f"table {', '.join(names)}: there is nothing to train in it")
            code = run_missing([need for one in trained for need in paper.requests(one, seeds)], [runs], hydra)
        finished = by_key(find(folders))
        tables = [paper.text_table(one, seeds, finished) for one in chosen]
    if out is None:
        width = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
    form = format_ or (SUFFIXES.get(out.suffix, "terminal") if out else "terminal")
    text = tabular.written(tables, form, width)
    if out is None:
        print(text, end="")
    else:
        out.write_text(text)
        print(f"written: {out}", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main(table, __doc__))
