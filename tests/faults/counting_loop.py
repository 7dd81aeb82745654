"""An event loop that counts its moments, so that something can be done at exactly the n-th of them."""

import asyncio
from collections import deque

try:
    import uvloop
except ImportError:
    uvloop = None


class _Ready(deque):
    """The callbacks that are ready; each that is taken is a moment of the loop."""

    def __init__(self, moment):
        super().__init__()
        self._moment = moment

    def popleft(self):
        self._moment()
        return super().popleft()


class _Planned:
    """Counts the moments of a loop, and runs what is planned for one of them."""

    def __init__(self):
        super().__init__()
        self._planned = {}
        self.moments = 0

    def at(self, moment, action):
        """Do something at that many moments from now; 0 means at once."""
        if moment:
            self._planned[self.moments + moment] = action
        else:
            action()

    def forget(self):
        """Do nothing of what is planned; give whether there was something left."""
        left = bool(self._planned)
        self._planned.clear()
        return left

    def _next(self):
        self.moments += 1
        return self._planned.pop(self.moments, None)


class CountingLoop(_Planned, asyncio.SelectorEventLoop):
    """Counts two kinds of moments: the beginnings of its turns, and those between two callbacks.

    It blocks where nothing is ready, so that to wait for a server or a thread is one moment, not thousands.
    """

    def __init__(self):
        super().__init__()
        self._ready = _Ready(self._moment)

    def _moment(self):
        if action := self._next():
            action()

    def _run_once(self):
        self._moment()
        super()._run_once()


if uvloop is None:
    CountingUvloop = None
else:

    class CountingUvloop(_Planned, uvloop.Loop):
        """A uvloop that counts the callbacks scheduled with call_soon.

        The loop runs a planned action immediately before the callback that it is planned for. Callbacks that
        uvloop schedules internally, such as those of its transports, are not counted.
        """

        def call_soon(self, callback, *args, context=None):
            if action := self._next():
                super().call_soon(action)
            return super().call_soon(callback, *args, context=context)
