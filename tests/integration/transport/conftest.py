"""Fixtures of the transport tests."""

import pytest
from faults import FaultServer
from transport_fakes import LIMITS, RETRY, FakeSlot

from qamera_async._transport import ApiClient, ConnectionSettings, Secret


@pytest.fixture
def slot():
    return FakeSlot()


@pytest.fixture
async def api(no_lost_exceptions):
    """Return a function that makes API clients for a server or URL, and close the clients after the test."""
    clients = []

    def make(server, timeouts=LIMITS, **options):
        url, key = (
            (server.url, server.key) if isinstance(server, FaultServer) else (server, "mk_live_a.bcdefgh")
        )
        given = {"api_key": Secret(key), "base_url": url, "proxy": Secret(None)} | options
        client = ApiClient(ConnectionSettings(**given), timeouts, RETRY)
        clients.append(client)
        return client

    yield make
    for client in clients:
        await client.aclose()
