"""Keeps a program of a test from waiting: with this folder on its path, Python imports this first."""

import functools

from qamera_async import PollPolicy

_USUAL = PollPolicy.__init__
_PAUSE, _STALE = 0.05, 0.2


@functools.wraps(_USUAL)
def _quick(self, interval=3.0, *rest, **more):
    if interval == 3.0 and not rest and not more:
        interval, more = _PAUSE, {"stale_after": _STALE, "max_interval": _STALE}
    _USUAL(self, interval, *rest, **more)


PollPolicy.__init__ = _quick
