"""Responses for the tests of the protocol."""

import json

from qamera_async._protocol import Response


def response(body, status=200, redact=str, **headers):
    """Return a response with a body of bytes or of JSON, and headers with "_" for "-" in their names."""
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    return Response(status, {name.replace("_", "-"): value for name, value in headers.items()}, raw, redact)
