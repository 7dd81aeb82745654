"""One poll of a list for all jobs that wait for records of it."""

from .poller import Poller, TrackedRecord, in_steps

__all__ = ["Poller", "TrackedRecord", "in_steps"]
