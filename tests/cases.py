"""The cases of trouble."""

CASES = range(1, 89)
"""Their numbers, those of the table in docs/promises.md."""
