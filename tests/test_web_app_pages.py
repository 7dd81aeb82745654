"""The board of the web apps under many pages, slow ones, trouble, and a long time."""

import asyncio
import gc
import json
import socket
import sys
import tracemalloc
from argparse import Namespace
from contextlib import asynccontextmanager, suppress

import aiohttp
import pytest
from aiohttp import web as aiohttp_web
from test_web_app import EXAMPLES

from qamera_async import QameraSession, RateLimiter, ReelRequest, Timeouts, VideoRequest
from qamera_async.events import Polled
from qamera_async.sandbox import Sandbox

sys.path.append(str(EXAMPLES))  # they aren't installed

from web.board import Board
from web.errors import BusyError
from web.feed import Card, Feed, State
from web.rules import refusal
from web.start import hosts_of
from web_app import make_app

pytestmark = pytest.mark.slow

PAGES = 200
SILENT = 10
HOSTS = frozenset({"127.0.0.1"})


@pytest.fixture
async def sandbox():
    async with Sandbox(job_seconds=0.2, quota=None, credits=10**6) as sandbox:
        yield sandbox


@pytest.fixture
def board(sandbox, quick, tmp_path):
    """Give a function that opens a board on the sandbox; each call is another run of an app."""
    (tmp_path / "clips").mkdir()
    return lambda session=None, **options: opened(sandbox, tmp_path, quick | (session or {}), options)


@asynccontextmanager
async def opened(sandbox, folder, session, options):
    ledger = folder / "jobs.db"
    async with sandbox.session(**session, ledger=ledger) as qamera:
        async with Board(
            qamera, ledger=ledger, origin=sandbox.url, clips=folder / "clips", **options
        ) as board:
            yield board


@asynccontextmanager
async def served(open_board):
    """Serve an app as ``main`` does; give its URL."""
    runner = aiohttp_web.AppRunner(
        make_app(open_board, HOSTS), handler_cancellation=True, shutdown_timeout=5.0
    )
    await runner.setup()
    try:
        site = aiohttp_web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


def request(number=1, **fields):
    return VideoRequest(f"img_{number}", ref=f"form-{number:05}", **fields)


async def until(board, state, number=1):
    """Wait until a job is in a state; give its card."""
    async with asyncio.timeout(20):
        async for _ in board.feed.messages():
            card = board.feed.get(f"form-{number:05}")
            if card is not None and card.state is state:
                return card
    raise AssertionError(card)


@asynccontextmanager
async def pages(url, number, seen):
    """Open so many pages; ``seen(number, data)`` is told of each event."""
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(
        connector=connector, timeout=aiohttp.ClientTimeout(total=None)
    ) as client:

        async def page(place):
            async with client.get(f"{url}/events") as answer:
                there.release()
                async for line in answer.content:
                    if line.startswith(b"data: "):
                        seen(place, line[6:])

        there = asyncio.Semaphore(0)
        tasks = [asyncio.ensure_future(page(place)) for place in range(number)]
        for _ in tasks:
            await asyncio.wait_for(there.acquire(), 30)
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


async def test_so_many_pages_cost_the_polls_of_one(sandbox, board):
    """Each is told of the end, the polls are for one job however many look, and then there is none."""
    polls, done = [], set()

    def on_event(event):
        if isinstance(event, Polled):
            polls.append(event.waiting)

    def seen(place, data):
        if json.loads(data).get("state") == "done":
            done.add(place)

    async with served(lambda: board({"on_event": on_event})) as url:
        async with pages(url, PAGES, seen):
            async with aiohttp.ClientSession() as client:
                form = {"id": "form-00001", "kind": "video", "images": ["img_1"]}
                async with client.post(f"{url}/jobs", json=form) as answer:
                    assert answer.status == 201
            async with asyncio.timeout(30):
                while len(done) < PAGES:
                    await asyncio.sleep(0.01)
            asked = [r for r in sandbox.requests if r.method == "GET" and r.origin == "api"]
            await asyncio.sleep(0.3)  # fifteen pauses between polls
            later = [r for r in sandbox.requests if r.method == "GET" and r.origin == "api"]

    assert {*polls} <= {0, 1}  # 0 where it has ended with that poll
    assert len(asked) == len(polls)
    assert len(later) == len(asked)
    assert len([r for r in sandbox.requests if r.origin == "cdn"]) == 2  # the clip and its still, once


