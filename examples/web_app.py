"""A page that orders clips and shows what becomes of them, served by aiohttp.

pip install -e '.[web]' && python examples/web_app.py

It runs on the sandbox, a server on this machine: no key is needed, and no credits are spent. With an API key
in QAMERA_API_KEY it uses the real API, and then each order SPENDS CREDITS.

There is one session for the app, however many pages are open. What is ordered is kept in a folder, so that it
survives a restart. Nobody has to log in, so whoever reaches the page can order: put it behind what you have
for that.
"""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

from aiohttp import web
from aiohttp_sse import sse_response
from web.board import Board
from web.errors import BoardError, status_of, words_of
from web.feed import State
from web.rules import HEADERS, MAX_BODY, record_of, refusal, request_of
from web.start import FILES, PAGE, arguments, board_in, hosts_of

from qamera_async import QameraError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from contextlib import AbstractAsyncContextManager

    from aiohttp.typedefs import Handler

BOARD = web.AppKey("board", Board)
HOSTS = web.AppKey("hosts", frozenset[str])
SLOW = 20.0  # seconds; a page that takes no byte for so long is gone


@web.middleware
async def guarded(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Let nobody in but who may ask, and turn errors into answers."""
    if reason := refusal(request.method, request.headers, request.app[HOSTS]):
        return web.json_response({"error": reason}, status=403)
    try:
        return await handler(request)
    except (QameraError, BoardError) as error:
        return web.json_response({"error": words_of(error)}, status=status_of(error))


async def add_headers(_: web.Request, response: web.StreamResponse) -> None:
    """Send the headers that go with every answer; before the first byte of a stream, too."""
    response.headers.update(HEADERS)


async def page(_: web.Request) -> web.FileResponse:
    """Give the page."""
    return web.FileResponse(PAGE / "page.html")


async def file(request: web.Request) -> web.FileResponse:
    """Give what belongs to the page."""
    name = request.match_info["name"]
    if name not in FILES:
        raise web.HTTPNotFound
    return web.FileResponse(PAGE / name)


async def events(request: web.Request) -> web.StreamResponse:
    """Tell a page of all jobs, and then of each change, as long as it is open."""
    since = request.headers.get("Last-Event-ID") or request.query.get("since", "")
    async with sse_response(request, send_timeout=SLOW) as stream:
        with suppress(ConnectionError, TimeoutError):  # the page has gone
            async for message in request.app[BOARD].feed.messages(since):
                await stream.send(message.data, id=message.id, event=message.event)
    return stream


async def order(request: web.Request) -> web.Response:
    """Order what a form asks for: 201 once it is ordered, 202 while it waits for the quota."""
    card = await request.app[BOARD].order(request_of(await request.read()))
    status = 202 if card.state is State.ORDERING else 201
    return web.json_response({"id": card.id, "state": card.state}, status=status)


async def adopt(request: web.Request) -> web.Response:
    """Settle an ambiguous order: a record came of it."""
    card = await request.app[BOARD].adopt(request.match_info["id"], record_of(await request.read()))
    return web.json_response({"id": card.id, "state": card.state})


async def abandon(request: web.Request) -> web.Response:
    """Settle an ambiguous order: nothing came of it."""
    card = await request.app[BOARD].abandon(request.match_info["id"])
    return web.json_response({"id": card.id, "state": card.state})


async def look_again(request: web.Request) -> web.Response:
    """Look for what may have come of the ambiguous orders by now."""
    await request.app[BOARD].look_again()
    return web.json_response({})


async def clip(request: web.Request) -> web.FileResponse:
    """Give a clip or its still; a player may ask for a part of it."""
    found = request.match_info
    path = request.app[BOARD].clip(found["id"], int(found["place"]), found["suffix"])
    return web.FileResponse(path)


async def end_pages(app: web.Application) -> None:
    """Let the streams end, so that shutting down doesn't wait for pages that stay open."""
    app[BOARD].feed.end()


def make_app(
    open_board: Callable[[], AbstractAsyncContextManager[Board]], hosts: frozenset[str]
) -> web.Application:
    """Give the app.

    Args:
        open_board: Opens the one board, on the app's loop.
        hosts: The names that the app goes by.

    """

    async def one_board(app: web.Application) -> AsyncIterator[None]:
        async with open_board() as app[BOARD]:
            yield

    app = web.Application(middlewares=[guarded], client_max_size=MAX_BODY)
    app[HOSTS] = hosts
    app.cleanup_ctx.append(one_board)
    app.on_response_prepare.append(add_headers)
    app.on_shutdown.append(end_pages)
    app.router.add_get("/", page)
    app.router.add_get("/page/{name}", file)
    app.router.add_get("/events", events)
    app.router.add_post("/jobs", order)
    app.router.add_post("/jobs/{id}/adopt", adopt)
    app.router.add_post("/jobs/{id}/abandon", abandon)
    app.router.add_post("/look", look_again)
    app.router.add_get(r"/clips/{id}/{place:\d{1,3}}{suffix:\.mp4|\.jpg}", clip)
    return app


def main() -> None:
    """Serve until Ctrl-C or SIGTERM."""
    asked = arguments("A page that orders clips and shows what becomes of them.")
    app = make_app(board_in(asked.folder), hosts_of(asked))
    # A handler whose page has gone is cancelled at once. What is ordered goes on: it is no part of a handler.
    web.run_app(app, host=asked.host, port=asked.port, shutdown_timeout=10.0, handler_cancellation=True)


if __name__ == "__main__":
    main()
