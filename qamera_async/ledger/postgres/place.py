"""Where a database is, and what of that may be shown."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote

import psycopg
from psycopg.conninfo import conninfo_to_dict

from ...errors import ConfigurationError

if TYPE_CHECKING:
    from ..address import Address

_LONGEST = 300  # characters of a reason
# Who is cut off from the database learns it in half a minute; an address may ask for something else.
_USUAL: Final[dict[str, Any]] = {
    "connect_timeout": 10,
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 4,
    "tcp_user_timeout": 30_000,
    "target_session_attrs": "read-write",
    "fallback_application_name": "qamera-async",
}


class Place:
    """A database that an address leads to.

    Args:
        address: the address.

    Raises:
        ConfigurationError: it is none.
    """

    def __init__(self, address: Address) -> None:
        self._settings = _settings(address.text)
        hosts = str(self._settings.get("host") or self._settings.get("hostaddr") or "").split(",")
        ports = str(self._settings.get("port") or "").split(",")
        ports += ports[:1] * (len(hosts) - len(ports))
        where = ",".join(
            f"{quote(host, safe='[]:')}:{port}" if port else quote(host, safe="[]:")
            for host, port in zip(hosts, ports, strict=False)
        )
        self.shown = f"postgresql://{where}/{self._settings.get('dbname') or ''}"

    def __repr__(self) -> str:
        return f"<Place {self.shown}>"

    def connected(self) -> psycopg.Connection[tuple[Any, ...]]:
        """Give a connection of which each statement is a transaction of its own.

        Raises:
            psycopg.Error: there is none; its message may hold what ``reason`` leaves out.
        """
        return psycopg.connect(
            **(_USUAL | self._settings), client_encoding="UTF8", autocommit=True, prepare_threshold=None
        )

    def reason(self, error: psycopg.Error) -> str:
        """Say why there is no connection, or why a statement failed, without the password."""
        text = " ".join((error.diag.message_primary or str(error)).split())
        text = text.removeprefix("connection failed: ").removeprefix("connection is bad: ")
        password = str(self._settings.get("password") or "")
        if password and any(form in text for form in (password, quote(password), quote(password, safe=""))):
            return "what the database says of it would show the password"
        return f"{text[:_LONGEST]}..." if len(text) > _LONGEST else text.removesuffix(".")


def _settings(text: str) -> dict[str, Any]:
    try:
        settings = dict(conninfo_to_dict(text))
    except psycopg.Error:
        settings = None  # its message is what can't be read, with the password in it
    # Where a password has such a sign as it is, the rest of it is taken for a part that would be shown.
    if settings is not None and not (
        any("@" in str(settings.get(name)) for name in ("host", "port", "dbname"))
        or re.search("[^0-9,]", str(settings.get("port") or ""))
    ):
        return settings
    raise ConfigurationError(
        "ledger: the address of the database can't be read, allowed is "
        "postgresql://USER:PASSWORD@HOST:PORT/DATABASE with each special character of its parts as %XX"
    )
