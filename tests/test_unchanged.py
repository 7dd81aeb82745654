"""A list that hasn't changed: asked for by its ETag, not sent again, not decoded again."""

import asyncio

import pytest

import qamera_async as q
from qamera_async import protocol
from qamera_async.poller import latest
from qamera_async.sandbox import Sandbox


def lists(sandbox):
    return [request for request in sandbox.requests if request.method == "GET"]


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
    known = latest.Latest()
    known.take(protocol.Answer(200, {"etag": etag}, b'{"videos":[]}'), 0.0)

    assert known.condition(1.0) == ({"If-None-Match": etag} if sent else {})


def test_the_moment_of_a_304_counts():
    """What came of an ambiguous registration is told by the server's clock at the last look."""
    known = latest.Latest()
    first = "Tue, 24 Nov 2026 10:00:00 GMT"
    later = "Tue, 24 Nov 2026 10:00:30 GMT"
    known.take(protocol.Answer(200, {"etag": '"a"', "date": first}, b'{"videos":[]}'), 0.0)
    answer, _, another = known.take(protocol.Answer(304, {"date": later}, b""), 1.0)

    assert not another
    assert answer.date.second == 30
    assert known.condition(2.0) == {"If-None-Match": '"a"'}


def test_a_broken_list_makes_no_etag_trustworthy():
    """The minute begins with a list that could be read."""
    known = latest.Latest()
    known.take(protocol.Answer(200, {"etag": '"a"'}, b'{"videos":[]}'), 0.0)
    with pytest.raises(q.InvalidResponseError):
        known.take(protocol.Answer(200, {}, b"<html>"), 50.0)

    assert known.condition(59.0) == {"If-None-Match": '"a"'}
    assert known.condition(61.0) == {}
