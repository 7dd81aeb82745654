"""Scripted trouble: what goes wrong, by name, and which requests meet it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import attrs

if TYPE_CHECKING:
    from collections.abc import Mapping

_REQUIRED: Final = object()

# The details of each trouble and what they are when left out.
ON_REQUESTS: Final[dict[str, dict[str, Any]]] = {
    "reset_before": {},
    "reset_after": {},
    "close_after": {},
    "error": {"status": 500, "body": None, "html": False, "taken": False},
    "too_many": {"retry_after": None},
    "hang": {"taken": True},
    "stall": {},
    "truncate": {},
    "garbage": {},
    "empty": {},
    "redirect": {"status": 307, "location": None},
    "slow": {"seconds": _REQUIRED},
}
ON_ORDERS: Final[dict[str, dict[str, Any]]] = {
    "fail_job": {"status": "FAILED"},
    "late": {"seconds": _REQUIRED},
    "vanish": {"after": 0.0},
    "multiple": {"count": 2},
    "no_url": {"seconds": _REQUIRED},
}
ON_THE_SERVER: Final[dict[str, dict[str, Any]]] = {"refuse_connections": {"seconds": _REQUIRED}}
_ALL: Final = ON_REQUESTS | ON_ORDERS | ON_THE_SERVER


@attrs.frozen
class Trouble:
    """One trouble that waits for its request; its details are complete."""

    name: str
    on: str
    details: Mapping[str, Any]

    @classmethod
    def of(cls, name: str, on: str, details: Mapping[str, Any]) -> Trouble:
        """Give a trouble by its name.

        Raises:
            ValueError: no such name, method or detail, or a detail is missing.
        """
        if name not in _ALL:
            raise ValueError(f"trouble {name!r}: the names are {', '.join(_ALL)}")
        if on not in {"POST", "GET", "ANY"}:
            raise ValueError(f"on={on!r}: must be 'POST', 'GET' or 'ANY'")
        known = _ALL[name]
        if unknown := details.keys() - known.keys():
            raise ValueError(
                f"trouble {name!r} has no {', '.join(sorted(unknown))}; "
                f"its details are {', '.join(known) or 'none'}"
            )
        complete = known | dict(details)
        if missing := [key for key, value in complete.items() if value is _REQUIRED]:
            raise ValueError(f"trouble {name!r} needs {', '.join(missing)}")
        return cls(name, on, complete)


class Script:
    """The troubles to come: for each request the first that suits it."""

    def __init__(self) -> None:
        self._waiting: list[Trouble] = []

    def add(self, trouble: Trouble, times: int) -> None:
        """Let the next ``times`` matching requests meet a trouble.

        Raises:
            ValueError: ``times`` is less than one.
        """
        if times < 1:
            raise ValueError(f"times={times!r}: must be at least 1")
        self._waiting += [trouble] * times

    def next(self, method: str) -> Trouble | None:
        """Look at the trouble that a request would meet; it goes on waiting until ``took``."""
        for trouble in self._waiting:
            if trouble.name in ON_REQUESTS and trouble.on in {method, "ANY"}:
                return trouble
        return None

    def took(self, trouble: Trouble) -> None:
        """Strike out a trouble that a request met."""
        self._waiting.remove(trouble)

    def for_order(self) -> dict[str, Mapping[str, Any]]:
        """Take what goes wrong with the next order's job: the first trouble of each name."""
        found: dict[str, Mapping[str, Any]] = {}
        for trouble in list(self._waiting):
            if trouble.name in ON_ORDERS and trouble.name not in found:
                found[trouble.name] = trouble.details
                self._waiting.remove(trouble)
        return found
