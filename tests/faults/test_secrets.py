"""P6: the API key is in no error, log, repr, pickle, event, file or output."""

import asyncio
import gc
import json
import logging
import pickle
import re
import traceback
from urllib.parse import quote

import pytest
from canary import FORMS, KEY, SECRET
from command import QUICK, qamera

import qamera_async as q
from qamera_async.events import Ambiguous, Failed, Finished, Polled, Submitted
from qamera_async.report import write_report
from qamera_async.sandbox import Sandbox

pytestmark = [pytest.mark.usefixtures("no_lost_exceptions"), pytest.mark.case(81)]


def found(shown, looked_for=FORMS):
    """Return the names of the items that contain the key in any form, or one of other texts."""
    forms = [form.lower().encode() for form in looked_for]
    texts = {
        name: (thing if isinstance(thing, bytes) else str(thing).encode("utf-8", "backslashreplace")).lower()
        for name, thing in shown.items()
    }
    # A repr that contains another repr doubles its backslashes.
    texts = {name: re.sub(rb"\\+", rb"\\", text) for name, text in texts.items()}
    return [name for name, text in texts.items() if any(form in text for form in forms)]


def not_seen(shown, known):
    """Return the names of the items that lack their expected text: the search would find no key there either.

    Args:
        shown: The items that are searched, by name.
        known: The expected texts, by the name of an item or by the first words of the names of several items.
    """
    missing = []
    for name, text in known.items():
        named = [name] if name in shown else [other for other in shown if other.startswith(f"{name} ")]
        seen = found({other: shown[other] for other in named}, [text])
        missing += [other for other in named or [name] if other not in seen]
    return missing


def representations(error, name=""):
    """Yield the name and content of each representation of an error and of its causes and contexts."""
    while error is not None:
        name += type(error).__name__
        lines = traceback.TracebackException.from_exception(error, capture_locals=True).format()
        yield from {
            f"str of {name}": str(error),
            f"repr of {name}": repr(error),
            f"%r of {name}": "%r" % error,  # noqa: UP031 - the tested way
            f"args of {name}": repr(error.args),
            f"attributes of {name}": repr(vars(error)),
            f"traceback of {name}": "".join(lines),
        }.items()
        if isinstance(error, q.QameraError):
            for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
                yield f"pickle {protocol} of {name}", pickle.dumps(error, protocol)
        error, name = error.__cause__ or error.__context__, f"{name} > "


async def error_of(awaitable):
    """Return the error that an awaitable raises; its traceback has no frame of a test."""
    try:
        await awaitable
    except Exception as error:
        return error
    pytest.fail("no error")


@pytest.fixture
async def sandbox():
    async with Sandbox(job_seconds=0.05, quota=None, api_key=KEY) as sandbox:
        yield sandbox


LOGGED = "this DEBUG record is searched"


@pytest.fixture
def log(caplog):
    """Capture all log records from DEBUG on, including those of asyncio in its debug mode."""
    caplog.set_level(logging.DEBUG)
    return caplog


def key_was_sent(sandbox):
    """Return whether each request had the key; without it, finding no key would prove nothing."""
    return {request.headers.get("X-Api-Key") for request in sandbox.requests if request.origin == "api"} == {
        KEY
    }


@pytest.mark.parametrize("form", FORMS)
def test_search_finds_each_form_of_the_key(form):
    """The other tests prove nothing unless the search finds the key in these places."""
    places = {
        "text": f"a {form} b",
        "bytes": f"a {form} b".encode(),
        "list": [f"a {form} b"],
        "case": form.upper(),
        "pickle": pickle.dumps(f"a {form} b"),
    }

    assert found(places | {"nothing": "a b"}) == list(places)


# --- servers that echo the key ------------------------------------------------------------------


