"""Event loops that count their points, so that a test can act at exactly the n-th point."""

import asyncio
from collections import deque

try:
    import uvloop
except ImportError:
    uvloop = None


class _Ready(deque):
    """The ready callbacks of a loop; a point of the loop precedes each of them."""

    def __init__(self, on_point):
        super().__init__()
        self._on_point = on_point

    def popleft(self):
        self._on_point()
        return super().popleft()


class _Planned:
    """Counts the points of a loop, and runs the actions that are planned for them."""

    def __init__(self):
        super().__init__()
        self._planned = {}
        self.points = 0

    def run_at(self, point, action):
        """Run an action so many points from now; 0 runs it immediately."""
        if point:
            self._planned[self.points + point] = action
        else:
            action()

    def discard_planned(self):
        """Discard the planned actions that have not run."""
        self._planned.clear()

    def _next(self):
        self.points += 1
        return self._planned.pop(self.points, None)


class CountingLoop(_Planned, asyncio.SelectorEventLoop):
    """An asyncio loop whose points are the beginning of each iteration and the time before each callback.

    The loop blocks while no callback is ready. Waiting for a server or a thread is therefore one point.
    """

    def __init__(self):
        super().__init__()
        self._ready = _Ready(self._on_point)

    def _on_point(self):
        if action := self._next():
            action()

    def _run_once(self):
        self._on_point()
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
