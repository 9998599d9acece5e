"""A trained network as one file, which runs without this project and without PyTorch:

    python scripts/export.py checkpoint=RUN_FOLDER out=model.onnx [dynamic=true] [tolerance=0.001] [trust=MODULE]
                             [key=value ...]
    python scripts/export.py checkpoint=RUN_FOLDER out=model.pt2

Takes bytes (uint8 RGB) and gives answers: normalisation, all flows and gates, folded batch norms, and softmax, boxes
after non-maximum suppression, or key points are inside. The file is run on validation samples, or on a drawn picture
where the data are not there, against the checkpoint; the largest difference is printed. .onnx needs pip install -e
'.[onnx]'; predict and evaluate take such a file in the place of a checkpoint. dynamic: whether height and width may be
any; by default where the task says so. Exit codes: 0; 1 where the difference is beyond the tolerance, in shares of an
output's largest value, or the network cannot be exported; 2 a mistake in the arguments.
"""

from __future__ import annotations

import sys
from pathlib import Path

import tdaf.cli.ending  # noqa: F401  first: from here on Ctrl-C is a line
from tdaf.cli.evaluation import open_run
from tdaf.cli.script import Share, main


def export(
    *,
    checkpoint: Path,
    out: Path,
    dynamic: bool | None = None,
    tolerance: Share = 1e-3,
    trust: list[str] | None = None,
    rest: list[str],
) -> None:
    run = open_run(checkpoint, rest, trust or ())
    from tdaf.engine import export as engine

    found = engine.export(run, out, dynamic, tolerance)
    text = (
        ", ".join(f"{name} {value:.1e}" for name, value in found.items()) or "not known, as nothing is in the samples"
    )
    print(f"{out}: {out.stat().st_size / 2**20:.1f} MiB; largest difference from the checkpoint: {text}")


if __name__ == "__main__":
    sys.exit(main(export, __doc__))
