"""Stands in for `encode` in the processes of scripts/prepare_kinetics.py; imports nothing that takes time."""

import os
from typing import Any


def fragile(job: Any) -> None:
    """Dies as a decoder that crashes does, on one of the files."""
    if job.source.name == "deadly.mp4":
        os._exit(11)
