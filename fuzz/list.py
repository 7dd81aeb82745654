"""Fuzz the list of videos: ids and statuses, the videos asked for, and all videos, read from any bytes."""

import sys

import atheris

with atheris.instrument_imports(include=["qamera_async", "msgspec"]):
    import qamera_async as q
    from qamera_async import _protocol as protocol
    from qamera_async._protocol import Answer

RULES = q.StatusRules()


def read(data: bytes) -> None:
    """Read one body in each way; nothing but ``InvalidResponseError`` may come out, and all must agree."""
    answer = Answer(200, {}, data)
    try:
        listing = protocol.read_listing(answer)
    except q.InvalidResponseError:
        return
    some = protocol.read_some(answer, listing.statuses, listing, RULES)
    videos = {video.id: video for video in protocol.read_videos(answer, RULES)}
    if some != videos or some.keys() != listing.statuses.keys():
        raise AssertionError(f"{listing} {some} {videos}")


if __name__ == "__main__":
    atheris.Setup(sys.argv, read)
    atheris.Fuzz()
