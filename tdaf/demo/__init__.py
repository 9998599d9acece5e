"""Demo data, drawn on the spot in the official on-disk formats: every task can be tried with nothing at hand."""
