"""Fuzz the list of videos: all ways to read it must agree, whatever the bytes."""

import sys

import atheris

with atheris.instrument_imports(include=["qamera_async", "msgspec", "json"]):
    import qamera_async as q
    from qamera_async._protocol import VIDEOS, RecordList, Response, parse_list

RULES = q.StatusRules()


def read(data: bytes) -> None:
    """Read one body. Only ``InvalidResponseError`` may come out, and all ways to read the list must agree."""
    try:
        records = parse_list(Response(200, {}, data), VIDEOS, RULES)
    except q.InvalidResponseError:
        return
    videos = list(records)
    again = RecordList.from_items(
        filter(None, records.encode_items(records.ids).values()), VIDEOS, RULES, complete=records.complete
    )
    if [records.get(record_id) for record_id in records.ids] != videos or list(again) != videos:
        raise AssertionError(f"{records} {videos}")


if __name__ == "__main__":
    atheris.Setup(sys.argv, read)
    atheris.Fuzz()
