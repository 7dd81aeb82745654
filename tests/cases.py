"""The cases of trouble."""

CASES = (*range(1, 91), *range(95, 98), 99, *range(101, 105))
"""Their numbers, those of the table in docs/promises.md."""
