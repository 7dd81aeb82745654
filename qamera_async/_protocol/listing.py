"""The list of videos (the API's section "GET /api/external/videos"), read only as far as is needed."""

from __future__ import annotations

import sys
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import attrs
import msgspec

from .._models import JobState, Video
from .answer import UNREADABLE, Answer, decoded, identifier_of, reader, text_of, unreadable

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from .._config import StatusRules


class _Brief(msgspec.Struct, gc=False):
    id: str
    status: str = ""


class _BriefList(msgspec.Struct):
    videos: list[_Brief]
    count: int | None = None


class _RawList(msgspec.Struct):
    videos: list[msgspec.Raw]
    count: Any = None


class _Full(msgspec.Struct, gc=False):
    id: str
    status: str | None = None
    name: str | None = None
    thumbnail: str | None = None
    voting: str | None = None
    video_url: str | None = msgspec.field(name="videoUrl", default=None)
    created_at: datetime | None = msgspec.field(name="createdAt", default=None)
    state: Any = None  # set here, whatever the server may call so


class _FullList(msgspec.Struct):
    videos: list[_Full]
    count: int | None = None


_brief_list = msgspec.json.Decoder(_BriefList)
_raw_list = msgspec.json.Decoder(_RawList)
_full_list = msgspec.json.Decoder(_FullList)
_full = msgspec.json.Decoder(_Full)
_any_object = msgspec.json.Decoder(dict[str, Any])

# What is made of a list takes many times its bytes where its items are short: some 190 bytes of memory for a
# video that is an id and nothing else, and 67 for whatever is read for itself. A video of the API has one
# brace and seven commas, so that lists of 140,000 can be read both ways.
_SHORT_BODY = 4 * 1024 * 1024  # bytes; in so few there can't be too many videos
_MOST_VIDEOS = 250_000
_MOST_COMMAS = 1_000_000
_LONGEST_ITEM = 64 * 1024  # bytes, of one that isn't as documented
_LONGEST_STATUS = 100  # characters
_USUAL_WORD = 20  # characters; a longer status is none that all records share
_LIST = 'a list of videos: {"videos": [{"id": ..., "status": ...}, ...]}'


@attrs.frozen
class Listing:
    """A list of videos, read only as far as ids and statuses.

    ``complete`` is False where the server's ``count`` says that there are more than came; ``broken``
    counts the items that are no video.
    """

    statuses: Mapping[str, str]
    complete: bool
    broken: int


@reader
def read_listing(answer: Answer) -> Listing:
    """Read ids and statuses of a list of videos; what is broken in it hides nothing else.

    Raises:
        InvalidResponseError: it is no list of videos, or one of more than 250,000.
    """
    _check_videos(answer)
    try:
        brief = _brief_list.decode(answer.body)
    except UNREADABLE:
        full, count, broken = _each_for_itself(answer)
        return Listing(
            {item.id: item.status or "" for item in full},
            count is None or count <= len(full) + broken,
            broken,
        )
    videos = brief.videos
    statuses: dict[str, str] = {}
    for item in videos:  # a tenth faster than a comprehension, and nothing else here takes as long
        statuses[item.id] = item.status
    blank = [*filter(str.isspace, statuses), *({""} & statuses.keys())]
    for record_id in blank:
        del statuses[record_id]
    return Listing(statuses, brief.count is None or brief.count <= len(videos), len(blank))


def read_some(answer: Answer, ids: Iterable[str], listing: Listing, rules: StatusRules) -> dict[str, Video]:
    """Give those videos of a list whose ids are asked for; the others are not made into objects."""
    return read_items(answer, named_items(answer, ids, listing), rules)


def read_items(
    answer: Answer, items: Iterable[tuple[str, msgspec.Raw]], rules: StatusRules
) -> dict[str, Video]:
    """Give the videos that some items of a list are, by the ids that go with them."""
    found: dict[str, _Full] = {}
    for record_id, raw in items:
        item = _tolerant(raw)
        if item is not None and item.id == record_id:
            # That of the caller, not a copy for each of thousands.
            item.id = record_id
            found[record_id] = item
    return {video.id: video for video in _videos(found.values(), rules, answer)}


