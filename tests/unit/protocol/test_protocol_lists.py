"""Lists of records."""

import json
from datetime import UTC, datetime

import attrs
import pytest
from responses import response

import qamera_async as q
from qamera_async._protocol import VIDEOS, RecordList, RecordListSpec, Response, parse_list

RULES = q.StatusRules()
ITEM = {
    "id": "vid_1",
    "name": "Showcase",
    "thumbnail": "https://cdn.example.com/a.jpg",
    "videoUrl": "https://cdn.example.com/a.mp4",
    "status": "DONE",
    "voting": "APPROVED",
    "createdAt": "2026-03-20T17:00:00.000Z",
}
VIDEO = q.Video(
    "vid_1",
    "DONE",
    q.JobState.DONE,
    "Showcase",
    "https://cdn.example.com/a.jpg",
    "https://cdn.example.com/a.mp4",
    "APPROVED",
    datetime(2026, 3, 20, 17, tzinfo=UTC),
)


def parse(body, known=None, **headers):
    return parse_list(response(body, **headers), VIDEOS, RULES, known)


def listed(*items, **fields):
    return {"videos": list(items), "count": len(items)} | fields


def cut_name(*items):
    """Return a list with invalid UTF-8 in the name of its first item, which needs the lenient decoder."""
    broken = {"id": "cut", "name": "cut \ud83d"}
    return listed(broken, *items)


def test_documented_list_is_read():
    records = parse(listed(ITEM, {"id": "vid_2", "status": "PENDING"}))

    assert list(records) == [VIDEO, q.Video("vid_2", "PENDING", q.JobState.PENDING)]
    assert list(records.entries) == ["vid_1", "vid_2"]
    assert len(records.entries) == 2
    assert ("vid_1" in records.entries, "vid_3" in records.entries) == (True, False)
    assert (records.complete, records.broken, records.unchanged) == (True, 0, False)


def test_record_is_found_by_its_id():
    records = parse(listed(ITEM))

    assert records.get("vid_1") == VIDEO
    assert records.get("vid_2") is None
    assert (records.status("vid_1"), records.status("vid_2")) == ("DONE", None)


def test_every_field_but_the_id_may_be_missing_or_null():
    missing = listed({"id": "a"}, dict.fromkeys(ITEM) | {"id": "b"})

    records = parse(missing)

    assert list(records) == [q.Video("a", "", q.JobState.PENDING), q.Video("b", "", q.JobState.PENDING)]
    assert records.status("a") == ""


def test_null_status_does_not_need_the_lenient_decoder(monkeypatch):
    monkeypatch.setattr("qamera_async._protocol._decode_object", None)

    assert parse(listed(ITEM | {"status": None})).get("vid_1").status == ""


def test_empty_url_is_none():
    assert parse(listed(ITEM | {"videoUrl": ""})).get("vid_1").video_url is None


def test_status_rules_give_the_state():
    records = parse_list(
        response(listed({"id": "a", "status": "ready"})),
        VIDEOS,
        q.StatusRules(done=["READY"]),
    )
    assert records.get("a").state is q.JobState.DONE


def test_last_record_of_a_repeated_id_is_used():
    records = parse(listed({"id": "a"}, {"id": "b"}, {"id": "a", "status": "DONE"}))

    assert [(record.id, record.status) for record in records] == [("a", "DONE"), ("b", "")]
    assert (records.complete, records.broken) == (True, 0)


@pytest.mark.parametrize("broken", [3, None, "vid_2", [], {}, {"id": 5}, {"id": None}, {"status": "DONE"}])
@pytest.mark.parametrize("blank", ["", " ", "\n\t"])
def test_broken_item_hides_no_other(broken, blank):
    records = parse(listed(broken, ITEM, broken, {"id": blank}, ITEM | {"id": "vid_3"}))

    assert list(records.entries) == ["vid_1", "vid_3"]
    assert records.get("vid_1") == VIDEO
    assert (records.complete, records.broken) == (True, 3)


def test_only_blank_ids_are_broken():
    assert (parse(listed(ITEM, {"id": " "}, {"id": " "})).broken) == 2


