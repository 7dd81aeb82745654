"""How a session connects to the API: its key, base URL, headers, proxy and certificates, checked once."""

from __future__ import annotations

import asyncio
import html
import logging
import os
import re
import ssl
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from typing import Generic, NoReturn, TypeVar, cast
from urllib.parse import quote

import aiohttp
from yarl import URL

from .._protocol import IDEMPOTENCY_HEADER, KEY_HEADER
from .._version import __version__
from ..errors import ConfigurationError, ConnectionFailedError

_T = TypeVar("_T")
_log = logging.getLogger("qamera_async")

DEFAULT_BASE_URL = "https://app.qamera.ai"
USER_AGENT = f"qamera-async/{__version__} aiohttp/{aiohttp.__version__}"

_KEY_FORM = r"mk_live_[^.]+\..+"
_MIN_SECRET_LENGTH = 6  # characters; hiding a shorter text would hide half of a message
_LOOPBACK = r"(?ia)localhost|127(\.\d{1,3}){3}|::1|.*\.localhost"
# A text of this form can't be a key or contain a password, so a message may show it.
_HARMLESS_ADDRESS = r"(?ia)https?://[a-z\d.-]+(:\d+)?/?|[a-z\d.-]+:\d{1,5}/?"
_HEADER_NAME = r"(?a)[\w!#$%&'*+.^`|~-]+"  # RFC 9110, 5.6.2
# Headers that belong to the library, to the framing of a message or to one connection. "Expect" would send
# the headers of a POST before its body, and so before it is known that the submission may leave.
_RESERVED_HEADERS = frozenset(
    {
        KEY_HEADER.lower(),
        IDEMPOTENCY_HEADER.lower(),
        *(
            "accept",
            "accept-encoding",
            "authorization",
            "connection",
            "expect",
            "host",
            "keep-alive",
            "range",
        ),
        *("te", "trailer", "transfer-encoding", "upgrade"),
    }
)
_RESERVED_PREFIXES = ("content-", "if-", "proxy-")
_PROXY_PROBLEM = "proxy must be http://[USER:PASSWORD@]HOST[:PORT] or None."


class Secret(Generic[_T]):
    """A value that no repr, pickle or traceback with local variables shows.

    Args:
        value: The value; None where there is none.

    """

    __slots__ = ("value",)

    def __init__(self, value: _T) -> None:
        self.value = value

    def __repr__(self) -> str:
        return "Secret(***)"

    def __str__(self) -> str:
        return "***"

    def __reduce__(self) -> NoReturn:
        raise TypeError("A Secret can't be pickled or copied.")


