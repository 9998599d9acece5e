"""The measurements of scripts/benchmark.py, one file a subject."""
