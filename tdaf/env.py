"""Facts of the machine and its software, for bug reports and measurements: `python -m tdaf.env` prints them."""

from __future__ import annotations

import os
import platform
import re
import resource
import subprocess
from importlib import metadata
from pathlib import Path

import tdaf

ROOT = Path(tdaf.__file__).resolve().parents[1]


def versions(*packages: str) -> dict[str, str | None]:
    """Versions by package, None for what is not installed."""
    return {name: next((own.version for own in metadata.distributions(name=name)), None) for name in packages}


def commit() -> str | None:
    """The commit of tdaf's own checkout, with "+" behind it where files differ from it; None for an installed copy."""
    top = _output("git", "rev-parse", "--show-toplevel")
    if top is None or Path(top).resolve() != ROOT:
        return None
    return f"{_output('git', 'rev-parse', 'HEAD')}{'+' if _output('git', 'status', '--porcelain', '-uno') else ''}"


def processor() -> str:
    """The processor's name, or at least its architecture."""
    found = re.search(r"model name\s*:\s*(.+)", _output("cat", "/proc/cpuinfo") or "")
    return found[1] if found else platform.machine()


def facts() -> dict[str, str]:
    """What a bug report should say, "-" for what is not there; also of all packages that tdaf can make use of."""
    import torch

    requirements = [line for own in metadata.distributions(name="tdaf") for line in own.requires or ()]
    packages = sorted({re.split(r"[^\w-]", line)[0] for line in ["torch", "torchvision", *requirements]})
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    gpus = _output("nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader") or "-"
    files, processes = (resource.getrlimit(kind)[0] for kind in (resource.RLIMIT_NOFILE, resource.RLIMIT_NPROC))
    return {
        "tdaf": f"{tdaf.__version__}, commit {commit() or '-'}",
        "python": f"{platform.python_version()}, {platform.platform()}",
        "cuda": f"{torch.version.cuda or '-'}, {torch.cuda.device_count()} GPUs that torch sees",
        "GPUs, memory, driver": gpus.replace("\n", "; "),
        "processor": f"{processor()}, {len(os.sched_getaffinity(0))} of {os.cpu_count()} cores, {memory:.0f} GiB",
        "ulimits": f"{files} open files, {processes} processes",
        **{name: found or "-" for name, found in versions(*packages).items()},
    }


def _output(*command: str) -> str | None:
    try:
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True, timeout=60).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


if __name__ == "__main__":
    print("\n".join(f"{name}: {fact}" for name, fact in facts().items()))
