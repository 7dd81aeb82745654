"""How a session connects to the API: the key, base URL, headers, proxy and certificates, validated once."""

from __future__ import annotations

import asyncio
import html
import logging
import os
import re
import socket
import ssl
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Generic, NoReturn, TypeVar, cast

import aiohttp
from yarl import URL

from .._config import Timeouts
from .._protocol import IDEMPOTENCY_HEADER, KEY_HEADER
from .._version import __version__
from ..errors import ConfigurationError, ConnectionFailedError

_T = TypeVar("_T")
_log = logging.getLogger("qamera_async")

DEFAULT_BASE_URL = "https://app.qamera.ai"
USER_AGENT = f"qamera-async/{__version__} aiohttp/{aiohttp.__version__}"

_KEY_FORM = r"mk_live_[^.]+\..+"
_MIN_SECRET_LENGTH = 6  # characters; redacting a shorter text would make messages unreadable
_LOOPBACK = r"(?ia)localhost|127(\.\d{1,3}){3}|::1|.*\.localhost"
# A text of this form can't be a key or contain a password, so a message may show it.
_HARMLESS_URL = r"(?ia)https?://[a-z\d.-]+(:\d+)?/?|[a-z\d.-]+:\d{1,5}/?"
_HEADER_NAME = r"(?a)[\w!#$%&'*+.^`|~-]+"  # RFC 9110, 5.6.2
# Headers that the library, the framing of a message or one connection sets. "Expect" would send the headers
# of a POST before its body, and so before `before_body` has permitted the POST.
_RESERVED_HEADER = (
    rf"(?i){KEY_HEADER}|{IDEMPOTENCY_HEADER}|accept|accept-encoding|authorization|connection|expect|host|"
    r"keep-alive|range|te|trailer|transfer-encoding|upgrade|(content|if|proxy)-.*"
)


class Secret(Generic[_T]):
    """A value that reprs, pickles and tracebacks with local variables do not show.

    Args:
        value: The value; None if there is none.

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
        # Tracebacks with local variables must not show the password of a URL or the token of a header.
        url, extra = Secret(base_url), Secret(headers)
        base_url = headers = None
        key, key_name = _or_environment(api_key, "api_key", "QAMERA_API_KEY")
        url, url_name = _or_environment(url, "base_url", "QAMERA_BASE_URL", DEFAULT_BASE_URL)
        proxy = proxy or Secret(None)
        problem = (
            _key_problem(key.value, key_name)
            or _type_problem(allow_http, "allow_http", bool)
            or _url_problem(url.value, url_name, allow_http=allow_http)
            or _headers_problem(extra.value)
            or _proxy_problem(proxy.value)
            or _type_problem(trust_env, "trust_env", bool)
            or _type_problem(ssl_context, "ssl_context", ssl.SSLContext, type(None))
            or _traces_problem(trace_configs)
        )
        if problem is not None:
            raise ConfigurationError(problem)
        self.api_key = cast("Secret[str]", key)
        self.base_url = str(URL(cast("str", url.value))).rstrip("/")
        self.origin = str(URL(self.base_url).origin())
        """Scheme, host and port of the API, such as ``https://app.qamera.ai``."""
        self.headers = dict(extra.value or {})
        self.proxy = proxy
        self.trust_env = trust_env
        self.ssl_context = ssl_context
        self.trace_configs = tuple(trace_configs)
        self._secret_pattern = _pattern_of_secrets(self.api_key.value)
        if not re.fullmatch(_KEY_FORM, self.api_key.value):
            _log.warning("The API key does not have the form mk_live_<keyId>.<secret>.")

    def __repr__(self) -> str:
        return f"<ConnectionSettings {getattr(self, 'base_url', '(invalid)')}>"

    def redact(self, text: str) -> str:
        """Replace the API key, and its secret part, by ``***`` in a text."""
        return self._secret_pattern.sub("***", text)

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
        # In a thread, because some systems resolve the host name to check whether the host needs a proxy.
        proxy = Secret(await asyncio.to_thread(_environment_proxy, url.scheme, url.host or ""))
        if _proxy_problem(proxy.value) is not None:
            raise ConnectionFailedError(
                f"The environment names an invalid proxy for {url.scheme}:// URLs.", permanent=True
            )
        return proxy.value

    def new_client(
        self,
        timeouts: Timeouts,
        *,
        force_close: bool = False,
        socket_factory: Callable[[Any], socket.socket] | None = None,
        headers: Mapping[str, str] | None = None,
        **options: Any,  # noqa: ANN401 - the arguments of aiohttp.ClientSession
    ) -> aiohttp.ClientSession:
        """Return an aiohttp client without cookies and without its own limits.

        Args:
            timeouts: ``connect`` limits one connection, in seconds.
            force_close: Whether to close each connection after one request.
            socket_factory: Makes the socket of each connection; None means aiohttp's default.
            headers: Headers of each request, which a proxy receives too; None means the user agent only.
            options: Further arguments of `aiohttp.ClientSession`.

        """
        connector = aiohttp.TCPConnector(
            limit=0, ssl=self.ssl_context or True, force_close=force_close, socket_factory=socket_factory
        )
        return aiohttp.ClientSession(
            connector=connector,
            headers={"User-Agent": USER_AGENT, **(headers or {})},
            cookie_jar=aiohttp.DummyCookieJar(),
            timeout=aiohttp.ClientTimeout(total=None, connect=timeouts.connect),
            **options,
        )


async def close_clients(clients: dict[Any, aiohttp.ClientSession]) -> None:
    """Close all clients and remove them from the dict."""
    while clients:
        await clients.popitem()[1].close()


