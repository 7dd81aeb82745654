"""One poll of a list for everyone who waits for records of it."""

from .poller import Poller, TrackedRecord

__all__ = ["Poller", "TrackedRecord"]
