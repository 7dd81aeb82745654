"""The way to the API: its address and key, checked where they are given, and the key kept out of sight."""

from __future__ import annotations

import logging
import re
from typing import TYPE_CHECKING
from urllib.parse import quote

import attrs
from yarl import URL

from ..errors import ConfigurationError

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable, Sequence

    import aiohttp

_log = logging.getLogger("qamera_async")
_LOOPBACK = re.compile(r"localhost|127(\.\d{1,3}){3}|::1|.*\.localhost", re.IGNORECASE | re.ASCII)
_USUAL_KEY = re.compile(r"mk_live_[^.]+\..+")
_SHORTEST_SECRET = 6  # characters


@attrs.frozen
class Wire:
    """What the way to the API is made of."""

    base_url: str
    api_key: str = attrs.field(repr=False)
    proxy: str | None = attrs.field(default=None, repr=False)
    trust_env: bool = False
    ssl_context: ssl.SSLContext | None = None
    trace_configs: Sequence[aiohttp.TraceConfig] = ()


def concealing(api_key: str) -> Callable[[str], str]:
    """Give a function that takes the key out of a text, however it is quoted there."""
    # The part after the dot is the secret; a very short one would hide half of every message.
    secret = api_key.partition(".")[2]
    variants = {api_key, quote(api_key), api_key.replace("/", "\\/")}
    if len(secret) >= _SHORTEST_SECRET:
        variants.add(secret)
    secrets = re.compile("|".join(re.escape(v) for v in sorted(variants, key=len, reverse=True)))

    def conceal(text: str) -> str:
        return secrets.sub("***", text)

    return conceal


def checked_key(key: str | None) -> str:
    """Give a key that can go into a header.

    Raises:
        ConfigurationError: it can't.
    """
    if not key:
        raise ConfigurationError("api_key: got none; pass one, or set QAMERA_API_KEY")
    # What came is not shown: it may be all but right, and a key belongs into no message.
    if not isinstance(key, str) or not all("!" <= char <= "~" for char in key):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise ConfigurationError("api_key: allowed are printable ASCII characters without blanks")
    if not _USUAL_KEY.fullmatch(key):
        _log.warning("the API key doesn't look like mk_live_<keyId>.<secret>")
    return key


def checked_url(text: str, allow_http: bool) -> str:  # noqa: FBT001 - a setting handed on
    """Give a base URL without a slash at its end.

    Raises:
        ConfigurationError: it is none, or plain http:// to another machine.
    """
    allowed = "allowed is https://HOST[:PORT][/PATH]"
    try:
        url = URL(text)
        host, port = url.host, url.port
    except (ValueError, TypeError):
        raise ConfigurationError(f"base_url: {allowed}") from None
    if not host or url.scheme not in ("http", "https") or port is None:
        raise ConfigurationError(f"base_url: got {str(url.with_user(None)) if host else text!r}, {allowed}")
    if url.user is not None or url.password is not None or url.query_string or url.fragment:
        raise ConfigurationError(f"base_url: got a user, password, query or fragment in it, {allowed}")
    if url.scheme == "http" and not allow_http and not _LOOPBACK.fullmatch(host):
        raise ConfigurationError(
            f"base_url: got plain http:// for {host}, allowed is https://, http:// to this machine only, or "
            "allow_http=True for a host inside one's own cluster"
        )
    return str(url).rstrip("/")
