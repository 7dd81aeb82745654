"""Fuzz the answers to a registration: a receipt, or an error by its status, headers and body."""

import sys

import atheris

with atheris.instrument_imports(include=["qamera_async", "msgspec", "cattrs", "email"]):
    import qamera_async as q
    from qamera_async import _protocol as protocol
    from qamera_async._protocol import Answer

protocol.read_receipt(Answer(200, {}, b'{"createdRecordIds":["a"]}'))  # what it imports late is no finding


def read(data: bytes) -> None:
    """Read one answer: a byte for the status, a line for the headers, then the body.

    Nothing but a ``QameraError`` may come out, and a receipt has its ids.
    """
    line, _, body = data[1:].partition(b"\n")
    value = line.decode("utf-8", "surrogateescape")
    headers = dict.fromkeys(("date", "retry-after", "x-correlation-id"), value)
    try:
        receipt = protocol.read_receipt(Answer(200, headers, body))
    except q.InvalidResponseError:
        pass
    else:
        if not receipt.record_ids or not all(map(str.strip, receipt.record_ids)):
            raise AssertionError(receipt)
    answer = Answer(400 + data[0] if data else 0, headers, body)
    error = protocol.error_of(answer)
    if not isinstance(error, q.QameraError) or not str(error):
        raise AssertionError(error)
    protocol.is_refusal(answer)
    if answer.date is not None and answer.date.utcoffset():
        raise AssertionError(answer.date)


if __name__ == "__main__":
    atheris.Setup(sys.argv, read)
    atheris.Fuzz()
