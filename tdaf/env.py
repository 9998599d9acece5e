"""The facts of the machine and its software that a bug report or a measurement needs: `python -m tdaf.env` prints them."""

from __future__ import annotations

import os
import platform
import re
import resource
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import tdaf

ROOT = Path(tdaf.__file__).resolve().parents[1]
PACKAGES = ("torch", "torchvision", "hydra-core", "omegaconf", "numpy", "pillow", "av", "pycocotools")
OPTIONAL = ("faster-coco-eval", "hydra-submitit-launcher", "timm", "matplotlib", "scipy")
LIMITS = {"files": resource.RLIMIT_NOFILE, "processes": resource.RLIMIT_NPROC, "address space": resource.RLIMIT_AS}


def versions(*packages: str) -> dict[str, str | None]:
    """Installed versions by package, None for what is not installed."""
    return {name: _version(name) for name in packages}


def commit() -> str | None:
    """The commit of this source tree, with "+" behind it where files differ from it; None where tdaf is an installed
    copy, even one that lies inside another project's checkout."""
    top = _output("git", "rev-parse", "--show-toplevel")
    if top is None or Path(top).resolve() != ROOT:
        return None
    return f"{_output('git', 'rev-parse', 'HEAD')}{'+' if _output('git', 'status', '--porcelain', '-uno') else ''}"


def processor() -> str:
    """The processor's name, or at least its architecture."""
    text = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    names = re.findall(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    return names[0] if names else platform.machine()


def report() -> str:
    """The facts, a line each."""
    import torch

    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    limits = {name: resource.getrlimit(kind)[0] for name, kind in LIMITS.items()}
    gpus = _output("nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader") or "-"
    facts = {
        "tdaf": f"{tdaf.__version__}, commit {commit() or '-'}",
        "python": f"{platform.python_version()}, {platform.platform()}",
        **{name: found or "-" for name, found in versions(*PACKAGES, *OPTIONAL).items()},
        "cuda": f"{torch.version.cuda or '-'}, {torch.cuda.device_count()} GPUs usable",
        "gpus and driver": gpus.replace("\n", "; "),
        "processor": f"{processor()}, {len(os.sched_getaffinity(0))} of {os.cpu_count()} cores, {memory:.0f} GiB memory",
        "limits": ", ".join(f"{name} {'-' if limit < 0 else limit}" for name, limit in limits.items()),
    }
    return "\n".join(f"{name}: {fact}" for name, fact in facts.items())


def _output(*command: str) -> str | None:
    try:
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True, timeout=60).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


def _version(package: str) -> str | None:
    try:
        return tdaf.__version__ if package == "tdaf" else version(package)
    except PackageNotFoundError:
        return None


if __name__ == "__main__":
    print(report())