@asynccontextmanager
async def sandbox_elsewhere():
    """Run a sandbox as a process, so that what it remembers isn't counted here; give its URL and key."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-m", "qamera_async.sandbox", "--no-quota", "--job-seconds", "0.02", "--credits", "1000000"),
        stdout=asyncio.subprocess.PIPE,
    )
    try:
        lines = [(await process.stdout.readline()).decode().split() for _ in range(2)]
        yield lines[0][1], lines[1][1]
    finally:
        process.kill()
        await process.communicate()


async def silent_page(url):
    """Open a page that never reads what it is sent."""
    host, _, port = url.removeprefix("http://").partition(":")
    connection = socket.create_connection((host, int(port)))
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
    connection.sendall(f"GET /events HTTP/1.1\r\nHost: {host}:{port}\r\n\r\n".encode())
    return connection


async def test_memory_stays_flat(quick, tmp_path):
    """In ten minutes' worth of polls: jobs come and go, pages too, and some never read what they are sent."""
    (tmp_path / "clips").mkdir()
    boards, polls = [], []

    @asynccontextmanager
    async def open_board():
        options = {"ledger": tmp_path / "jobs.db", "rate_limiter": RateLimiter(limit=10**6, window=0.001)}
        async with (
            QameraSession(key, base_url=origin, on_event=on_event, **options, **quick) as qamera,
            Board(
                qamera, ledger=options["ledger"], origin=origin, clips=tmp_path / "clips", keep=20
            ) as board,
        ):
            boards.append(board)
            yield board

    def on_event(event):
        if isinstance(event, Polled):
            polls.append(None)

    async def some_jobs(first, number):
        for place in range(first, first + number):
            await boards[0].order(request(place, suggestion="x" * 2000))
            await until(boards[0], State.DONE, place)
            if place % 10 == 0:
                async with pages(url, 10, lambda *_: None):
                    pass
        gc.collect()
        return tracemalloc.get_traced_memory()[0]

    async with sandbox_elsewhere() as (origin, key), served(open_board) as url:
        silent = [await silent_page(url) for _ in range(SILENT)]
        async with pages(url, 10, lambda *_: None):
            tracemalloc.start()
            warm = await some_jobs(100, 50)
            grown = await some_jobs(200, 150) - warm
            tracemalloc.stop()
        for connection in silent:
            connection.close()

    assert grown < 1_000_000
    assert len(polls) >= 200  # of the usual 3 s each


async def test_a_slow_page_skips_what_has_changed_again():
    """However many changes there were, it is sent each card once, as it is now; nothing is kept for it."""
    feed = Feed(keep=10)
    feed.put(Card("form-00001", "video", ("img_1",), "", "2026"))
    feed.put(Card("form-00002", "video", ("img_2",), "", "2026"))
    slow = feed.messages()
    await anext(slow)
    for number in range(1000):
        feed.change("form-00001", status=f"{number} %")
        feed.change("form-00002", status=f"{number} %")
    told = [json.loads((await anext(slow)).data) for _ in range(2)]
    rest = asyncio.ensure_future(anext(slow, None))
    await asyncio.sleep(0)
    waits = not rest.done()
    feed.end()

    assert [(card["id"], card["status"]) for card in told] == [
        ("form-00001", "999 %"),
        ("form-00002", "999 %"),
    ]
    assert waits
    assert await rest is None


async def test_what_is_no_news_is_not_told():
    """A change to what it was already is none."""
    feed = Feed(keep=10)
    feed.put(Card("form-00001", "video", ("img_1",), "", "2026"))
    first = [message.id async for message in ended(feed)]
    feed.change("form-00001", status="")

    assert [message.id async for message in ended(feed)] == first


async def ended(feed):
    messages = feed.messages()
    yield await anext(messages)
    await messages.aclose()


async def test_a_page_that_is_gone_is_forgotten(board):
    """Its handler ends with it, though nothing changes any more."""
    async with served(board) as url:
        before = len(asyncio.all_tasks())
        async with pages(url, 10, lambda *_: None):
            assert len(asyncio.all_tasks()) > before + 20
        async with asyncio.timeout(10):
            while len(asyncio.all_tasks()) > before + 2:
                await asyncio.sleep(0.01)


async def test_a_job_is_watched_once(sandbox, board):
    """However often its form is sent, before its end and after; nothing of it is fetched twice."""
    async with board() as one:
        await asyncio.gather(*[one.order(request()) for _ in range(5)])
        watching = len(one._tasks)
        done = await until(one, State.DONE)
        again = await one.order(request())

    assert watching == 1
    assert again == done
    assert len([r for r in sandbox.requests if r.origin == "cdn"]) == 2  # the clip and its still


async def test_an_order_outlives_its_page(sandbox, board):
    """The page goes while its order is on the way: it is ordered all the same, and followed to its clip."""
    sandbox.trouble("slow", seconds=0.3)
    boards = []

    @asynccontextmanager
    async def open_board():
        async with board() as one:
            boards.append(one)
            yield one

    async with served(open_board) as url:
        form = {"id": "form-00001", "kind": "video", "images": ["img_1"]}
        async with aiohttp.ClientSession() as client:
            with suppress(TimeoutError):
                await client.post(f"{url}/jobs", json=form, timeout=aiohttp.ClientTimeout(total=0.1))
        card = await until(boards[0], State.DONE)

    assert len(card.clips) == 1
    assert len(sandbox.orders) == 1


async def test_an_order_that_waits_is_answered_in_time(sandbox, board):
    """With what is known by then; what becomes of it is told as it happens."""
    sandbox.trouble("slow", seconds=0.3)
    async with board(patience=0.01) as one:
        card = await one.order(request())
        done = await until(one, State.DONE)

    assert card.state is State.ORDERING
    assert len(done.clips) == 1


