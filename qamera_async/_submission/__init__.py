"""Paid POSTs: each is sent at most once, and what became of it is never lost."""

from .reconcile import Reconciler
from .submit import Claim, Submitter

__all__ = ["Claim", "Reconciler", "Submitter"]
