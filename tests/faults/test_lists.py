"""Lists that are long, have unknown values, or have broken items."""

import asyncio
import json
import logging
import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest
from faults import FREQUENT_POLLS, GOOD, FaultServer, answers, assert_nothing_left, by_method, http

import qamera_async as q

pytestmark = pytest.mark.usefixtures("no_lost_exceptions")

MANY = 100_000


def item(record_id, **fields):
    return {"id": record_id, "status": "DONE", "videoUrl": "https://cdn.example.com/a.mp4"} | fields


def listing(*items):
    return json.dumps({"videos": items, "count": len(items)}).encode()


def many():
    """Return a list of 35 MB whose items have all documented fields."""
    one = (
        b'{"id":"vid_%06d","name":"Product Showcase - White T-Shirt",'
        b'"thumbnail":"https://cdn.example.com/videos/thumb_%06d.jpg",'
        b'"videoUrl":"https://cdn.example.com/videos/vid_%06d.mp4","status":"DONE","voting":"APPROVED",'
        b'"createdAt":"2026-03-20T17:00:00.000Z","description":"%s"}'
    )
    text = b"a white shirt on a wooden hanger, slowly turning, soft light from the left, no people"
    items = b",".join([one % (n, n, n, text) for n in range(MANY)])
    return b'{"videos":[%s],"count":%d}' % (items, MANY)


@pytest.mark.case(47)
async def test_list_of_100000_videos_is_read(quick):
    """`list_videos` returns all of them, and a job returns the same record as the list."""
    body = many()
    async with FaultServer(answers(http(body))) as server:
        limits = q.Timeouts(request=30.0, job=30.0)
        async with server.session(**quick | {"timeouts": limits}) as session:
            videos = await session.list_videos()
            video = await session.job(f"vid_{MANY // 2:06d}")
    assert_nothing_left(session)

    assert len(body) > 35_000_000
    assert [video.id for video in videos] == [f"vid_{number:06d}" for number in range(MANY)]
    assert video == videos[MANY // 2]
    assert video == q.Video(
        "vid_050000",
        "DONE",
        q.JobState.DONE,
        "Product Showcase - White T-Shirt",
        "https://cdn.example.com/videos/thumb_050000.jpg",
        "https://cdn.example.com/videos/vid_050000.mp4",
        "APPROVED",
        datetime(2026, 3, 20, 17, tzinfo=UTC),
    )
    assert server.methods == ["GET", "GET"]


# A separate process, because the kernel reports the peak memory of a process.
PROGRAM = """
import asyncio, json, sys
import qamera_async as q

CALLS = {"listed": lambda session: session.list_videos(), "waited for": lambda s: s.job("vid_050000").wait()}

def memory(field):
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith(field)) * 1024

async def main(url, key, ask):
    async with q.QameraSession(key, base_url=url) as session:
        await session.job("vid_1")
        before = memory("VmRSS")
        given = await CALLS[ask](session)
        last = given if ask == "waited for" else given[50_000]
        print(json.dumps([memory("VmHWM") - before, last.id]))

asyncio.run(main(*sys.argv[1:]))
"""


@pytest.mark.case(47)
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the peak is read from /proc")
@pytest.mark.parametrize(("ask", "most"), [("waited for", 3.5), ("listed", 4.5)])
async def test_list_of_100000_videos_takes_bounded_memory(ask, most):
    """The limit is a multiple of the body's size. A poll decodes only the watched records."""
    body = many()
    async with FaultServer(GOOD, answers(http(body))) as server:
        program = await asyncio.create_subprocess_exec(
            sys.executable, "-c", PROGRAM, server.url, server.key, ask, stdout=asyncio.subprocess.PIPE
        )
        told, _ = await program.communicate()
    grown, record_id = json.loads(told)

    assert record_id == "vid_050000"
    assert grown < most * len(body)
    assert server.methods == ["GET", "GET"]


@pytest.mark.case(48)
async def test_unknown_statuses_and_fields_are_tolerated(quick, caplog):
    """An unknown status counts as pending and is logged once; unknown fields are ignored."""
    new = {"shape": {"width": 9}, "tags": ["a", None], "price": 1.5}
    receipt = json.dumps({"createdRecordIds": ["vid_1"], "plan": new}).encode()
    lists = [
        json.dumps({"videos": [item("vid_1", status=status, **new)], "count": 1, "page": new}).encode()
        for status in ("PONDERING", "Pondering", "PONDERING", "done")
    ]
    async with FaultServer(by_method(receipt, *lists)) as server:
        async with server.session(**quick | {"polling": FREQUENT_POLLS}) as session:
            job = await session.register_video(image_id="i")
            seen = [(video.status, video.state) async for video in job.updates()]
    assert_nothing_left(session)

    assert seen[-1] == ("done", q.JobState.DONE)
    assert {state for _, state in seen[:-1]} == {q.JobState.PENDING}
    assert {status for status, _ in seen[:-1]} <= {"PONDERING", "Pondering"}
    assert len([r for r in caplog.records if "'PONDERING'" in r.getMessage()]) == 1
    assert server.methods == ["POST"] + ["GET"] * 4


BROKEN = [3, None, "vid_2", [], {}, {"id": 5}, {"id": None}, {"id": " "}, {"status": "DONE"}]


@pytest.mark.case(50)
@pytest.mark.parametrize("broken", BROKEN, ids=json.dumps)
async def test_broken_item_does_not_hide_other_items(broken, quick, caplog):
    """The items before and after it are read, and it is logged once over all polls."""
    caplog.set_level(logging.WARNING)
    lists = [
        listing(item("vid_1", status=first), broken, item("vid_3", status=last))
        for first, last in (("PENDING", "PENDING"), ("DONE", "PENDING"), ("DONE", "DONE"))
    ]
    async with FaultServer(by_method(b"", *lists)) as server:
        async with server.session(**quick | {"polling": FREQUENT_POLLS}) as session:
            waited = await asyncio.gather(session.job("vid_1"), session.job("vid_3"))
            videos = await session.list_videos()
    assert_nothing_left(session)

    assert [video.id for video in waited] == ["vid_1", "vid_3"]
    assert [video.id for video in videos] == ["vid_1", "vid_3"]
    (warning,) = caplog.records
    assert "1 items" in warning.getMessage()
    assert server.methods == ["GET"] * 4


@pytest.mark.case(50)
@pytest.mark.parametrize("field", ["name", "thumbnail", "videoUrl", "voting", "createdAt", "status"])
async def test_field_of_a_wrong_type_counts_as_absent(field, quick):
    """The item and the other items are read."""
    body = listing(item("vid_1"), item("vid_2", **{field: {"new": 1}}))
    async with FaultServer(answers(http(body))) as server:
        async with server.session(**quick) as session:
            good, odd = await session.list_videos()
            video = await session.job("vid_1")
    assert_nothing_left(session)

    assert (good.id, odd.id) == ("vid_1", "vid_2")
    assert odd.status == ("" if field == "status" else "DONE")
    assert (odd.video_url is None) is (field == "videoUrl")
    assert video == good


@pytest.mark.case(49)
async def test_unsolicited_304_is_an_outage(quick):
    """The earlier list had no ETag, so the poll was not conditional."""
    first = http(b'{"videos":[]}')
    unsolicited = answers(b"HTTP/1.1 304 Not Modified\r\n\r\n", "fin")
    async with FaultServer(answers(first), unsolicited, GOOD) as server, server.session(**quick) as session:
        video = await session.job("vid_1").wait()

    assert video.status == "DONE"
    assert server.methods == ["GET"] * 3
