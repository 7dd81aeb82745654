"""Fuzz the responses to a submission: a receipt, or an error by its status, headers and body."""

import sys

import atheris

with atheris.instrument_imports(include=["qamera_async", "json", "email"]):
    import qamera_async as q
    from qamera_async._protocol import Response, is_definite_rejection, parse_error, parse_receipt


def read(data: bytes) -> None:
    """Read one response: a byte for the status, a line for the headers, then the body.

    Only a ``QameraError`` may come out, and a receipt must have its ids.
    """
    line, _, body = data[1:].partition(b"\n")
    value = line.decode("utf-8", "surrogateescape")
    headers = dict.fromkeys(("date", "retry-after", "x-correlation-id"), value)
    try:
        receipt = parse_receipt(Response(200, headers, body))
    except q.InvalidResponseError:
        pass
    else:
        if not receipt.record_ids or not all(map(str.strip, receipt.record_ids)):
            raise AssertionError(receipt)
    response = Response(400 + data[0] if data else 0, headers, body)
    error = parse_error(response)
    if not isinstance(error, q.QameraError) or not str(error):
        raise AssertionError(error)
    is_definite_rejection(response)
    if response.date is not None and response.date.utcoffset():
        raise AssertionError(response.date)


if __name__ == "__main__":
    atheris.Setup(sys.argv, read)
    atheris.Fuzz()
