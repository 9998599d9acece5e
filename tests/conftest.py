"""One thread a process: the tests run side by side (pytest-xdist) and many of them start processes of their own."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
