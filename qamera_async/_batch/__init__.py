"""Many requests at once, with limits on credits, ambiguous submissions and outages."""

from .batch import Batch
from .results import BatchResult, Outcome

__all__ = ["Batch", "BatchResult", "Outcome"]
