"""An event loop that counts its moments, so that something can be done at exactly the n-th of them."""

import asyncio
from collections import deque


class _Ready(deque):
    """The callbacks that are ready; each that is taken is a moment of the loop."""

    def __init__(self, moment):
        super().__init__()
        self._moment = moment

    def popleft(self):
        self._moment()
        return super().popleft()


class CountingLoop(asyncio.SelectorEventLoop):
    """Counts two kinds of moments: the beginnings of its turns, and those between two callbacks.

    It blocks where nothing is ready, so that to wait for a server or a thread is one moment, not thousands.
    """

    def __init__(self):
        super().__init__()
        self._ready = _Ready(self._moment)
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

    def _moment(self):
        self.moments += 1
        if action := self._planned.pop(self.moments, None):
            action()

    def _run_once(self):
        self._moment()
        super()._run_once()
