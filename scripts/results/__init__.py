"""What finished runs say: the parts of scripts/table.py, curves.py and study.py."""
