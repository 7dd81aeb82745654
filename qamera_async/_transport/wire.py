"""The way to the API: its address and key, checked where they are given, and the key kept out of sight."""

from __future__ import annotations

import asyncio
import logging
import re
import ssl
import urllib.request
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlsplit

import aiohttp
import attrs
from yarl import URL

from .._version import __version__
from ..errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

USER_AGENT = f"qamera-async/{__version__} aiohttp/{aiohttp.__version__}"

_log = logging.getLogger("qamera_async")
_LOOPBACK = r"(?ia)localhost|127(\.\d{1,3}){3}|::1|.*\.localhost"
_USUAL_KEY = r"mk_live_[^.]+\..+"
_SHORTEST_SECRET = 6  # characters


class Key:
    """The API key, in a case that doesn't show it: not in a repr, a pickle or a traceback with locals."""

    __slots__ = ("text",)

    def __init__(self, text: str) -> None:
        self.text = text

    def __repr__(self) -> str:
        return "Key(***)"

    def __reduce__(self) -> tuple[type[Key], tuple[str]]:
        raise TypeError("an API key is not for a pickle")


def _checked_proxy(value: str | None) -> str | None:
    if value is None:
        return None
    try:
        good = isinstance(value, str) and URL(value).scheme in ("http", "https") and bool(URL(value).host)  # pyright: ignore[reportUnnecessaryIsInstance]
    except ValueError:
        good = False
    if good:
        return value
    # What came is not shown: it may hold a password.
    value = None
    raise ConfigurationError("proxy: allowed is http://[USER:PASSWORD@]HOST[:PORT], or None")


def _flag(_: object, attribute: attrs.Attribute[bool], value: object) -> None:
    if not isinstance(value, bool):
        raise ConfigurationError(f"{attribute.name}: got {value!r}, allowed is True or False")


def _context(_: object, __: object, value: Any) -> None:  # noqa: ANN401 - checked here
    if value is not None and not isinstance(value, ssl.SSLContext):
        raise ConfigurationError(f"ssl_context: got {type(value).__name__}, allowed is an SSLContext or None")


def _checked_traces(values: Iterable[aiohttp.TraceConfig]) -> tuple[aiohttp.TraceConfig, ...]:
    try:
        traces = tuple(values)
    except TypeError:
        traces = None
    if traces is None or not all(isinstance(trace, aiohttp.TraceConfig) for trace in traces):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise ConfigurationError("trace_configs: allowed is a sequence of aiohttp.TraceConfig")
    return traces


@attrs.frozen(repr=False, eq=False)
class Wire:
    """What the way to the API is made of.

    Raises:
        ConfigurationError: a part that can't be used.
    """

    base_url: str
    api_key: Key
    proxy: str | None = attrs.field(default=None, repr=False, converter=_checked_proxy)
    trust_env: bool = attrs.field(default=False, validator=_flag)
    ssl_context: ssl.SSLContext | None = attrs.field(default=None, validator=_context)
    trace_configs: tuple[aiohttp.TraceConfig, ...] = attrs.field(default=(), converter=_checked_traces)

    def __repr__(self) -> str:
        # Also of one that a bad part kept from being finished, for tracebacks with locals.
        return f"<Wire to {getattr(self, 'base_url', '?')}>"

    async def proxy_for(self, url: URL, seconds: float) -> str | None:
        """Return the URL of the proxy that a request goes through; None means no proxy.

        The environment is read here because aiohttp's ``trust_env`` also sends passwords from a .netrc file.

        Args:
            url: The URL of the request.
            seconds: How long reading the environment may take.

        Raises:
            TimeoutError: Reading the environment took longer.

        """
        if self.proxy is not None or not self.trust_env:
            return self.proxy
        async with asyncio.timeout(seconds):
            # In a thread: some systems resolve host names to find out whether a host is exempt.
            return await asyncio.to_thread(_proxy_of_environment, url.scheme, url.host or "")


def _proxy_of_environment(scheme: str, host: str) -> str | None:
    if urllib.request.proxy_bypass(host):
        return None
    proxy = urllib.request.getproxies().get(scheme)
    return proxy if proxy and urlsplit(proxy).scheme in {"http", "https"} else None


def concealing(api_key: str) -> Callable[[str], str]:
    """Give a function that takes the key out of a text, however it is quoted there."""
    # The part after the dot is the secret; a very short one would hide half of every message.
    secret = api_key.partition(".")[2]
    hidden = {api_key, secret} if len(secret) >= _SHORTEST_SECRET else {api_key}
    variants = {
        variant
        for text in hidden
        for variant in (text, quote(text), quote(text, safe=""), text.replace("/", "\\/"))
    }
    found = "|".join(re.escape(variant) for variant in sorted(variants, key=len, reverse=True))
    secrets = re.compile(found, re.IGNORECASE)

    def conceal(text: str) -> str:
        return secrets.sub("***", text)

    return conceal


def key_problem(key: object) -> str | None:
    """Say why a key can't go into a header; None where it can."""
    if key is None or key == "":
        return "api_key: got none; pass one, or set QAMERA_API_KEY"
    # What came is not shown: it may be all but right, and a key belongs into no message.
    if not isinstance(key, str) or not all("!" <= char <= "~" for char in key):
        return "api_key: allowed are printable ASCII characters without blanks"
    if not re.fullmatch(_USUAL_KEY, key):
        _log.warning("the API key doesn't look like mk_live_<keyId>.<secret>")
    return None


def checked_url(text: str, allow_http: bool) -> str:  # noqa: FBT001 - a setting handed on
    """Give a base URL without a slash at its end.

    Raises:
        ConfigurationError: it is none, or plain http:// to another machine.
    """
    allowed = "allowed is https://HOST[:PORT][/PATH]"
    if not isinstance(allow_http, bool):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise ConfigurationError(f"allow_http: got {allow_http!r}, allowed is True or False")
    # What came is not shown: keys and URLs are easily taken for each other. Blanks and control characters
    # would be left out silently, and make another host of it.
    if not isinstance(text, str) or not all("!" <= char <= "~" for char in text):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise ConfigurationError(f"base_url: {allowed}, in printable ASCII characters without blanks")
    try:
        url = URL(text)
        host, port = url.host, url.port
    except (ValueError, TypeError):
        raise ConfigurationError(f"base_url: {allowed}") from None
    if not host or url.scheme not in ("http", "https") or not port:
        raise ConfigurationError(f"base_url: got something else, {allowed}")
    if url.user is not None or url.password is not None or url.query_string or url.fragment:
        raise ConfigurationError(f"base_url: got a user, password, query or fragment in it, {allowed}")
    if url.scheme == "http" and not allow_http and not re.fullmatch(_LOOPBACK, host):
        raise ConfigurationError(
            f"base_url: got plain http:// for {host}, allowed is https://, http:// to this machine only, or "
            "allow_http=True for a host inside one's own cluster"
        )
    return str(url).rstrip("/")
