"""What scripts/study.py is made of: the plan, its trials, their evidence, and the page that says what came out."""
