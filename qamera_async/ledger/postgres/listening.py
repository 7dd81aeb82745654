"""Hearing from other processes on the connection that is there, while nothing else is to be done on it."""

from __future__ import annotations

import contextlib
import selectors
import socket
import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from .session import Session

CHANNEL = "qamera_polls"


class Listening:
    """Who wants to hear, and the wait until there is something to hear or to do."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._wanting: dict[object, tuple[str, Callable[[], None]]] = {}
        self._ends: tuple[socket.socket, socket.socket] | None = None

    def __bool__(self) -> bool:
        """Whether anybody wants to hear."""
        return bool(self._wanting)

    def add(self, who: object, account: str, tell: Callable[[], None]) -> None:
        """From now on tell of an account's news, from the connection's thread."""
        with self._lock:
            self._wanting[who] = account, tell

    def remove(self, who: object) -> None:
        """Tell no more."""
        with self._lock:
            self._wanting.pop(who, None)

    def begin(self, session: Session) -> None:
        """Listen on a new connection; what was said before is for everybody to look up."""
        session.listen(CHANNEL)
        self._tell(None)

    def wait(self, session: Session, idle: Callable[[], bool]) -> None:
        """Wait while there is nothing else to do.

        Raises:
            psycopg.Error: the connection was lost.
        """
        ends = self._ends
        if ends is None:
            ends = self._ends = socket.socketpair()
            for end in ends:
                end.setblocking(False)  # noqa: FBT003 - it has no name
        with selectors.DefaultSelector() as selector:
            selector.register(ends[0], selectors.EVENT_READ)
            selector.register(session.fileno, selectors.EVENT_READ)
            # Asked again after the ends are there: who comes from now on, rouses.
            while self._wanting and idle():
                ready = {key.fileobj for key, _ in selector.select()}
                if ends[0] in ready:
                    ends[0].recv(4096)
                if session.fileno in ready:
                    session.take_in()
                self.tell_heard(session)

    def tell_heard(self, session: Session) -> None:
        """Tell of what the connection has heard meanwhile."""
        for account in session.heard():
            self._tell(account)

    def rouse(self) -> None:
        """End a wait, from any thread."""
        ends = self._ends  # which its thread may close at this moment
        if ends is not None:
            with contextlib.suppress(OSError):  # it is full, so it will be roused, or closed
                ends[1].send(b"\0")

    def close(self) -> None:
        """Let go."""
        ends, self._ends = self._ends, None
        for end in ends or ():
            end.close()

    def _tell(self, account: str | None) -> None:
        with self._lock:
            tells = [tell for whose, tell in self._wanting.values() if account in (None, whose)]
        for tell in tells:
            tell()
