"""The parts of scripts/table.py: what the tables say, what is counted, what was measured, how it is printed."""