class ConnectionSettings:
    """How a session connects to the API.

    Args:
        api_key: The API key; None inside the `Secret` means the environment variable ``QAMERA_API_KEY``.
        base_url: The URL of the API; None means ``QAMERA_BASE_URL``, then ``https://app.qamera.ai``.
        allow_http: Whether plain ``http://`` is allowed for hosts other than this computer.
        headers: Further headers of each request to the API; None means no further headers.
        proxy: The URL of the proxy for all requests; None inside the `Secret` means none, but see
            ``trust_env``.
        trust_env: Whether the environment (``HTTPS_PROXY`` and the like) names the proxy. ``.netrc`` is never
            read.
        ssl_context: Which certificates are trusted; None means those that the system trusts.
        trace_configs: Trace hooks of aiohttp, for requests to the API.

    Raises:
        ConfigurationError: A setting is invalid. No message shows what may be a key or a password.

    """

    __slots__ = (
        "_origin",
        "_redact",
        "api_key",
        "base_url",
        "headers",
        "proxy",
        "ssl_context",
        "trace_configs",
        "trust_env",
    )

    def __init__(
        self,
        *,
        api_key: Secret[str | None],
        base_url: str | None = None,
        allow_http: bool = False,
        headers: Mapping[str, str] | None = None,
        proxy: Secret[str | None] | None = None,
        trust_env: bool = False,
        ssl_context: ssl.SSLContext | None = None,
        trace_configs: Sequence[aiohttp.TraceConfig] = (),
    ) -> None:
        # A traceback with local variables must show neither a password inside a URL nor a token inside a
        # header.
        address, extra = Secret(base_url), Secret(headers)
        base_url = headers = None
        key, key_name = api_key, "api_key"
        if api_key.value is None:
            key, key_name = Secret(os.environ.get("QAMERA_API_KEY")), "QAMERA_API_KEY"
        proxy = Secret(None) if proxy is None else proxy
        problem = (
            _key_problem(key.value, key_name)
            or _headers_problem(extra.value)
            or (None if proxy.value is None or _is_proxy_url(proxy.value) else _PROXY_PROBLEM)
            or (
                None
                if _is_bool(trust_env)
                else f"trust_env must be True or False, got {type(trust_env).__name__}."
            )
            or _ssl_problem(ssl_context)
            or _trace_configs_problem(trace_configs)
        )
        if problem is not None:
            raise ConfigurationError(problem)
        url = _resolve_base_url(address, allow_http=allow_http)
        self.api_key = cast("Secret[str]", key)
        self.base_url = str(url).rstrip("/")
        self._origin = str(url.origin())
        self.headers = dict(extra.value or {})
        self.proxy = proxy
        self.trust_env = trust_env
        self.ssl_context = ssl_context
        self.trace_configs = tuple(trace_configs)
        self._redact = make_redactor(self.api_key.value)

    def __repr__(self) -> str:
        return f"<ConnectionSettings {getattr(self, 'base_url', '(invalid)')}>"

    @property
    def origin(self) -> str:
        """Scheme, host and port of the API, such as ``https://app.qamera.ai``."""
        return self._origin

    def redact(self, text: str) -> str:
        """Return a text with ``***`` in place of the API key and of its secret part."""
        return self._redact(text)

    async def proxy_for(self, url: URL) -> str | None:
        """Return the URL of the proxy that a request goes through; None means no proxy.

        The environment is read here because aiohttp's ``trust_env`` also sends passwords from a .netrc file.

        Args:
            url: The URL of the request.

        Raises:
            ConnectionFailedError: The environment names an invalid proxy.

        """
        if self.proxy.value is not None or not self.trust_env:
            return self.proxy.value
        # In a thread: some systems resolve host names to find out whether a host is exempt.
        proxy = Secret(await asyncio.to_thread(_environment_proxy, url.scheme, url.host or ""))
        if proxy.value is not None and not _is_proxy_url(proxy.value):
            raise ConnectionFailedError(
                f"The environment names an invalid proxy for {url.scheme}:// URLs.", permanent=True
            )
        return proxy.value


def api_origin(base_url: str | None = None, *, allow_http: bool = False) -> str:
    """Return the origin of the API that a session would use, such as ``https://app.qamera.ai``.

    Args:
        base_url: As for `ConnectionSettings`.
        allow_http: As for `ConnectionSettings`.

    Raises:
        ConfigurationError: The URL is invalid.

    """
    address = Secret(base_url)
    base_url = None
    return str(_resolve_base_url(address, allow_http=allow_http).origin())


def make_redactor(api_key: str) -> Callable[[str], str]:
    """Return a function that replaces the key in a text, in whatever way its characters are escaped there.

    Args:
        api_key: The whole key. Its secret part, the text after the first dot, is replaced too where it stands
            alone.

    """
    secret = api_key.partition(".")[2]
    hidden = [api_key, secret] if len(secret) >= _MIN_SECRET_LENGTH else [api_key]
    pattern = re.compile("|".join("".join(map(_escaped, text)) for text in hidden), re.IGNORECASE)

    def redact(text: str) -> str:
        return pattern.sub("***", text)

    return redact


def _escaped(char: str) -> str:
    """Return a pattern for one character: as it is, or escaped for a URL, for JSON or for HTML."""
    forms = {char, quote(char, safe=""), f"\\{char}", f"\\u{ord(char):04x}", html.escape(char)}
    return f"(?:{'|'.join(map(re.escape, sorted(forms, key=len, reverse=True)))})"


# The following functions return a problem instead of raising it, so that no frame of a traceback holds the
# value.


