"""A loop that goes by a clock of the test's: its timers ring when the test says that it is time."""

import asyncio


class FakeLoop(asyncio.SelectorEventLoop):
    """A loop in which no time passes by itself; ``now`` in seconds."""

    def __init__(self):
        super().__init__()
        self.now = 1024.0
        self._clock_resolution = 2.0**-20  # what is due now is due

    def time(self):
        return self.now
