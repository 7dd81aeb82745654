"""The ``qamera`` command: a thin skin over the public names, and the report of a ledger."""
