"""On what, with what and when a measurement was made."""

from __future__ import annotations

import datetime
import os
import platform
import re
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from benchmarks.settings import Settings
from tdaf.engine.summary import commit, versions
from tdaf.engine.precision import Precision


def describe(settings: Settings, arguments: list[str]) -> dict[str, Any]:
    gpu = torch.cuda.get_device_name(settings.device) if settings.gpu else None
    return {
        "date": datetime.date.today().isoformat(),
        "command": " ".join(["python scripts/benchmark.py", *(a for a in arguments if not a.startswith("out="))]),
        "commit": commit(),
        "machine": processor(),
        "cores": len(os.sched_getaffinity(0)),
        "threads": torch.get_num_threads(),
        "gpu": gpu,
        "precision": Precision("auto", settings.device).kind,
        "backbone": settings.backbone,
        "anar": settings.anar,
        "flows": settings.flows,
        "batch": settings.batch,
        "size": settings.size,
        "versions": {**versions(), "pillow": _version("pillow"), "timm": _version("timm")},
    }


def load() -> float:
    """Processes that wanted a core, the mean of the last minute."""
    return os.getloadavg()[0]


def processor() -> str:
    try:
        names = re.findall(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:
        names = []
    return names[0] if names else platform.machine()


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
