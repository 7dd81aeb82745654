"""A list that hasn't changed: asked for by its ETag, not sent again, not decoded again."""

import asyncio
import gc

import pytest

import qamera_async as q
from qamera_async import _polling as poller
from qamera_async import _protocol as protocol
from qamera_async._polling import latest
from qamera_async.events import Failed, Updated
from qamera_async.sandbox import Sandbox


def lists(sandbox):
    return [request for request in sandbox.requests if request.method == "GET"]


def read_of_lists():
    """Give what is in memory of what was read of lists."""
    gc.collect()
    return [id(thing) for thing in gc.get_objects() if isinstance(thing, q.Video | protocol.Listing)]


def conditions(sandbox):
    return [request.headers.get("If-None-Match") for request in lists(sandbox)]


async def polled(sandbox, number):
    while len(lists(sandbox)) < number:
        await asyncio.sleep(0.005)


@pytest.fixture
async def tagged():
    async with Sandbox(job_seconds=float("inf"), quota=None, etag=True, compress=True) as sandbox:
        yield sandbox


async def test_an_unchanged_list_is_not_sent_again(tagged, quick):
    """From the second poll on the ETag goes along, and what comes is a 304 without a body."""
    async with tagged.session(**quick) as session:
        job = await session.register_video(image_id="img")
        waiting = asyncio.ensure_future(job.wait())
        await polled(tagged, 6)
        assert not waiting.done()
        tagged.finish(job.record_ids[0])
        video = await waiting

    answers = [request.status for request in lists(tagged)]
    assert video.state is q.JobState.DONE
    assert conditions(tagged)[0] is None
    assert None not in conditions(tagged)[1:]
    assert answers.count(200) == 2
    assert answers[-1] == 200
    assert {*answers[1:-1]} == {304}


async def test_a_list_is_read_once_for_all_the_304s(tagged, quick, monkeypatch):
    """A job attached between two of them is told from what is known."""
    read = []
    reading = protocol.read_listing
    monkeypatch.setattr(protocol, "read_listing", lambda answer: read.append(1) or reading(answer))
    tagged.add_records(3)
    async with tagged.session(**quick) as session:
        job = await session.register_video(image_id="img")
        waiting = asyncio.ensure_future(job.wait())
        await polled(tagged, 4)
        done = await session.job("old_000002")
        waiting.cancel()
        await asyncio.wait([waiting])

    assert done.state is q.JobState.DONE
    assert len(read) == 1


async def test_who_waits_keeps_neither_videos_nor_lists(tagged, quick):
    """Thousands of them would be megabytes; what is asked for is made of the list as it came."""
    before = read_of_lists()
    async with tagged.session(**quick) as session:
        jobs = [await session.register_video(image_id=f"img_{number}") for number in range(5)]
        waiting = [asyncio.ensure_future(job.wait()) for job in jobs]
        while not all(job.status for job in jobs):
            await polled(tagged, len(lists(tagged)) + 1)
        await polled(tagged, len(lists(tagged)) + 2)

        assert read_of_lists() == before
        assert [(job.video.id, job.video.status) for job in jobs] == [
            (job.record_ids[0], job.status) for job in jobs
        ]
        for task in waiting:
            task.cancel()
        await asyncio.wait(waiting)


async def test_a_job_has_its_last_video_whatever_comes_after(tagged, quick):
    """Nobody waits for it any more, and then the list has it no more: what was seen was seen."""
    async with tagged.session(**quick) as session:
        left, missed = [await session.register_video(image_id=f"img_{number}") for number in range(2)]
        waiting = [asyncio.ensure_future(job.wait()) for job in (left, missed)]
        while not (left.status and missed.status):
            await asyncio.sleep(0.005)
        seen = left.video, missed.video
        waiting[0].cancel()
        await asyncio.wait(waiting[:1])
        del tagged._world.records[left.record_ids[0]], tagged._world.records[missed.record_ids[0]]
        tagged.add_records(1)
        await polled(tagged, len(lists(tagged)) + 3)

        assert None not in seen
        assert (left.video, missed.video) == seen
        waiting[1].cancel()
        await asyncio.wait(waiting[1:])


async def test_who_leaves_while_a_list_is_read_is_told_of_it_later(tagged, quick, monkeypatch):
    """A job isn't settled by a list that nobody was told of."""

    async def pause(_):
        pauses.append(None)
        if len(pauses) == 2:  # between reading the list and telling of it
            waiting.cancel()
        await asyncio.sleep(0)

    pauses = []
    async with tagged.session(**quick) as session:
        job = await session.register_video(image_id="img")
        waiting = asyncio.ensure_future(job.wait())
        await polled(tagged, 3)
        monkeypatch.setattr(poller, "_pause_after", pause)
        tagged.finish(job.record_ids[0], status="FAILED")
        await asyncio.wait([waiting])
        monkeypatch.undo()

        assert waiting.cancelled()
        assert not job.done()
        with pytest.raises(q.JobFailedError):
            await job


