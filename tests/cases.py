"""The numbers of the fault cases."""

CASES = (*range(1, 91), *range(95, 98), 99, *range(101, 105))
"""The numbers in the table of docs/promises.md."""
