"""Scripted trouble: what goes wrong, by name, and which requests meet it."""

from __future__ import annotations

from typing import Any

import attrs

REQUEST_TROUBLES = frozenset(
    {
        "reset_before",
        "reset_after",
        "close_after",
        "error",
        "too_many",
        "hang",
        "stall",
        "truncate",
        "garbage",
        "empty",
        "redirect",
        "slow",
    }
)
ORDER_TROUBLES = frozenset({"fail_job", "late", "vanish", "multiple", "no_url"})
NAMES = sorted(REQUEST_TROUBLES | ORDER_TROUBLES)


@attrs.frozen
class Trouble:
    """One trouble that waits for its request; ``details`` are the keyword arguments it was given."""

    name: str
    on: str
    details: dict[str, Any]


class Script:
    """The troubles to come, first in, first out for each kind of request."""

    def __init__(self) -> None:
        self._waiting: list[Trouble] = []

    def add(self, name: str, times: int, on: str, details: dict[str, Any]) -> None:
        """Let the next ``times`` matching requests meet a trouble.

        Raises:
            ValueError: there is no trouble of that name, or no such kind of request.
        """
        if name not in NAMES:
            raise ValueError(f"trouble {name!r}: allowed are {', '.join(NAMES)}")
        if on not in ("GET", "POST", "ANY"):
            raise ValueError(f"on {on!r}: allowed are GET, POST, ANY")
        self._waiting += [Trouble(name, on, details)] * times

    def next(self, method: str, names: frozenset[str]) -> Trouble | None:
        """Take the first trouble of these names that is meant for such a request."""
        for trouble in self._waiting:
            if trouble.name in names and trouble.on in (method, "ANY"):
                self._waiting.remove(trouble)
                return trouble
        return None