def named_items(answer: Answer, ids: Iterable[str], listing: Listing) -> Iterator[tuple[str, msgspec.Raw]]:
    """Give those items of a list whose ids are asked for, each with its id."""
    wanted = {record_id: record_id for record_id in ids if record_id in listing.statuses}
    if not wanted:
        return
    # A raw item is only skipped over, which is cheaper than a typed one; the order is that of the list.
    items = decoded(_raw_list, answer.body).videos
    if not listing.broken and len(items) == len(listing.statuses):
        for raw, name in zip(items, listing.statuses, strict=True):
            if name in wanted:
                yield wanted[name], raw
        return
    for raw in items:
        item = _tolerant(raw)
        if item is not None and item.id in wanted:
            yield wanted[item.id], raw


@reader
def read_videos(answer: Answer, rules: StatusRules) -> tuple[Video, ...]:
    """Give all videos of a list, in the server's order; a broken item is left out.

    Raises:
        InvalidResponseError: it is no list of videos, or one of more than 250,000.
    """
    _check_videos(answer)
    try:
        items = _full_list.decode(answer.body).videos
    except UNREADABLE:
        items, _, _ = _each_for_itself(answer)
    return _videos([item for item in items if item.id.strip()], rules, answer)


def _check_videos(answer: Answer) -> None:
    if len(answer.body) > _SHORT_BODY:
        _check_number(answer, b"{", _MOST_VIDEOS)


def _check_number(answer: Answer, mark: bytes, most: int) -> None:
    if answer.body.count(mark) > most:
        raise unreadable(answer, f"{_LIST} of at most {_MOST_VIDEOS:,} videos")


def _each_for_itself(answer: Answer) -> tuple[list[_Full], int | None, int]:
    """The slow way: items, count and number of broken items of a list that isn't as documented."""
    _check_number(answer, b",", _MOST_COMMAS)
    try:
        raw = decoded(_raw_list, answer.body)
    except UNREADABLE:
        raise unreadable(answer, _LIST) from None
    items = [item for item in map(_tolerant, raw.videos) if item is not None]
    count = raw.count if type(raw.count) is int else None
    return items, count, len(raw.videos) - len(items)


def _tolerant(raw: msgspec.Raw) -> _Full | None:
    """A video whose fields of a wrong type count as absent; None where not even the id is one."""
    try:
        item = _full.decode(raw)
    except UNREADABLE:
        if memoryview(raw).nbytes > _LONGEST_ITEM:
            return None
        try:
            # What isn't UTF-8 is skipped over elsewhere, so that it is no reason to hide the video here.
            stated = decoded(_any_object, bytes(raw).decode("utf-8", "replace").encode())
        except UNREADABLE:
            return None
        item = _Full(
            text_of(stated.get("id")) or "",
            text_of(stated.get("status")),
            text_of(stated.get("name")),
            text_of(stated.get("thumbnail")),
            text_of(stated.get("voting")),
            text_of(stated.get("videoUrl")),
            _moment(text_of(stated.get("createdAt"))),
        )
    return item if identifier_of(item.id) else None


def _videos(items: Iterable[_Full], rules: StatusRules, answer: Answer) -> tuple[Video, ...]:
    items = tuple(items)
    # Thousands of videos have a few statuses between them: each is looked up once.
    meanings: dict[str | None, tuple[str, JobState]] = {}
    for item in items:
        meaning = meanings.get(item.status)
        if meaning is None:
            meaning = meanings[item.status] = _meaning(item.status or "", rules, answer)
        item.status, item.state = meaning
        item.video_url = item.video_url or None
        if item.created_at is not None and item.created_at.tzinfo is not UTC:
            item.created_at = _in_utc(item.created_at)
    # An attrs class's own way to make a frozen object is half as fast.
    return msgspec.convert(items, tuple[Video, ...], from_attributes=True)


def _meaning(status: str, rules: StatusRules, answer: Answer) -> tuple[str, JobState]:
    """A status as it is shown, and what it means."""
    state = rules.state(status)
    if state is JobState.PENDING and not rules.knows(status):
        # It goes into messages and the log, and may echo anything.
        status = answer.conceal(status)[:_LONGEST_STATUS]
    return sys.intern(status) if len(status) <= _USUAL_WORD else status, state


def _moment(text: str | None) -> datetime | None:
    """An aware UTC datetime of an ISO 8601 text; None where it is none."""
    try:
        return None if text is None else _in_utc(datetime.fromisoformat(text))
    except ValueError:
        return None


def _in_utc(moment: datetime) -> datetime | None:
    """The same moment in UTC, which one without a zone is in; None where UTC has no year for it."""
    try:
        return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
    except OverflowError:
        return None