async def test_only_so_many_orders_wait(sandbox, board):
    """One more is refused at once, and nothing is kept of it."""
    sandbox.trouble("slow", times=2, seconds=0.3)
    async with board(patience=0.01, room=2) as one:
        await one.order(request(1))
        await one.order(request(2))
        with pytest.raises(BusyError):
            await one.order(request(3))
        await until(one, State.DONE, 2)
        await one.order(request(3))
        await until(one, State.DONE, 3)

    assert len(sandbox.orders) == 3


async def test_older_jobs_make_room(board):
    """Of settled ones so many are shown, those that changed last; after a restart, too."""
    async with board(keep=3) as one:
        for number in range(6):
            await one.order(request(number))
            await until(one, State.DONE, number)
        shown = [one.feed.get(f"form-{number:05}") is not None for number in range(6)]
    async with board(keep=3) as one:
        again = [one.feed.get(f"form-{number:05}") is not None for number in range(6)]

    assert shown == [False, False, False, True, True, True]
    assert again == shown


async def test_trouble_with_watching_passes(sandbox, board):
    """The card says what is wrong, the job isn't given up, and goes on once it is mended."""
    async with board(pause=0.05) as one:
        sandbox.trouble("error", on="GET", status=401)
        await one.order(request())
        whys = []
        async with asyncio.timeout(20):
            async for _ in one.feed.messages():
                card = one.feed["form-00001"]
                whys.append(card.why)
                if card.state is State.DONE:
                    break

    assert any("401" in why for why in whys)
    assert whys[-1] == ""


async def test_all_clips_of_a_job_are_shown(sandbox, board):
    """A server may make several of one order."""
    sandbox.trouble("multiple", count=3)
    async with board() as one:
        await one.order(ReelRequest(["a", "b"], ref="form-00001"))
        card = await until(one, State.DONE)
        files = {one.clip(card.id, clip.place, ".mp4") for clip in card.clips}

    assert [clip.place for clip in card.clips] == [0, 1, 2]
    assert len(files) == 3


async def test_a_clip_that_cannot_be_had_says_why(sandbox, board):
    """The job is done all the same; after a restart its clip is asked for again."""
    sandbox.cdn_trouble("html")
    async with board() as one:
        await one.order(request())
        card = await until(one, State.DONE)
    async with board() as one:
        again = await until(one, State.DONE)

    assert card.clips == ()
    assert "can't be fetched" in card.why
    assert (len(again.clips), again.why) == (1, "")


async def test_a_clip_will_do_without_a_still(sandbox, board, tmp_path):
    """The page is told that there is none, so that it asks for none."""
    (tmp_path / "clips" / "form-00001-1.mp4").write_bytes(b"fetched before")
    sandbox.cdn_trouble("html")
    async with board() as one:
        await one.order(request())
        card = await until(one, State.DONE)

    assert [clip.still for clip in card.clips] == [False]


async def test_looking_again_finds_what_shows_up_late(sandbox, board):
    """What was made of an order is a candidate as soon as the server lists it."""
    sandbox.trouble("late", seconds=0.4)
    sandbox.trouble("reset_after")
    async with board({"timeouts": Timeouts(reconcile=0.1)}, patience=0.01) as one:
        await one.order(request())
        first = await until(one, State.AMBIGUOUS)
        async with asyncio.timeout(20):
            while not one.feed[first.id].candidates:
                await one.look_again()
        found = one.feed[first.id]

    assert first.candidates == ()
    assert [candidate.id for candidate in found.candidates] == ["vid_001"]
    assert found.why == first.why != ""


async def test_an_order_of_the_app_before_is_waited_for(sandbox, board):
    """One that ends while the next one starts still gets its answer: the next one follows that job."""
    sandbox.trouble("slow", seconds=0.5)
    ends = asyncio.Event()

    async def the_app_before():
        async with board() as before:
            ordering = asyncio.ensure_future(before.order(request()))
            while not sandbox.orders:
                await asyncio.sleep(0.005)
            ends.set()
        await asyncio.wait({ordering})

    before = asyncio.ensure_future(the_app_before())
    await ends.wait()
    async with board() as one:
        card = await until(one, State.DONE)
    await before

    assert len(card.clips) == 1
    assert len(sandbox.orders) == 1


async def test_what_was_never_sent_is_not_sent_after_a_restart(sandbox, board, quick):
    """It waited for the quota when the app ended: nothing was paid for, and nothing is kept of it."""
    budget = RateLimiter(limit=1, window=600.0)
    async with board({"rate_limiter": budget}, patience=0.01) as one:
        await one.order(request(1))
        await until(one, State.PENDING, 1)
        await one.order(request(2))
    async with board({"rate_limiter": RateLimiter(limit=10**6, window=0.001)}) as one:
        await until(one, State.DONE, 1)
        left = one.feed.get("form-00002")

    assert left is None
    assert len(sandbox.orders) == 1


async def test_a_name_goes_by_any_letter_case():
    """A browser sends it in small letters, however it was given."""
    hosts = hosts_of(Namespace(host="127.0.0.1", name=["Shop.Example"]))

    assert not refusal("GET", {"Host": "shop.example:8080"}, hosts)
    assert not refusal("GET", {"Host": "SHOP.example"}, hosts)