def _key_problem(key: object, name: str) -> str | None:
    if key is None or key == "":
        return "No API key: pass api_key= or set QAMERA_API_KEY."
    if callable(key):
        return "api_key must be a string, not a function: build a new session per key."
    if not isinstance(key, str) or not _is_printable_ascii(key):
        return f"{name} must be a string of printable ASCII characters without spaces."
    if not re.fullmatch(_KEY_FORM, key):
        _log.warning("The API key does not have the form mk_live_<keyId>.<secret>.")
    return None


def _resolve_base_url(address: Secret[str | None], *, allow_http: bool) -> URL:
    name = "base_url"
    if address.value is None or address.value == "":
        name, address = "QAMERA_BASE_URL", Secret(os.environ.get("QAMERA_BASE_URL") or DEFAULT_BASE_URL)
    if not _is_bool(allow_http):
        raise ConfigurationError(f"allow_http must be True or False, got {type(allow_http).__name__}.")
    problem = _base_url_problem(address.value, name, allow_http=allow_http)
    if problem is not None:
        raise ConfigurationError(problem)
    return URL(cast("str", address.value))


def _base_url_problem(text: object, name: str, *, allow_http: bool) -> str | None:
    # yarl removes control characters silently, which would change the host.
    if not isinstance(text, str) or not _is_printable_ascii(text):
        return f"{name} must be a URL of printable ASCII characters without spaces."
    got = f", got {text!r}" if re.fullmatch(_HARMLESS_ADDRESS, text) else ""
    if not re.match(r"(?i)https?://", text):
        return f"{name} must start with https://{got}."
    try:
        url = URL(text)
        host, port = url.host, url.port
    except ValueError:
        host = port = None
    else:
        if url.user is not None or url.password is not None or url.query_string or url.fragment:
            return f"{name} must have no user, password, query or fragment."
        if url.scheme == "http" and host and not allow_http and not re.fullmatch(_LOOPBACK, host):
            return (
                f"{name} must start with https://{got}. Plain http:// is allowed for this computer, and with "
                "allow_http=True for a host in your own network."
            )
    return None if host and port else f"{name} must be https://HOST[:PORT][/PATH]{got}."


def _headers_problem(headers: object) -> str | None:
    if headers is None:
        return None
    if not isinstance(headers, Mapping):
        return f"headers must be a mapping of names to values, got {type(headers).__name__}."
    for name, value in cast("Mapping[object, object]", headers).items():
        if not isinstance(name, str) or not re.fullmatch(_HEADER_NAME, name):
            return "headers must have names of letters, digits and hyphens."
        if name.lower() in _RESERVED_HEADERS or name.lower().startswith(_RESERVED_PREFIXES):
            return f"headers must not set {name}: the library sets this header itself, or never sends it."
        if not isinstance(value, str) or not all(" " <= char <= "~" for char in value):
            return f"headers[{name!r}] must be a string of printable ASCII characters."
    return None


def _is_proxy_url(text: object) -> bool:
    try:
        return isinstance(text, str) and URL(text).scheme in {"http", "https"} and bool(URL(text).host)
    except ValueError:
        return False


def _environment_proxy(scheme: str, host: str) -> str | None:
    if urllib.request.proxy_bypass(host):
        return None
    proxy = urllib.request.getproxies().get(scheme)
    # Proxies of other kinds, such as SOCKS, are not supported.
    return proxy if proxy and re.match(r"(?i)https?://", proxy) else None


def _ssl_problem(context: object) -> str | None:
    if context is None or isinstance(context, ssl.SSLContext):
        return None
    return f"ssl_context must be an ssl.SSLContext or None, got {type(context).__name__}."


def _trace_configs_problem(values: object) -> str | None:
    if isinstance(values, Sequence) and all(
        [isinstance(v, aiohttp.TraceConfig) for v in cast("Sequence[object]", values)]
    ):
        return None
    return "trace_configs must be a sequence of aiohttp.TraceConfig."


def _is_bool(value: object) -> bool:
    return isinstance(value, bool)


def _is_printable_ascii(text: str) -> bool:
    return all("!" <= char <= "~" for char in text)