@pytest.mark.parametrize("field", ["name", "thumbnail", "videoUrl", "voting", "createdAt", "status"])
@pytest.mark.parametrize("value", [5, True, {"new": 1}, ["x"]])
def test_field_of_another_type_counts_as_absent(field, value):
    wrong, missing = ITEM | {"id": "a", field: value}, {k: v for k, v in ITEM.items() if k != field}

    records = parse(listed(ITEM, wrong))

    assert records.broken == 0
    assert records.get("vid_1") == VIDEO
    assert records.get("a") == parse(listed(missing | {"id": "a"})).get("a")


@pytest.mark.parametrize(
    ("created_at", "moment"),
    [
        ("2026-03-20T17:00:00.000Z", datetime(2026, 3, 20, 17, tzinfo=UTC)),
        ("2026-03-20T18:00:00+01:00", datetime(2026, 3, 20, 17, tzinfo=UTC)),
        ("2026-03-20T17:00:00", datetime(2026, 3, 20, 17, tzinfo=UTC)),
        ("yesterday", None),
        ("", None),
        ("0001-01-01T00:00:00+01:00", None),
        ("9999-12-31T23:59:59-01:00", None),
    ],
)
def test_timestamp_is_aware_and_in_utc_or_none(created_at, moment):
    assert parse(listed(ITEM | {"createdAt": created_at})).get("vid_1").created_at == moment


@pytest.mark.parametrize("lenient", [False, True])
@pytest.mark.parametrize(
    ("count", "complete"),
    [(1, True), (2, True), (0, True), (3, False), (10**30, False), (None, True), ("x", True)],
)
def test_count_above_the_number_of_items_means_incomplete(count, complete, lenient):
    items = [{"id": "a"}, {"id": 5} if lenient else {"id": "b"}]

    assert parse({"videos": items, "count": count}).complete is complete


def test_list_without_a_count_is_complete():
    assert parse({"videos": [ITEM]}).complete is True


def test_unknown_fields_are_ignored():
    body = listed(ITEM | {"shape": {"width": [9]}, "state": "x", "id2": None}, page={"next": [1]}, broken=7)

    records = parse(body)

    assert list(records) == [VIDEO]
    assert records.broken == 0


@pytest.mark.parametrize(
    ("name", "read"),
    [
        (b'"cut \\ud83d"', "cut \ufffd"),
        (b'"\\ude00 cut"', "\ufffd cut"),
        (b'"\\ud83d\\ude00 \\ud83d"', "😀 \ufffd"),
        (b'"\xff"', "\ufffd"),
        (b'"a\nb"', "a\nb"),
        (b"9" * 10_000, None),
        (b"1e999999", None),
    ],
)
def test_unusual_value_hides_no_other_field_or_item(name, read):
    body = b'{"videos":[{"id":"odd","name":%s,"status":"DONE"},%s]}' % (name, json.dumps(ITEM).encode())

    records = parse(body)

    assert records.get("odd") == q.Video("odd", "DONE", q.JobState.DONE, name=read)
    assert records.get("vid_1") == VIDEO


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"null",
        b"[]",
        b"3",
        b"{}",
        b"<html></html>",
        b'\xef\xbb\xbf{"videos":[]}',
        '{"videos":[]}'.encode("utf-16"),
        b'{"vid\xffos":[]}',
        b'{"videos":{}}',
        b'{"videos":null}',
        b'{"videos":[',
        b'{"videos":[]}]',
        b'{"videos":NaN}',
        b'{"videos":[{"id":"a","name":NaN}]}',
        b'{"videos":[{"id":"a"}],"count":NaN}',
        b'{"videos":[{"id":"a"}],"count":' + b"9" * 10_000 + b"}",
        b"[" * 100_000,
        b'{"videos":' + b"[" * 100_000,
        b'{"videos":[{"id":"a","x":' + b"[" * 100_000 + b"]" * 100_000 + b"}]}",
    ],
    ids=lambda body: repr(body[:40]),
)
def test_body_that_is_not_a_list_is_an_error(body):
    with pytest.raises(q.InvalidResponseError) as unreadable:
        parse(body)

    assert unreadable.value.status == 200
    assert "videos" in unreadable.value.expected
    assert len(unreadable.value.excerpt) <= 203


@pytest.mark.parametrize(
    ("status", "error_type"),
    [
        (304, q.InvalidResponseError),
        (401, q.AuthenticationError),
        (500, q.ServerError),
        (302, q.InvalidResponseError),
    ],
)
def test_other_status_raises_its_error(status, error_type):
    with pytest.raises(error_type):
        parse_list(response({"error": "no"}, status), VIDEOS, RULES)


