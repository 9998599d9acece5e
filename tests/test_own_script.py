"""A user's own training script, as docs/extending.md shows it: cut anywhere it goes on, and it needs no Hydra."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pages
from commands import process
from tiny_run import ROOT, same, trained, until


def test_own_script_goes_on_where_it_was_killed(tmp_path: Path) -> None:
    code = pages.block("own script")
    own = [line for line in code.splitlines() if line.strip() and not line.startswith(("import", "from"))]
    assert len(own) <= 40
    # a module that cannot be imported stands for one that is not installed
    (tmp_path / "myscript.py").write_text(code)
    for name in ("hydra", "omegaconf", "av"):
        (tmp_path / f"{name}.py").write_text("raise ImportError")
    path = {"PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""}
    whole = process(["myscript.py", "whole"], tmp_path, **path)
    assert whole.returncode == 0 and "accuracy" in whole.stdout.splitlines()[-1], whole.stderr
    log = tmp_path / "cut" / "log.txt"
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **path}
    words = [sys.executable, "myscript.py", "cut"]
    cut = subprocess.Popen(words, cwd=tmp_path, env=environment, start_new_session=True)
    assert until(lambda: log.exists() and "epoch 1 val" in log.read_text(), cut)
    os.killpg(cut.pid, signal.SIGKILL)
    assert cut.wait(60) == -signal.SIGKILL
    again = process(["myscript.py", "cut"], tmp_path, **path)
    assert again.returncode == 0 and "going on from step" in again.stdout, again.stderr
    assert same(trained(tmp_path / "cut"), trained(tmp_path / "whole"))
    assert json.loads((tmp_path / "cut" / "summary.json").read_text())["metric"]["best"] > 80
    assert "is finished: accuracy" in process(["myscript.py", "cut"], tmp_path, **path).stdout


def test_own_script_joins_the_ranks_of_torchrun(tmp_path: Path) -> None:
    (tmp_path / "myscript.py").write_text(pages.block("own script"))
    words = ["-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone", "myscript.py", "both"]
    done = process(words, tmp_path, PYTHONPATH=str(ROOT), CUDA_VISIBLE_DEVICES="")
    assert done.returncode == 0, done.stderr
    assert "(2 ranks x 8 x 1 part)" in done.stdout and done.stdout.count("finished: accuracy") == 1
