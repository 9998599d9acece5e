"""What `pip install` puts where, as a copy and as a link to the checkout; and the facts of a bug report."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from commands import ROOT

from tdaf import env

PARTS = ("tdaf", "tasks", "configs", "pyproject.toml", "setup.cfg", "setup.py", "README.md", "LICENSE")
# Prints where the packages lie. What installs this test's own tdaf must not answer.
LOOK = """
import site, sys
sys.meta_path[:] = [finder for finder in sys.meta_path if "Editable" not in getattr(finder, "__name__", "")]
for name in [name for name in sys.modules if name.startswith("__editable__")]:
    del sys.modules[name]
sys.path.insert(0, sys.argv[1])
site.addsitedir(sys.argv[1])
import tasks, tdaf
from importlib.metadata import distribution
from tdaf.cli.compose import FOLDER, compose
(command,) = distribution("tdaf").entry_points
config = compose(["task=imagenet", "backbone=res18"])
print(tdaf.__file__, tasks.__file__, FOLDER, command.name, callable(command.load()), config["backbone"]["_target_"])
"""


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of what is packed: building leaves files beside it."""
    folder = tmp_path_factory.mktemp("checkout")
    for part in PARTS:
        copy = shutil.copytree if (ROOT / part).is_dir() else shutil.copy
        copy(ROOT / part, folder / part)
    return folder


@pytest.mark.parametrize("editable", [False, True])
def test_an_installed_tdaf_has_its_settings_and_its_command(editable: bool, checkout: Path, tmp_path: Path) -> None:
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    where = ["--ignore-installed", f"--prefix={tmp_path}", *(["-e"] if editable else []), str(checkout)]
    plain = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run([*install, *where], cwd=tmp_path, env=plain, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    (packages,) = tmp_path.rglob("site-packages")
    look = [sys.executable, "-c", LOOK, str(packages)]
    done = subprocess.run(look, cwd=tmp_path, env=plain, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    home = checkout if editable else packages
    configs = home / ("configs" if editable else "tdaf/configs")
    files = [f"{home}/tdaf/__init__.py", f"{home}/tasks/__init__.py", str(configs)]
    assert done.stdout.split()[:5] == [*files, "tdaf", "True"]
    yaml = {path.relative_to(ROOT / "configs") for path in (ROOT / "configs").rglob("*.yaml")}
    assert {path.relative_to(configs) for path in configs.rglob("*.yaml")} == yaml
    names = {path.name for path in packages.iterdir() if not path.name.startswith(("tdaf-", "_"))}
    assert names == (set() if editable else {"tasks", "tdaf"})  # no top-level "configs", no scripts
    assert (tmp_path / "bin" / "tdaf").is_file()


def test_the_facts_of_a_bug_report() -> None:
    done = subprocess.run([sys.executable, "-m", "tdaf.env"], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    facts = dict(line.split(": ", 1) for line in done.stdout.splitlines())
    assert {"tdaf", "python", "torch", "torchvision", "numpy", "pytest", "cuda", "processor", "ulimits"} <= facts.keys()
    assert facts["torch"].split("+")[0] == torch.__version__.split("+")[0]
    assert all(facts.values())  # what is not there has a dash
    assert env.versions("torch", "no-such-package")["no-such-package"] is None
