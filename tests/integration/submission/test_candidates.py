"""The candidates of an ambiguous submission, on a server whose lists and dates are scripted."""

import pytest
from aiohttp import web

import qamera_async as q

pytestmark = [pytest.mark.every_loop, pytest.mark.usefixtures("no_lost_exceptions")]


def video(record_id, **fields):
    return {"id": record_id, "status": "DONE", "videoUrl": "https://cdn.example.com/a.mp4"} | fields


class ScriptedServer:
    """A server that answers POSTs with one response, and GETs with lists; the last list is repeated."""

    def __init__(self):
        self.lists = []
        self.headers = {}
        self.post = (500, {"error": "boom"})
        self.methods = []

    async def answer(self, request):
        self.methods.append(request.method)
        if request.method == "POST":
            status, body = self.post
            return web.json_response(body, status=status, headers=self.headers)
        listed = self.lists.pop(0) if len(self.lists) > 1 else self.lists[0]
        if isinstance(listed, int):
            return web.json_response({"error": "x"}, status=listed, headers={"Retry-After": "0"})
        return web.json_response({"videos": listed, "count": len(listed)}, headers=self.headers)


@pytest.fixture
async def server():
    scripted = ScriptedServer()
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", scripted.answer)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    scripted.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    yield scripted
    await runner.cleanup()


@pytest.fixture
async def session(server, quick):
    async with q.QameraSession("mk_live_a.bcdefgh", base_url=server.url, **quick) as session:
        yield session


async def candidate_ids(session):
    """Submit a video whose answer is lost; return the ids of its candidates."""
    with pytest.raises(q.AmbiguousSubmissionError) as ambiguous:
        await session.register_video(image_id="i")
    return [record.id for record in ambiguous.value.candidates]


@pytest.mark.parametrize(
    "date",
    [
        "Fri, 31 Dec 9999 23:59:59 GMT",
        "Mon, 01 Jan 0001 00:00:00 GMT",
        "Wed, 21 Oct 2020 07:28:00 +9999999999999",
        "Wed, 99999999999999999999 Jan 2020 07:28:00 GMT",
    ],
)
async def test_absurd_date_gives_no_candidates(server, session, date):
    server.lists = [[video("vid_1", createdAt="2026-03-20T17:00:00Z")]]
    server.headers = {"Date": date}

    assert await candidate_ids(session) == []


async def test_429_to_the_poll_of_the_search_loses_no_candidate(server, session):
    server.lists = [[video("old")], 429, [video("old"), video("new")]]
    await session.list_videos()

    assert await candidate_ids(session) == ["new"]


async def test_record_in_any_earlier_list_is_no_candidate(server, session):
    """The last list before the POST may lack the record."""
    server.lists = [[video("a"), video("b")], [video("b")], [video("a"), video("b"), video("new")]]
    await session.list_videos()
    await session.list_videos()

    assert await candidate_ids(session) == ["new"]


async def test_record_in_an_earlier_poll_is_no_candidate(server, session):
    """A list of more than 64 KiB is processed in steps."""
    server.lists = [[], [video(f"foreign_{number}") for number in range(3_000)]]
    await session.list_videos()
    with pytest.raises(q.JobTimeoutError):
        await session.job("vid_1").wait(0.2)

    assert await candidate_ids(session) == []


@pytest.mark.parametrize("error", [OSError(24, "no file descriptor is free"), ImportError("cattrs")])
async def test_receipt_that_can_not_be_parsed_is_ambiguous(server, session, monkeypatch, error):
    def fail(_):
        raise error

    server.post = (200, {"createdRecordIds": ["vid_1"]})
    server.lists = [[], [video("vid_1")]]
    await session.list_videos()
    monkeypatch.setattr("qamera_async._submission.submit.parse_receipt", fail)

    assert await candidate_ids(session) == ["vid_1"]
    assert server.methods.count("POST") == 1