# --- unchanged lists -------------------------------------------------------------------------------

FIRST, LATER = "Tue, 24 Nov 2026 10:00:00 GMT", "Tue, 24 Nov 2026 10:00:30 GMT"


@pytest.fixture
def undecodable(monkeypatch):
    """Return a function that makes all further decoding fail."""
    return lambda: monkeypatch.setattr("qamera_async._protocol._decode_entries", None)


def test_not_modified_gives_the_known_list_with_the_new_headers(undecodable):
    known = parse(listed(ITEM), etag='"a"', date=FIRST)
    undecodable()

    records = parse_list(Response(304, {"date": LATER}, b""), VIDEOS, RULES, known)

    assert (list(records), records.unchanged, known.unchanged) == ([VIDEO], True, False)
    assert (records.date.second, known.date.second) == (30, 0)
    assert records.etag == '"a"'


def test_identical_body_gives_the_known_list_with_the_new_headers(undecodable):
    known = parse(listed(ITEM), etag='"a"', date=FIRST)
    undecodable()

    records = parse(listed(ITEM), known, date=LATER, etag='"b"')

    assert (list(records), records.unchanged) == ([VIDEO], True)
    assert (records.date.second, records.etag) == (30, '"b"')


def test_unchanged_list_can_be_compared_again(undecodable):
    known = parse(listed(ITEM), etag='"a"')
    undecodable()

    for _ in range(3):
        known = parse_list(Response(304, {}, b""), VIDEOS, RULES, known)
        known = parse(listed(ITEM), known, etag='"a"')

    assert list(known) == [VIDEO]


def test_changed_body_is_decoded():
    known = parse(listed(ITEM))

    records = parse(listed(ITEM | {"status": "FAILED"}), known)

    assert (records.unchanged, records.status("vid_1"), known.status("vid_1")) == (False, "FAILED", "DONE")


@pytest.mark.parametrize("status", [401, 500])
def test_error_with_the_body_of_the_known_list_is_an_error(status):
    known = parse(listed(ITEM))

    with pytest.raises(q.ApiError):
        parse_list(response(listed(ITEM), status), VIDEOS, RULES, known)


# --- items for other processes ---------------------------------------------------------------------


@pytest.mark.parametrize("body", [listed(ITEM, {"id": "b"}), cut_name(ITEM, {"id": "b"})])
def test_items_become_the_same_records_again(body):
    records = parse(body)

    items = records.encode_items(["vid_1", "b", "gone"])
    again = RecordList.from_items(filter(None, items.values()), VIDEOS, RULES, complete=False)

    assert items["gone"] is None
    assert list(again) == [VIDEO, records.get("b")]
    assert (again.complete, again.broken, again.date, again.etag) == (False, 0, None, None)


def test_item_that_cannot_be_read_is_broken():
    items = ['{"id":"a"}', "3", "{", '{"id":5}', '{"id":"\ud800"}', '{"id":"b","new":[1]}']

    records = RecordList.from_items(items, VIDEOS, RULES, complete=True)

    assert list(records.entries) == ["a", "b"]
    assert (records.complete, records.broken) == (True, 4)


def test_list_from_items_is_never_unchanged():
    known = RecordList.from_items([], VIDEOS, RULES, complete=True)

    with pytest.raises(q.InvalidResponseError):
        parse(b"", known)
    with pytest.raises(q.InvalidResponseError):
        parse_list(Response(304, {}, b""), VIDEOS, RULES, known)


# --- other record types ----------------------------------------------------------------------------


@attrs.frozen
class Preset:
    """A record type without a status, like the presets of the API."""

    id: str
    name: str | None = None
    quantity_guidelines: str | None = None
    created_at: datetime | None = None


@pytest.mark.parametrize("name", ["Summer", "cut \ud83d"])
def test_fields_are_read_by_the_names_of_the_record_type(name):
    spec = RecordListSpec("/api/external/presets", "presets", Preset)
    item = {
        "id": "a",
        "name": name,
        "quantityGuidelines": "few",
        "createdAt": ITEM["createdAt"],
        "status": "x",
    }

    records = parse_list(response({"presets": [item], "videos": 3, "count": 2}), spec, RULES)

    assert list(records) == [Preset("a", name.replace("\ud83d", "\ufffd"), "few", VIDEO.created_at)]
    assert records.complete is False
