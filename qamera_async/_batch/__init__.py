"""Many requests at once, with limits on credits, ambiguous submissions and outages."""

from .batch import Batch
from .results import BatchResult, Outcome
from .runner import BatchAccess

__all__ = ["Batch", "BatchAccess", "BatchResult", "Outcome"]
