"""The parts of scripts/attention.py: what is drawn, how, and the statistics."""
