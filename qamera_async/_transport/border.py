"""Where the HTTP client's exceptions become ours, with no request, header or key in them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import aiohttp

from ..errors import (
    ApiError,
    ConnectionFailedError,
    InvalidResponseError,
    QameraError,
    RequestTimeoutError,
    TransportError,
)

if TYPE_CHECKING:
    from collections.abc import Callable


def translated(  # noqa: PLR0911 - a table, one row for each thing that can happen
    error: Exception, where: str, conceal: Callable[[str], str], *, sent: bool
) -> QameraError:
    """Give our error for a foreign one, the most specific first.

    Args:
        error: what the HTTP client raised.
        where: the origin, for the message.
        conceal: takes secrets out of a text.
        sent: whether a byte of the body may have left; True for a GET.
    """
    name = type(error).__name__
    match error:
        case QameraError():
            return error
        case aiohttp.ClientConnectorCertificateError() | aiohttp.ClientConnectorSSLError():
            return ConnectionFailedError(
                f"No trusted TLS connection to {where} ({conceal(str(error))}).", permanent=True
            )
        case aiohttp.ClientHttpProxyError(status=407):
            return ApiError("The proxy asks for authentication.", status=407, foreign=True)
        case aiohttp.ClientHttpProxyError():
            return ConnectionFailedError(
                f"No connection to {where}: the proxy answered with status {error.status}."
            )
        case aiohttp.ClientConnectorError() | aiohttp.ConnectionTimeoutError():
            return ConnectionFailedError(f"No connection to {where} ({name}).")
        case aiohttp.InvalidURL():
            return ConnectionFailedError(f"No connection to {where} ({name}).", permanent=True)
        case TimeoutError():
            return RequestTimeoutError(f"No answer from {where} within the time allowed.", sent=sent)
        case aiohttp.ClientResponseError():
            return InvalidResponseError(
                f"What {where} answered is no valid HTTP.",
                expected="an HTTP response",
                excerpt=conceal(error.message)[:200],
            )
        case _:
            return TransportError(f"The connection to {where} was lost ({name}).", sent=sent)
