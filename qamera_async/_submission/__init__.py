"""Paid POSTs: each is sent at most once, and its outcome is never lost."""

from .claim import Claim
from .reconcile import Reconciler
from .submit import Submitter

__all__ = ["Claim", "Reconciler", "Submitter"]
