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
# Those of the CDN that decide the whole answer, and those that can be combined.
INSTEAD: Final[dict[str, dict[str, Any]]] = {
    "expired": {},
    "html": {"content_type": "text/html; charset=utf-8"},
    "error": {"status": 500, "retry_after": None},
    "redirect": {"location": _REQUIRED, "status": 302},
}
ON_FILES: Final[dict[str, dict[str, Any]]] = {
    "cut": {"after": _REQUIRED},
    "stall": {"after": _REQUIRED},
    "slow": {"rate": _REQUIRED},
    "no_etag": {},
    "weak_etag": {},
    "other_etag": {},
    "ignore_range": {},
    "wrong_range": {"shift": 1, "total": None},
    "no_length": {},
    "chunked": {},
}
_ON_THE_API: Final = ON_REQUESTS | ON_ORDERS | ON_THE_SERVER
_ON_THE_CDN: Final = INSTEAD | ON_FILES


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
        if on not in {"POST", "GET", "ANY", "CDN"}:
            raise ValueError(f"on={on!r}: must be 'POST', 'GET' or 'ANY'")
        known_names = _ON_THE_CDN if on == "CDN" else _ON_THE_API
        if name not in known_names:
            raise ValueError(f"trouble {name!r}: the names are {', '.join(known_names)}")
        known = known_names[name]
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

    def for_file(self) -> dict[str, Mapping[str, Any]]:
        """Take what a request to the CDN meets: the first trouble of each name, or one that comes instead."""
        found: dict[str, Trouble] = {}
        for trouble in self._waiting:
            if trouble.on == "CDN":
                found.setdefault(trouble.name, trouble)
        instead = next((trouble for name, trouble in found.items() if name in INSTEAD), None)
        met = list(found.values()) if instead is None else [instead]
        for trouble in met:
            self._waiting.remove(trouble)
        return {trouble.name: trouble.details for trouble in met}

    def for_order(self) -> dict[str, Mapping[str, Any]]:
        """Take what goes wrong with the next order's job: the first trouble of each name."""
        found: dict[str, Mapping[str, Any]] = {}
        for trouble in list(self._waiting):
            if trouble.on != "CDN" and trouble.name in ON_ORDERS and trouble.name not in found:
                found[trouble.name] = trouble.details
                self._waiting.remove(trouble)
        return found
