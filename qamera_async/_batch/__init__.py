"""Many requests at once, with limits on credits, ambiguous submissions and outages."""

from .batch import Batch, BatchResult
from .runner import BatchAccess, Outcome

__all__ = ["Batch", "BatchAccess", "BatchResult", "Outcome"]