def api_origin(base_url: str | None = None, *, allow_http: bool = False) -> str:
    """Return the origin of the API that a session would use, such as ``https://app.qamera.ai``.

    Args:
        base_url: As for `ConnectionSettings`.
        allow_http: As for `ConnectionSettings`.

    Raises:
        ConfigurationError: The URL is invalid.

    """
    url = Secret(base_url)
    base_url = None  # tracebacks with local variables must not show a password in it
    url, name = _or_environment(url, "base_url", "QAMERA_BASE_URL", DEFAULT_BASE_URL)
    problem = _type_problem(allow_http, "allow_http", bool) or _url_problem(
        url.value, name, allow_http=allow_http
    )
    if problem is not None:
        raise ConfigurationError(problem)
    return str(URL(cast("str", url.value)).origin())


def _or_environment(
    given: Secret[str | None], name: str, variable: str, default: str | None = None
) -> tuple[Secret[str | None], str]:
    """Return a setting, and the name of the argument or environment variable that it comes from."""
    return (
        (given, name) if given.value is not None else (Secret(os.environ.get(variable) or default), variable)
    )


def _pattern_of_secrets(api_key: str) -> re.Pattern[str]:
    """Return a pattern for the key and, where it is long enough, for its secret part after the first dot."""
    secret = api_key.partition(".")[2]
    hidden = [api_key, secret] if len(secret) >= _MIN_SECRET_LENGTH else [api_key]
    return re.compile("|".join("".join(map(_escaped, text)) for text in hidden), re.IGNORECASE)


def _escaped(char: str) -> str:
    """Return a pattern for one character: as it is, or escaped for a URL, for JSON or for HTML."""
    forms = {char, f"%{ord(char):02x}", f"\\{char}", f"\\u{ord(char):04x}", html.escape(char)}
    return f"(?:{'|'.join(map(re.escape, sorted(forms, key=len, reverse=True)))})"


# The functions below return an error message and don't raise, so that no traceback contains their frames and
# with them the value.


def _type_problem(value: object, name: str, *types: type) -> str | None:
    if isinstance(value, types):
        return None
    allowed = " or ".join("None" if kind is type(None) else kind.__name__ for kind in types)
    return f"{name} must be {allowed}, got {type(value).__name__}."


def _key_problem(key: object, name: str) -> str | None:
    if key is None or key == "":
        return "No API key: pass api_key= or set QAMERA_API_KEY."
    if callable(key):
        return "api_key must be a string, not a function: build a new session per key."
    if not isinstance(key, str) or not _is_printable_ascii(key):
        return f"{name} must be a string of printable ASCII characters without spaces."
    return None


def _url_problem(text: object, name: str, *, allow_http: bool) -> str | None:
    # yarl removes control characters silently, which would change the host.
    if not isinstance(text, str) or not _is_printable_ascii(text):
        return f"{name} must be a URL of printable ASCII characters without spaces."
    got = f", got {text!r}" if re.fullmatch(_HARMLESS_URL, text) else ""
    if not re.match(r"(?i)https?://", text):
        return f"{name} must start with https://{got}."
    url = _parse_url(text)
    if url is None:
        return f"{name} must be https://HOST[:PORT][/PATH]{got}."
    if url.user is not None or url.password is not None or url.query_string or url.fragment:
        return f"{name} must have no user, password, query or fragment."
    if url.scheme == "http" and not allow_http and not re.fullmatch(_LOOPBACK, url.host or ""):
        return (
            f"{name} must start with https://{got}. Plain http:// is allowed for this computer, and with "
            "allow_http=True for a host in your own network."
        )
    return None


def _headers_problem(headers: object) -> str | None:
    if headers is None:
        return None
    if not isinstance(headers, Mapping):
        return f"headers must be a mapping, got {type(headers).__name__}."
    for name, value in cast("Mapping[object, object]", headers).items():
        if not isinstance(name, str) or not re.fullmatch(_HEADER_NAME, name):
            return "headers must have names of letters, digits and hyphens."
        if re.fullmatch(_RESERVED_HEADER, name):
            return f"headers must not set {name}: the library sets this header itself, or never sends it."
        if not isinstance(value, str) or not all(" " <= char <= "~" for char in value):
            return f"headers[{name!r}] must be a string of printable ASCII characters."
    return None


def _proxy_problem(text: object) -> str | None:
    url = _parse_url(text) if isinstance(text, str) else None
    if text is None or (url is not None and url.scheme in {"http", "https"}):
        return None
    return "proxy must be http://[USER:PASSWORD@]HOST[:PORT] or None."


def _parse_url(text: str) -> URL | None:
    """Return a text as a URL; None if it has no host or no valid port."""
    try:
        url = URL(text)
    except ValueError:
        return None
    return url if url.host and url.port else None


def _traces_problem(values: object) -> str | None:
    if isinstance(values, Sequence):
        values = cast("Sequence[object]", values)
        if all([isinstance(value, aiohttp.TraceConfig) for value in values]):
            return None
    return "trace_configs must be a sequence of aiohttp.TraceConfig."


def _environment_proxy(scheme: str, host: str) -> str | None:
    if urllib.request.proxy_bypass(host):
        return None
    proxy = urllib.request.getproxies().get(scheme)
    # Proxies of other kinds, such as SOCKS, are not supported.
    return proxy if proxy and re.match(r"(?i)https?://", proxy) else None


def _is_printable_ascii(text: str) -> bool:
    return all("!" <= char <= "~" for char in text)
