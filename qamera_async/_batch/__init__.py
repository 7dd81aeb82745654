"""Many requests at once, with limits on credits, ambiguous submissions and outages."""

from .batch import Batch, BatchAccess
from .results import BatchResult, Outcome

__all__ = ["Batch", "BatchAccess", "BatchResult", "Outcome"]