async def test_what_nobody_was_told_of_settles_nothing(tagged, quick):
    """Who is told first may make another leave before it is its turn."""
    told = []

    def on_event(event):
        told.append(event)
        if isinstance(event, Failed) and event.record_ids == first.record_ids:
            waiting.close()

    async with tagged.session(on_event=on_event, **quick) as session:
        first, second = [await session.register_video(image_id=f"img_{number}") for number in range(2)]
        other, waiting = asyncio.ensure_future(first.wait()), second.__await__()
        await asyncio.sleep(0)  # so that the first is told first
        next(waiting)
        while not (first.status and second.status):
            await asyncio.sleep(0.005)
        seen = len(lists(tagged))
        await polled(tagged, seen + 1)
        for job in (first, second):
            tagged.finish(job.record_ids[0], "FAILED")
        with pytest.raises(q.JobFailedError):
            await other

        with pytest.raises(q.JobFailedError):
            await second
    assert len([event for event in told if isinstance(event, Failed)]) == 2


async def test_what_no_event_tells_is_no_update(tagged, quick):
    """A name may be another one in each list; who is slow to ask is told no more than who is quick."""
    async with tagged.session(**quick) as session:
        job = await session.register_video(image_id="img")
        waiting = asyncio.ensure_future(job.wait())
        updates = job.updates()
        first = await anext(updates)
        record = tagged._world.records[job.record_ids[0]]
        for number in range(3):
            record.name = f"Take {number}"
            tagged._world.expire(record.id)  # so that the list is made anew
            tagged.add_records(1)
            await polled(tagged, len(lists(tagged)) + 2)
        name = job.video.name
        tagged.finish(job.record_ids[0])
        later = [video.status async for video in updates]
        await waiting

    assert name == "Take 2" != first.name
    assert later.count(first.status) == 0
    assert later[-1] == "DONE"


async def test_a_word_that_is_cut_is_told_of_once(tagged, quick):
    """What the list has is longer than what a video shows of it, and no change each time."""
    told = []
    async with tagged.session(on_event=told.append, **quick) as session:
        job = await session.register_video(image_id="img")
        waiting = asyncio.ensure_future(job.wait())
        await polled(tagged, 3)
        tagged.finish(job.record_ids[0], "x" * 150)
        for _ in range(3):
            tagged.add_records(1)
            await polled(tagged, len(lists(tagged)) + 2)
        waiting.cancel()
        await asyncio.wait([waiting])

    assert job.status == "x" * 100
    assert [e.record.status for e in told if isinstance(e, Updated)].count("x" * 100) == 1


async def test_a_304_is_a_look_at_the_list(tagged, quick):
    """What is missing in it is missing: an absence is counted, and its limit kept."""
    timeouts = q.Timeouts(appear=0.2, request=1.0)
    async with tagged.session(**quick | {"timeouts": timeouts}) as session:
        with pytest.raises(q.JobLostError):
            await session.job("vid_of_nobody")

    assert [request.status for request in lists(tagged)].count(200) == 1


async def test_a_wrong_etag_hides_nothing_for_long(tagged, quick, monkeypatch):
    """The server's word that nothing has changed is taken for a while; then the whole list is asked for."""
    monkeypatch.setattr(latest, "_TRUSTED", 0.1)
    monkeypatch.setattr("qamera_async.sandbox.endpoints.hashlib.blake2b", lambda *_, **__: Liar())
    async with tagged.session(**quick) as session:
        job = await session.register_video(image_id="img")
        waiting = asyncio.ensure_future(job.wait())
        await polled(tagged, 3)
        tagged.finish(job.record_ids[0])
        video = await waiting

    assert video.state is q.JobState.DONE
    assert 304 in [request.status for request in lists(tagged)]


class Liar:
    """What gives everything the same name."""

    def hexdigest(self):
        return "same"


@pytest.mark.parametrize(
    ("etag", "sent"),
    [
        ('"abc"', True),
        ('W/"a b"', False),
        ('W/"abc"', True),
        ('""', True),
        ("abc", False),
        ('"' + "x" * 201 + '"', False),
        ('"a", "b"', False),
        ('"a\x7f"', False),
        ("*", False),
        ("", False),
    ],
)
def test_only_an_etag_goes_back(etag, sent):
    """What the server calls one and is none is not sent to it: "*" stands for any, a header is one line."""
    known = latest.Latest(q.StatusRules())
    known.become(known.read(protocol.Answer(200, {"etag": etag}, b'{"videos":[]}'), 0.0))

    assert known.condition(1.0) == ({"If-None-Match": etag} if sent else {})


def test_the_moment_of_a_304_counts():
    """What came of an ambiguous registration is told by the server's clock at the last look."""
    known = latest.Latest(q.StatusRules())
    first = "Tue, 24 Nov 2026 10:00:00 GMT"
    later = "Tue, 24 Nov 2026 10:00:30 GMT"
    known.become(known.read(protocol.Answer(200, {"etag": '"a"', "date": first}, b'{"videos":[]}'), 0.0))
    coming = known.read(protocol.Answer(304, {"date": later}, b""), 1.0)
    known.become(coming)

    assert coming.listing is None
    assert known.answer.date.second == 30
    assert known.condition(2.0) == {"If-None-Match": '"a"'}


def test_a_broken_list_makes_no_etag_trustworthy():
    """The minute begins with a list that could be read."""
    known = latest.Latest(q.StatusRules())
    known.become(known.read(protocol.Answer(200, {"etag": '"a"'}, b'{"videos":[]}'), 0.0))
    with pytest.raises(q.InvalidResponseError):
        known.become(known.read(protocol.Answer(200, {}, b"<html>"), 50.0))

    assert known.condition(59.0) == {"If-None-Match": '"a"'}
    assert known.condition(61.0) == {}
