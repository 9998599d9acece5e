"""Trains one network, or a sweep of them: `python train.py task=imagenet backbone=res50 anar=3 flows=3`.

README.md and `--help` say what can be set. Exit codes: 0 done, 1 a fault while running, 2 a mistake in what was asked,
75 told to stop by SIGTERM or SIGUSR1 with everything saved (start the same command again), 130 Ctrl-C.
"""

import sys

import tdaf.cli.ending  # noqa: F401  first: from here on Ctrl-C is a line
from tdaf.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
