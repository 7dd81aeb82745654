"""Options that many commands have."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, TypeAlias

import attrs
from cyclopts import Group, Parameter, validators

from .settling import is_address

Flag: TypeAlias = Annotated[bool, Parameter(show_default=False, negative=())]
"""One that is off unless it is given."""

_OUTPUT = Group("Output", sort_key=10)
_API = Group("API", sort_key=9)
_LONGEST_WINDOW = 1e9  # seconds


def limits_of(quota: str) -> tuple[int, float]:
    """Give the requests and the seconds of a quota such as ``60/60``.

    Raises:
        ValueError: It is none.

    """
    limit, slash, window = quota.partition("/")
    try:
        limits = int(limit), float(window)
    except ValueError:
        limits = 0, 0.0
    if not slash or limits[0] < 1 or not 0 < limits[1] <= _LONGEST_WINDOW:
        raise ValueError(f"{quota!r} is no quota: give REQUESTS/SECONDS, as in 60/60.")
    return limits


def _check_quota(_: type, quota: str) -> None:
    limits_of(quota)


def _check_seconds(_: type, seconds: float) -> None:
    if not seconds > 0:
        raise ValueError("it must be a number of seconds above 0.")


def _check_ledger(_: type, ledger: str) -> None:
    if not is_address(ledger):
        validators.Path(exists=True, dir_okay=False)(Path, Path(ledger))


KnownLedger: TypeAlias = Annotated[str, Parameter(validator=_check_ledger)]
"""A ledger that is there: a file, or the address of a database."""

Quota: TypeAlias = Annotated[str, Parameter(validator=_check_quota)]
"""REQUESTS/SECONDS."""


@Parameter(name="*")
@attrs.frozen(kw_only=True)
class Manners:
    """How a command speaks."""

    json: Annotated[Flag, Parameter(group=_OUTPUT)] = False
    """Write one JSON object a line on stdout, and everything else on stderr."""

    quiet: Annotated[Flag, Parameter(group=_OUTPUT)] = False
    """Write neither progress nor notes, only results and errors."""

    debug: Annotated[Flag, Parameter(group=_OUTPUT)] = False
    """Add tracebacks to errors, and the library's log."""


@Parameter(name="*")
@attrs.frozen(kw_only=True)
class Api:
    """How the API is used; where it is and the key come from the environment."""

    quota: Annotated[Quota, Parameter(group=_API)] = "60/60"
    """REQUESTS/SECONDS that this may use; less than the API's 60/60 leaves room to other programs."""

    interval: Annotated[float, Parameter(group=_API, validator=_check_seconds)] = 3.0
    """How long to pause between looks at the jobs, in seconds; longer where the quota has no room."""

    timeout: Annotated[float, Parameter(group=_API, validator=_check_seconds)] = 1800.0
    """How long to wait for a job, and at most for what became of a registration, in seconds."""

    allow_http: Annotated[Flag, Parameter(group=_API)] = False
    """Allow plain http:// to another machine, as inside one's own cluster."""

    @property
    def limits(self) -> tuple[int, float]:
        """The quota as requests and seconds."""
        return limits_of(self.quota)


@Parameter(name="*")
@attrs.frozen(kw_only=True)
class Delivery:
    """What happens around one order."""

    out: Path | None = None
    """The file that the clip is fetched into."""

    overwrite: Flag = False
    """Replace that file if it is there."""

    no_wait: Flag = False
    """Say the record's id as soon as it is registered."""

    yes: Flag = False
    """Don't ask."""
