"""Where a session may be used: in one loop of one process, until it is closed."""

from __future__ import annotations

import asyncio
import os
from typing import TYPE_CHECKING

from ..errors import SessionClosedError

if TYPE_CHECKING:
    from collections.abc import Callable


class Binding:
    """A session's state, its process, and the first loop that it is used on.

    Args:
        on_first_use: called once, when it is bound to a loop.
    """

    def __init__(self, on_first_use: Callable[[], None]) -> None:
        self.state = "open"
        self.loop: asyncio.AbstractEventLoop | None = None
        self._pid = os.getpid()
        self._on_first_use = on_first_use

    def check_open(self) -> None:
        """Refuse a fork, and use after closing.

        Raises:
            SessionClosedError: it can't be used here or any more.
        """
        if self.state != "open":
            raise SessionClosedError("The session is closed.")
        if self._pid != os.getpid():
            raise SessionClosedError("The session was made before a fork. Make one in each process.")

    def check(self) -> None:
        """Bind to the running loop; refuse another one, a fork, and use after closing.

        Raises:
            SessionClosedError: it can't be used here or any more.
        """
        self.check_open()
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            if self.loop is None:
                raise SessionClosedError("The session is used without a running event loop.") from None
            raise SessionClosedError("The session is used outside of its event loop.") from None
        if self.loop is not loop:
            if self.loop is not None:
                raise SessionClosedError(
                    "The session belongs to another event loop. Make one session for each loop."
                )
            self.loop = loop
            self._on_first_use()
