"""The parts of scripts/curves.py: the numbers of runs, and the picture of them."""