def echoes():
    """Yield the name, status, body and headers of responses that echo the key."""
    ways = {
        "as it is": KEY,
        "the secret part": SECRET,
        "quoted": quote(KEY),
        "quoted in full": quote(KEY, safe=""),
        "the secret part quoted": quote(SECRET, safe=""),
        "in a header": f"X-Api-Key: {KEY}",
        "again and again": f"{KEY} " * 50,
        "at the cut of an excerpt": "x" * (200 - len(KEY) // 2) + KEY,
    }
    for way, text in ways.items():
        for status in (400, 401, 402, 403, 404, 409, 418, 500, 503, 302, 200):
            yield f"{way}, JSON {status}", status, json.dumps({"error": text}), {}
        yield f"{way}, JSON escaped", 400, json.dumps({"error": text}).replace("/", "\\/"), {}
        yield f"{way}, a page", 502, f"<html><body>{text}</body></html>", {}
        yield f"{way}, a page with 200", 200, f"<html><body>{text}</body></html>", {}
    yield "escaped in a page", 502, "<p>" + KEY.replace("/", "\\/"), {}
    yield "as an object", 400, json.dumps({"error": {"code": KEY, "message_i18n": {"en": KEY}}}), {}
    for name in ("X-Correlation-Id", "Retry-After", "Location", "Set-Cookie", "Server", "Content-Type"):
        for status in (400, 500, 307):
            yield f"{name} {status}", status, "{}", {name: KEY}


ECHOES = {name: (status, body, headers) for name, status, body, headers in echoes()}


class Echo:
    """A server that answers every request with the same bytes."""

    def __init__(self):
        self.answer = b""
        self.heads = []

    async def __aenter__(self):
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        return self

    async def __aexit__(self, *_):
        self._server.close()

    def set_answer(self, status, body, headers, reason="Odd"):
        lines = [f"HTTP/1.1 {status} {reason}", *(f"{name}: {value}" for name, value in headers.items())]
        head = "\r\n".join([*lines, f"Content-Length: {len(body.encode())}", "Connection: close", "", ""])
        self.answer = head.encode() + body.encode()

    async def _serve(self, reader, writer):
        self.heads.append(await reader.readuntil(b"\r\n\r\n"))
        if self.heads[-1].startswith(b"POST"):
            await reader.readuntil(b"}")
        writer.write(self.answer)
        await writer.drain()
        writer.close()


async def test_echoed_key_is_in_no_error(log):
    """No text, attribute, pickle, log record or traceback with locals of a POST or a GET contains it."""
    options = {
        "timeouts": q.Timeouts(reconcile=0.0),
        "retry": q.RetryPolicy(attempts=1),
        "rate_limiter": q.RateLimiter(10**6, 0.001),
    }
    shown, errors = {}, []
    logging.getLogger("qamera_async").debug(LOGGED)
    async with Echo() as server, q.QameraSession(KEY, base_url=server.url, **options) as session:
        for name, answer in ECHOES.items():
            for reason in ("Odd", KEY):
                server.set_answer(*answer, reason)
                for asked in (session.register_video(image_id="i"), session.list_videos()):
                    errors.append(error := await error_of(asked))
                    shown |= {
                        f"{name}, {reason == KEY}: {part}": content
                        for part, content in representations(error)
                    }

    errors_shown = {
        name: content for name, content in shown.items() if ": pickle" in name or ": traceback" in name
    }
    assert len(errors) == 4 * len(ECHOES)
    assert found(shown | {"log": log.text}) == []
    assert set(found(errors_shown, ["qamera_async"])) == errors_shown.keys()
    assert not_seen({"log": log.text}, {"log": LOGGED}) == []
    assert all(f"X-Api-Key: {KEY}".encode() in head for head in server.heads)
    assert sum("***" in str(error) for error in errors) > len(errors) / 2


@pytest.mark.parametrize(
    "garbage", ["{key}\r\n\r\n", "HTTP/1.1 {key}\r\n\r\n", "HTTP/1.1 200 OK\r\n{key}\0\r\n\r\n"]
)
async def test_key_in_invalid_http_is_in_no_error(log, quick, garbage):
    """The errors of the HTTP client quote the response; the errors of this package do not."""
    logging.getLogger("qamera_async").debug(LOGGED)
    async with Echo() as server, q.QameraSession(KEY, base_url=server.url, **quick) as session:
        server.answer = garbage.format(key=KEY).encode()
        errors = await asyncio.gather(
            session.register_video(image_id="i"), session.list_videos(), return_exceptions=True
        )

    assert [type(error) for error in errors] == [q.AmbiguousSubmissionError, q.InvalidResponseError]
    shown = {"log": log.text} | dict(item for error in errors for item in representations(error))
    assert found(shown) == []
    assert (
        not_seen(
            shown,
            {"log": LOGGED, "traceback of InvalidResponseError": "not valid HTTP", "pickle": "qamera_async"},
        )
        == []
    )


# --- a session and its files --------------------------------------------------------------------


async def errors_of(session, sandbox):
    """Return errors of all kinds: refusals, lost responses, failed jobs and timeouts."""
    errors = []
    for name, details in [
        *(("error", {"status": status, "body": f"Not with {KEY}"}) for status in (400, 401, 402, 403, 404)),
        *((name, {}) for name in ("reset_after", "truncate", "garbage", "empty", "redirect", "hang")),
    ]:
        for on in ("POST", "GET"):
            sandbox.trouble(name, on=on, **details, times=20 if on == "GET" else 1)
            ask = session.list_videos() if on == "GET" else session.register_video(image_id="i")
            errors.append(await error_of(ask))
            sandbox._script._waiting.clear()
    sandbox.trouble("fail_job")
    errors.append(await error_of((await session.register_video(image_id="i")).wait()))
    errors.append(await error_of(session.job("vid_nowhere").wait(0.05)))
    sandbox.trouble("hang", on="GET", times=20)
    errors.append(await error_of(cut_short(session.list_videos())))
    return errors


async def cut_short(awaitable):
    async with asyncio.timeout(0.1):
        await awaitable


def new_reprs():
    """Return a function that yields the repr of each object of this package made since this call.

    The sandbox may know the key. Older objects may have been left by other tests.
    """
    older = gc.get_objects()

    def reprs():
        known = {id(thing) for thing in older}
        for number, thing in enumerate(gc.get_objects()):
            module = str(getattr(type(thing), "__module__", ""))
            if id(thing) not in known and module.startswith("qamera_async") and "sandbox" not in module:
                yield f"repr {number} of a {type(thing).__name__}", repr(thing)

    return reprs


@pytest.mark.slow
async def test_session_shows_and_stores_no_key(sandbox, quick, tmp_path, log):
    """The search covers events, errors, reprs, pickles, the DEBUG log, the ledger and the report."""
    reprs = new_reprs()
    events, shown = [], {}
    logging.getLogger("qamera_async").debug(LOGGED)
    loop = asyncio.get_running_loop()
    loop.set_debug(True)
    loop.slow_callback_duration = 0.0
    ledger = tmp_path / "jobs.db"
    options = quick | {"timeouts": q.Timeouts(request=0.2, reconcile=0.1)}
    async with sandbox.session(**options, ledger=ledger, on_event=events.append) as session:
        batch = session.batch([q.VideoRequest("i", ref=f"sku-{n}") for n in range(5)], download_to=tmp_path)
        result = await batch
        for error in await errors_of(session, sandbox):
            shown |= dict(representations(error))
        shown |= dict(reprs()) | {"batch": repr(batch), "result": repr(result), "summary": result.summary()}
        shown |= {f"open {path.name}": path.read_bytes() for path in tmp_path.iterdir()}
        for name, thing in {
            "session": session,
            "settings": session._settings,
            "job": result.outcomes[0].job,
        }.items():
            try:
                shown[f"pickle of {name}"] = pickle.dumps(thing)
            except Exception as error:
                shown |= dict(representations(error, f"pickling {name}: "))
    loop.set_debug(False)
    await write_report(ledger, tmp_path / "report.html")
    shown |= {f"event {n}": repr(event).encode() + pickle.dumps(event) for n, event in enumerate(events)}
    shown |= {f"closed {path.name}": path.read_bytes() for path in tmp_path.iterdir()}
    cdn = [repr(request.headers) + request.path for request in sandbox.requests if request.origin == "cdn"]

    shown |= {"log": log.text, "cdn": cdn}
    known = {
        "log": LOGGED,
        "cdn": "user-agent",
        "str of AmbiguousSubmissionError": "accepted",
        "traceback of AmbiguousSubmissionError": "qamera_async.errors.AmbiguousSubmissionError",
        "pickle 0 of": "qamera_async",
        "pickle 5 of": "qamera_async",
        "event": "qamera_async",
        "batch": "Batch",
        "result": "sku-4",
        "summary": "credits",
        "open jobs.db-wal": "sku-4",
        "closed jobs.db": "sku-4",
        "closed report.html": "sku-4",
    }
    assert found(shown) == []
    assert not_seen(shown, known) == []
    assert key_was_sent(sandbox)
    assert len(cdn) == 5
    assert {type(event) for event in events} >= {Submitted, Finished, Failed, Ambiguous, Polled}
    assert {"open jobs.db", "open jobs.db-wal", "closed report.html"} <= shown.keys()
    assert re.search(r"Executing .* took", log.text)


async def test_unclosed_session_shows_no_key(sandbox):
    """The key is not in the ResourceWarning."""
    session = sandbox.session()
    await session.list_videos()
    with pytest.warns(ResourceWarning) as warned:
        session.__del__()
    await session.aclose()

    shown = {"warning": [str(warning.message) for warning in warned]}
    assert found(shown) == []
    assert not_seen(shown, {"warning": "QameraSession"}) == []


# --- the command --------------------------------------------------------------------------------

COMMANDS = {
    "video": ("video", "img_1", "--yes"),
    "videos": ("videos",),
    "wait": ("wait", "vid_nowhere"),
    "download": ("download", "old_000001", "--to", "clips"),
    "batch": ("batch", "catalogue.csv", "--to", "clips", "--ledger", "jobs.db", "--yes"),
}


@pytest.mark.parametrize("command", COMMANDS)
async def test_command_prints_no_key(sandbox, tmp_path, command):
    """The command runs with --debug and --json, without errors and with errors that echo the key."""
    sandbox.add_records(1)
    arguments = (*COMMANDS[command], *QUICK, "--debug", "--json", "--timeout", "0.2")
    for way, status in [("well", None), ("refused", 401), ("in trouble", 500)]:
        (tmp_path / "catalogue.csv").write_text(f"image_id,ref\nimg_1,{way} 1\nimg_2,{way} 2\n")
        if status is not None:
            sandbox.trouble("error", on="ANY", status=status, body=f"Not with {KEY}", times=100)
        ended = await qamera(*arguments, sandbox=sandbox, cwd=tmp_path)

        assert found({f"{way}: stdout": ended.out, f"{way}: stderr": ended.err}) == []
        assert status is None or ended.code != 0
        assert "***" in ended.err or status != 401
        assert "Traceback" in ended.err or status != 401
    kept = {path.name: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}

    assert found(kept) == []
    assert command != "batch" or not_seen(kept, {"jobs.db": "well 1", "report.html": "well 1"}) == []
    assert key_was_sent(sandbox)


async def test_invalid_key_is_not_printed(tmp_path):
    """Neither the whole key nor its secret part is printed."""
    key = f"{KEY} "
    ended = await qamera(
        "videos", "--debug", cwd=tmp_path, QAMERA_API_KEY=key, QAMERA_BASE_URL="http://127.0.0.1:9"
    )

    assert ended.code == 2
    assert "QAMERA_API_KEY" in ended.err
    assert found({"stdout": ended.out, "stderr": ended.err}) == []
