"""map_aiohttp_exceptions: one row for each kind of exception, and no secret in the result."""

import ssl
from unittest import mock

import aiohttp
import pytest
from aiohttp.http_exceptions import BadStatusLine
from yarl import URL

from qamera_async._transport import map_aiohttp_exceptions
from qamera_async.errors import (
    ApiError,
    ConnectionFailedError,
    InvalidResponseError,
    QameraError,
    RequestTimeoutError,
    ServerError,
    TransportError,
)

KEY = mock.Mock(host="h", port=443, ssl=True)
REQUEST = aiohttp.RequestInfo(URL("https://h"), "GET", {"X-Api-Key": "S3CRET"}, URL("https://h"))
CERTIFICATE = ssl.SSLCertVerificationError("S3CRET: self-signed")
ROWS = [
    (aiohttp.ClientConnectorCertificateError(KEY, CERTIFICATE), ConnectionFailedError, True),
    (aiohttp.ClientConnectorSSLError(KEY, ssl.SSLError("wrong version")), ConnectionFailedError, True),
    (aiohttp.ClientConnectorError(KEY, OSError(111, "refused")), ConnectionFailedError, False),
    (aiohttp.ClientConnectorDNSError(KEY, OSError(-2, "unknown")), ConnectionFailedError, False),
    (aiohttp.ClientProxyConnectionError(KEY, OSError(111, "refused")), ConnectionFailedError, False),
    (aiohttp.ClientHttpProxyError(REQUEST, (), status=502), ConnectionFailedError, False),
    (aiohttp.ConnectionTimeoutError("connect"), ConnectionFailedError, False),
    (aiohttp.InvalidURL("http://me:S3CRET@["), ConnectionFailedError, True),
    (aiohttp.ServerDisconnectedError(), TransportError, False),
    (aiohttp.ClientOSError(104, "reset"), TransportError, False),
    (aiohttp.ClientPayloadError("S3CRET"), TransportError, False),
    (RuntimeError("S3CRET"), TransportError, False),
    (TimeoutError(), RequestTimeoutError, False),
    (aiohttp.SocketTimeoutError("read"), RequestTimeoutError, False),
]


def mapped(error, *, sent=True):
    return map_aiohttp_exceptions(error, "https://h", lambda text: text.replace("S3CRET", "***"), sent=sent)


@pytest.mark.parametrize(("error", "kind", "permanent"), ROWS, ids=[type(row[0]).__name__ for row in ROWS])
@pytest.mark.parametrize("sent", [True, False])
def test_transport_errors(error, kind, permanent, sent):
    result = mapped(error, sent=sent)

    assert type(result) is kind
    assert result.permanent is permanent
    assert result.sent is (sent and kind is not ConnectionFailedError)
    assert "S3CRET" not in f"{result} {result!r} {vars(result)}"
    assert "https://h" in str(result)


def test_407_is_an_error_of_the_proxy():
    result = mapped(aiohttp.ClientHttpProxyError(REQUEST, (), status=407))

    assert type(result) is ApiError
    assert (result.status, result.foreign) == (407, True)


def test_malformed_response_names_the_kind_and_quotes_nothing():
    """The quote of aiohttp may hold a part of the key, which no search would find."""
    error = aiohttp.ClientResponseError(REQUEST, (), status=400, message="Bad status line 'mk_live_a.S3C'")
    error.__cause__ = BadStatusLine("mk_live_a.S3C")
    result = mapped(error)

    assert type(result) is InvalidResponseError
    assert (result.status, result.excerpt) == (None, "")
    assert "BadStatusLine" in str(result)
    assert "S3C" not in str(result)


@pytest.mark.parametrize("error", [ServerError("x", status=500), TransportError("x", sent=False)])
def test_errors_of_this_package_pass(error):
    assert mapped(error) is error


@pytest.mark.parametrize("kind", [QameraError, aiohttp.ServerDisconnectedError])
def test_result_leads_to_no_frame(kind):
    def fail():
        secret = "S3CRET"  # noqa: F841, S105 - a local variable that a traceback would show
        raise kind("x")

    try:
        fail()
    except Exception as error:
        result = mapped(error)

    assert (result.__traceback__, result.__cause__, result.__context__) == (None, None, None)
