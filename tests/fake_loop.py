"""An event loop with a clock that the test sets."""

import asyncio


class FakeLoop(asyncio.SelectorEventLoop):
    """An event loop whose time the test sets in ``now``, in seconds."""

    def __init__(self):
        super().__init__()
        self.now = 1024.0
        self._clock_resolution = 2.0**-20  # a timer fires exactly at its time

    def time(self):
        return self.now
