"""The web app of `web_app.py`, served by FastAPI: the same page, the same board, the same rules.

pip install -e '.[fastapi]' && python examples/web_app_fastapi.py

Run it with one worker: each would have a board of its own, and tell its pages of its own orders only.
"""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Annotated

import uvicorn
from fastapi import APIRouter, Depends, FastAPI, HTTPException, Path, Request
from fastapi.datastructures import Headers
from fastapi.responses import FileResponse, JSONResponse
from sse_starlette import EventSourceResponse, ServerSentEvent
from starlette.datastructures import MutableHeaders
from web.board import Board
from web.errors import BoardError, status_of, words_of
from web.feed import State
from web.rules import HEADERS, MAX_BODY, record_of, refusal, request_of
from web.start import FILES, PAGE, arguments, board_in, hosts_of

from qamera_async import QameraError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from contextlib import AbstractAsyncContextManager
    from types import FrameType

    from starlette.types import ASGIApp, Message, Receive, Scope, Send

SLOW = 20.0  # seconds; a page that takes no byte for so long is gone


class Guard:
    """Lets nobody in but who may ask, and sends the headers that go with every answer."""

    def __init__(self, app: ASGIApp, hosts: frozenset[str]) -> None:
        self._app = app
        self._hosts = hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or let the app do it."""

        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(HEADERS)
            await send(message)

        if scope["type"] == "http" and (
            reason := refusal(scope["method"], Headers(scope=scope), self._hosts)
        ):
            await JSONResponse({"error": reason}, 403)(scope, receive, with_headers)
        else:
            await self._app(scope, receive, with_headers)


async def body_of(request: Request) -> bytes:
    """Give the body, as far as it isn't too long."""
    body = b""
    async for part in request.stream():
        body += part
        if len(body) > MAX_BODY:
            raise HTTPException(413)
    return body


def board_of(request: Request) -> Board:
    """Give the app's board."""
    board: Board = request.app.state.board
    return board


router = APIRouter()
Body = Annotated[bytes, Depends(body_of)]
TheBoard = Annotated[Board, Depends(board_of)]


def failed(_: Request, error: Exception) -> JSONResponse:
    """Turn an error into an answer."""
    return JSONResponse({"error": words_of(error)}, status_of(error))


@router.get("/")
async def page() -> FileResponse:
    """Give the page."""
    return FileResponse(PAGE / "page.html")


@router.get("/page/{name}")
async def file(name: str) -> FileResponse:
    """Give what belongs to the page."""
    if name not in FILES:
        raise HTTPException(404)
    return FileResponse(PAGE / name)


@router.get("/events")
async def events(request: Request, board: TheBoard, since: str = "") -> EventSourceResponse:
    """Tell a page of all jobs, and then of each change, as long as it is open."""

    async def stream() -> AsyncIterator[ServerSentEvent]:
        async for message in board.feed.messages(request.headers.get("Last-Event-ID") or since):
            yield ServerSentEvent(message.data, id=message.id, event=message.event)

    return EventSourceResponse(stream(), send_timeout=SLOW)


@router.post("/jobs")
async def order(board: TheBoard, body: Body) -> JSONResponse:
    """Order what a form asks for: 201 once it is ordered, 202 while it waits for the quota."""
    card = await board.order(request_of(body))
    status = 202 if card.state is State.ORDERING else 201
    return JSONResponse({"id": card.id, "state": card.state}, status)


@router.post("/jobs/{card_id}/adopt")
async def adopt(board: TheBoard, card_id: str, body: Body) -> dict[str, str]:
    """Settle an ambiguous order: a record came of it."""
    card = await board.adopt(card_id, record_of(body))
    return {"id": card.id, "state": card.state}


@router.post("/jobs/{card_id}/abandon")
async def abandon(board: TheBoard, card_id: str) -> dict[str, str]:
    """Settle an ambiguous order: nothing came of it."""
    card = await board.abandon(card_id)
    return {"id": card.id, "state": card.state}


@router.post("/look")
async def look_again(board: TheBoard) -> dict[str, str]:
    """Look for what may have come of the ambiguous orders by now."""
    await board.look_again()
    return {}


@router.get("/clips/{card_id}/{place}.{suffix}")
async def clip(
    board: TheBoard, card_id: str, place: int, suffix: Annotated[str, Path(pattern="^(mp4|jpg)$")]
) -> FileResponse:
    """Give a clip or its still; a player may ask for a part of it."""
    return FileResponse(board.clip(card_id, place, f".{suffix}"))


def make_app(open_board: Callable[[], AbstractAsyncContextManager[Board]], hosts: frozenset[str]) -> FastAPI:
    """Give the app. The arguments are those of ``make_app`` in `web_app.py`."""

    @asynccontextmanager
    async def one_board(app: FastAPI) -> AsyncIterator[None]:
        async with open_board() as app.state.board:
            yield

    app = FastAPI(lifespan=one_board, docs_url=None, redoc_url=None, openapi_url=None)
    app.include_router(router)
    app.add_middleware(Guard, hosts=hosts)
    app.add_exception_handler(QameraError, failed)
    app.add_exception_handler(BoardError, failed)
    return app


class Server(uvicorn.Server):
    """Ends the streams of the pages first: uvicorn waits for all answers before it lets the app end."""

    def __init__(self, app: FastAPI, host: str, port: int) -> None:
        super().__init__(uvicorn.Config(app, host=host, port=port, timeout_graceful_shutdown=10))
        self._state = app.state

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Begin to end, on a signal."""
        if (board := getattr(self._state, "board", None)) is not None:
            board.feed.end()
        super().handle_exit(sig, frame)


def main() -> None:
    """Serve until Ctrl-C or SIGTERM."""
    asked = arguments("A page that orders clips and shows what becomes of them, served by FastAPI.")
    app = make_app(board_in(asked.folder), hosts_of(asked))
    Server(app, asked.host, asked.port).run()


if __name__ == "__main__":
    main()
