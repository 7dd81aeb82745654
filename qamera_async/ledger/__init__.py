"""A durable record of what was meant, sent, received and seen: what makes a paid request once-only."""

from .copying import copy_ledger
from .file import LedgerEntry, LedgerFile
from .pruning import Pruned
from .rows import LedgerState

__all__ = ["LedgerEntry", "LedgerFile", "LedgerState", "Pruned", "copy_ledger"]
