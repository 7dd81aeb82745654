"""A file at its final name is whole: cut, resumed, restarted, refused, cancelled, killed."""

import asyncio
import errno
import json
import os
import signal
import socket
import sys
import threading
from pathlib import Path

import attrs
import pytest
from place import CLIP, ID, SIZE, halved, opened

from qamera_async import RateLimiter, RetryPolicy, Timeouts
from qamera_async.download import parts, system
from qamera_async.download.threads import awaited
from qamera_async.download.writer import Writer
from qamera_async.errors import (
    DownloadError,
    InvalidRequestError,
    QameraError,
    SessionClosedError,
    TargetExistsError,
)
from qamera_async.events import Downloading, Retrying
from qamera_async.sandbox.files import Clip

pytestmark = pytest.mark.usefixtures("no_lost_exceptions")


@pytest.fixture
async def place(tmp_path, quick):
    async with opened(tmp_path, quick) as place:
        yield place


@pytest.fixture
def silent():
    """Give a socket that is connected to and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        yield silent


# --- the plain way ----------------------------------------------------------------


async def test_a_clip_comes_whole(place):
    """At its final name, with nothing left beside it, and its path is given."""
    assert await place.fetch() == place.target
    assert place.is_whole()
    assert place.asked() == [(None, 200)]


async def test_a_thumbnail_comes_whole(place):
    """The same way."""
    path = await place.fetch(thumbnail=True)

    assert path.read_bytes().endswith(b"\xff\xd9")
    assert place.names() == ["clip.mp4"]


async def test_progress_is_told(place):
    """With each buffer and at the end; of events as well, and what the callback raises goes no further."""
    told = []

    def progress(done, total):
        told.append((done, total))
        raise RuntimeError

    await place.fetch(on_progress=progress)

    assert len(told) > 3
    assert told == sorted(told)
    assert told[-1] == (SIZE, SIZE)
    assert {total for _, total in told} == {SIZE}
    assert [(e.done, e.total) for e in place.events if isinstance(e, Downloading)] == told


async def test_a_download_takes_no_slot_of_the_quota(place, quick):
    """The CDN is not the API."""
    budget = RateLimiter(60, 60.0)
    async with place.sandbox.session(**quick | {"rate_limiter": budget}) as session:
        await session.download(place.video, place.target)

    assert place.is_whole()
    assert budget.used == 0


@pytest.mark.parametrize("listed", [True, False])
async def test_a_record_without_a_url_is_told(place, listed):
    """When it has been looked up anew once, in vain; no request is made to anybody else."""
    video = attrs.evolve(place.video, video_url=None, thumbnail=None)
    looked = []

    async def fresh(record_id):
        looked.append(record_id)
        return video if listed else None

    for thumbnail in (False, True):
        with pytest.raises(DownloadError, match="There is no") as caught:
            await place.another(fresh=fresh).file(video, place.target, thumbnail=thumbnail)
        assert (caught.value.record_id, caught.value.path) == (ID, str(place.target))
    with pytest.raises(DownloadError, match="There is no"):
        async with place.another(fresh=fresh).stream(video):
            pass

    assert looked == [ID] * 3
    assert place.asked() == []
    assert place.names() == []


async def test_a_record_whose_url_comes_late_is_looked_up_anew(place):
    """A video may be done before it has its URL; an existing target costs not even that."""
    late = attrs.evolve(place.video, video_url="")
    await place.downloader.file(late, place.target)
    assert place.is_whole()

    before = len(place.sandbox.requests)
    with pytest.raises(TargetExistsError):
        await place.downloader.file(late, place.target)

    assert len(place.sandbox.requests) == before


async def test_before_final_is_awaited_when_the_bytes_are_on_disk(place):
    """Before the name is given; what it raises is raised, and the bytes are kept."""
    seen = []

    async def note(size):
        seen.append((size, place.target.exists(), place.part.read_bytes() == CLIP))
        if len(seen) == 1:
            raise KeyError

    with pytest.raises(KeyError):
        await place.fetch(before_final=note)
    await place.fetch(before_final=note)

    assert seen == [(SIZE, False, True)] * 2
    assert place.is_whole()
    assert place.asked()[-1] == (f"bytes={SIZE}-", 416)


async def test_the_disk_has_it_before_it_has_its_name(place, monkeypatch):
    """The bytes are synced, then the name is given, then the folder is synced."""
    order = []
    for room, name in ((system, "sync"), (parts, "sync_folder")):
        real = getattr(room, name)
        monkeypatch.setattr(
            room,
            name,
            lambda what, name=name, real=real: (order.append((name, place.target.exists())), real(what)),
        )
    await place.fetch()

    assert order == [("sync", False), ("sync_folder", True)]


# --- what is there already ----------------------------------------------------------------


async def test_an_existing_target_is_left_alone(place):
    """No request is made."""
    place.target.write_bytes(b"mine")
    with pytest.raises(TargetExistsError):
        await place.fetch()
    with pytest.raises(FileExistsError):
        await place.fetch()

    assert place.target.read_bytes() == b"mine"
    assert place.asked() == []


async def test_overwrite_replaces_it_when_the_new_one_is_whole(place):
    """And not before."""
    place.target.write_bytes(b"mine")
    place.sandbox.cdn_trouble("html")
    with pytest.raises(DownloadError):
        await place.fetch(overwrite=True)
    assert place.target.read_bytes() == b"mine"

    await place.fetch(overwrite=True)

    assert place.is_whole()


@pytest.mark.parametrize("links", [True, False])
async def test_what_has_appeared_meanwhile_is_left_alone(place, monkeypatch, links):
    """Also where the file system knows no links; what has come is kept."""

    async def appear(_):
        place.target.write_bytes(b"mine")

    if not links:

        def refuse(*_, **__):
            raise OSError(errno.EPERM, "no links here")

        monkeypatch.setattr(os, "link", refuse)
    with pytest.raises(TargetExistsError):
        await place.fetch(before_final=appear)
    assert place.target.read_bytes() == b"mine"

    place.target.unlink()
    await place.fetch()

    assert place.is_whole()


async def test_a_symlink_at_the_note_is_not_followed(place):
    """It is neither read nor written through."""
    precious = place.target.with_name("precious")
    precious.write_bytes(b"mine")
    place.note.symlink_to(precious)
    await place.fetch()

    assert precious.read_bytes() == b"mine"
    assert place.names() == ["clip.mp4", "precious"]


async def test_a_part_that_was_replaced_gets_no_name(place):
    """Whoever puts something else at the .part meanwhile doesn't get it taken for the clip."""

    async def replace(_):
        place.part.unlink()
        place.part.write_bytes(b"something else")

    with pytest.raises(DownloadError, match="replaced"):
        await place.fetch(before_final=replace)

    assert place.names() == ["clip.mp4.part", "clip.mp4.part.json"]


async def test_a_part_with_a_second_name_is_left_to_it(place):
    """Its bytes belong to somebody else as well: the download starts anew beside it."""
    precious = place.target.with_name("precious")
    precious.write_bytes(b"mine")
    os.link(precious, place.part)
    await place.fetch()

    assert precious.read_bytes() == b"mine"
    assert place.target.read_bytes() == CLIP


@pytest.mark.parametrize("kind", ["folder", "pipe"])
async def test_what_is_no_file_is_refused(place, kind):
    """A folder or a pipe at the .part or the target, at once."""
    for path in (place.part, place.target):
        path.mkdir() if kind == "folder" else os.mkfifo(path)
        with pytest.raises(DownloadError):
            await place.fetch(overwrite=True)
        path.rmdir() if kind == "folder" else path.unlink()
    assert place.asked() == []


@pytest.mark.parametrize(
    "path", ["missing/clip.mp4", "", "x" * 300, "x" * 250, "x" * 246, "x" * 245, "x" * 242]
)
async def test_a_path_that_cant_be_is_told(place, path, monkeypatch):
    """A missing folder, no name, one that is too long for itself or what is beside it: without a request."""
    monkeypatch.chdir(place.target.parent)
    with pytest.raises(DownloadError):
        await place.downloader.file(place.video, path)

    assert place.names() == []
    assert place.asked() == []


async def test_the_longest_name_that_can_be(place):
    """Has just room for what is beside it."""
    longest = place.target.with_name("x" * (255 - len(".part.json.new")))

    assert await place.downloader.file(place.video, longest) == longest


@pytest.mark.parametrize("path", [None, 5, b"clip.mp4", "nul\0.mp4", "\ud800.mp4", object()])
async def test_what_is_no_path_is_refused(place, path, monkeypatch):
    """Whatever no system takes for the path of a file, with an error of this library."""
    monkeypatch.chdir(place.target.parent)
    with pytest.raises(InvalidRequestError, match="path"):
        await place.downloader.file(place.video, path)

    assert place.names() == []
    assert place.asked() == []


async def test_a_name_that_is_no_unicode_is_one(place):
    """Python's way to write a name that the system gave and that can't be decoded."""
    path = place.target.with_name(os.fsdecode(b"\xff.mp4"))

    assert (await place.downloader.file(place.video, path)).read_bytes() == CLIP


@pytest.mark.parametrize("overwrite", [False, True])
async def test_somebodys_own_part_is_left_alone(place, overwrite):
    """What no note says to be a download's is neither truncated nor resumed."""
    place.part.write_bytes(b"mine")
    with pytest.raises(DownloadError, match="no note"):
        await place.fetch(overwrite=overwrite)
    assert place.part.read_bytes() == b"mine"
    assert place.names() == ["clip.mp4.part"]
    assert place.asked() == []

    place.part.write_bytes(b"")
    await place.fetch()

    assert place.is_whole()


async def test_what_another_one_finished_is_not_fetched_again(place, monkeypatch):
    """Though the target was not there yet when it was looked for first."""
    real = parts.Part._opened

    def late(target, record):
        place.target.write_bytes(b"mine")
        return real(target, record)

    monkeypatch.setattr(parts.Part, "_opened", late)
    with pytest.raises(TargetExistsError):
        await place.fetch()

    assert place.asked() == []
    assert place.names() == ["clip.mp4"]


@pytest.mark.parametrize("step", ["locked", "linked"])
async def test_a_part_that_changes_while_it_is_opened_is_opened_anew(place, monkeypatch, step):
    """Another writer gave it its final name, or removed it, between its opening and its lock."""
    real, looks = parts.is_at, []

    def gone(descriptor, path):
        looks.append(path)
        if len(looks) == 1:
            path.unlink()
            if step == "linked":
                path.write_bytes(b"another one's")
                place.note.write_bytes(b"{}")
        return real(descriptor, path)

    monkeypatch.setattr(parts, "is_at", gone)
    await place.fetch()

    assert place.is_whole()


async def test_a_task_may_wait_for_another_ones_download(place):
    """With ``wait``: the file is fetched once, and whoever waited is told that it is there."""
    results = await asyncio.gather(place.fetch(wait=True), place.fetch(wait=True), return_exceptions=True)

    assert {type(result) for result in results} == {TargetExistsError, type(place.target)}
    assert place.asked() == [(None, 200)]
    assert place.is_whole()


@pytest.mark.parametrize("end", ["cancelled", "closed", "failed"])
async def test_waiting_for_another_ones_download_ends(place, monkeypatch, end):
    """By a cancellation, by closing the session, and by the other one's failure: then it is fetched."""
    monkeypatch.setattr("qamera_async.download._LOOK_EACH", 0.01)
    fetching = asyncio.create_task(place.fetch(before_final=lambda _: asyncio.sleep(60)))
    while not place.asked():  # the .part is locked by then
        await asyncio.sleep(0.001)
    waiting = asyncio.create_task(place.fetch(wait=True))
    await asyncio.sleep(0.05)
    assert not waiting.done()
    if end == "closed":
        await place.client.aclose()
    else:
        (fetching if end == "failed" else waiting).cancel()

    if end == "failed":
        await waiting
        assert place.is_whole()
    else:
        with pytest.raises(SessionClosedError if end == "closed" else asyncio.CancelledError):
            await waiting
    fetching.cancel()
    await asyncio.gather(fetching, return_exceptions=True)


async def test_there_is_one_writer_up_to_the_name(place):
    """Also while ``before_final`` is awaited."""

    async def meanwhile(_):
        with pytest.raises(DownloadError, match="another download"):
            await place.fetch()

    await place.fetch(before_final=meanwhile)

    assert place.is_whole()


# --- cut short ----------------------------------------------------------------


async def test_a_stall_is_resumed(place):
    """Nothing for ``Timeouts.request`` seconds is a lost connection."""
    place.sandbox.cdn_trouble("stall", after=3_000_000)
    client = place.new_client(Timeouts(request=0.1))
    await place.another(client=client).file(place.video, place.target)

    assert place.asked()[1][1] == 206
    assert place.is_whole()


async def test_attempts_are_counted_anew_after_progress(place):
    """Four cuts after 1.1 MB each are survived with two attempts."""
    place.sandbox.cdn_trouble("cut", times=4, after=1_200_000)
    await place.another(retry=RetryPolicy(attempts=2, base=0.001)).file(place.video, place.target)

    assert len(place.asked()) == 5
    assert place.is_whole()


async def test_attempts_end_without_progress(place):
    """A clip that can't be resumed and is always cut at the same place is given up."""
    place.sandbox.cdn_trouble("cut", times=9, after=3_000_000)
    place.sandbox.cdn_trouble("no_etag", times=9)
    with pytest.raises(DownloadError):
        await place.fetch()

    assert len(place.asked()) == 3
    assert place.names() == []


@pytest.mark.parametrize("status", [500, 503, 429])
async def test_a_host_in_trouble_is_asked_again(place, status):
    """5xx and 429, as often as RetryPolicy says, then raised with the status."""
    place.sandbox.cdn_trouble("error", status=status, times=2, retry_after=0)
    await place.fetch()
    assert place.is_whole()

    place.sandbox.cdn_trouble("error", status=status, times=3)
    with pytest.raises(DownloadError) as caught:
        await place.fetch(overwrite=True)

    assert caught.value.status == status
    assert caught.value.host == "127.0.0.1"
    assert place.target.read_bytes() == CLIP


@pytest.mark.parametrize("status", [204, 206, 304, 416, 418])
async def test_any_other_status_is_raised_at_once(place, status):
    """With the status; nothing is left behind."""
    place.sandbox.cdn_trouble("error", status=status)
    with pytest.raises(DownloadError) as caught:
        await place.fetch()

    assert caught.value.status == status
    assert len(place.asked()) == 1
    assert place.names() == []


async def test_a_later_call_goes_on(place):
    """With Range, as the note says what the bytes are."""
    await halved(place)
    size = place.part.stat().st_size
    await place.fetch()

    assert place.asked()[-1] == (f"bytes={size}-", 206)
    assert place.sandbox.requests[-1].headers["If-Range"] == Clip(SIZE).etag
    assert place.is_whole()


async def test_a_416_for_another_file_starts_anew(place):
    """As many bytes prove nothing: only the same ETag says that all of it is here."""

    async def refuse(_):
        raise KeyError

    with pytest.raises(KeyError):
        await place.fetch(before_final=refuse)
    place.sandbox.cdn_trouble("other_etag")
    place.sandbox.cdn_trouble("wrong_range", shift=0)
    await place.fetch()

    assert place.asked()[1:] == [(f"bytes={SIZE}-", 416), (None, 200)]
    assert place.is_whole()


async def test_no_note_outlives_its_bytes(place):
    """A kill in the middle of a clip without ETag leaves nothing that says what an earlier one was."""
    await halved(place)
    for name in ("no_etag", "ignore_range"):
        place.sandbox.cdn_trouble(name)
    place.sandbox.cdn_trouble("stall", after=3_000_000)
    place.events.clear()
    task = asyncio.create_task(place.fetch())
    while not place.events:
        await asyncio.sleep(0.001)
    noted = json.loads(place.note.read_text("utf-8"))
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task

    assert noted["etag"] == ""
    assert place.names() == []


@pytest.mark.parametrize(
    "change",
    [
        {"record": "vid_other video"},
        {"record": f"{ID} thumbnail"},
        {"boot": "another run of the machine"},
        {"etag": 'W/"weak"'},
        {"total": 5},
        {"total": "many"},
        {"etag": None},
    ],
)
async def test_a_note_of_something_else_starts_anew(place, change):
    """Another record, another run of the machine, no strong ETag, a size that can't be."""
    await halved(place)
    place.note.write_text(json.dumps(json.loads(place.note.read_text("utf-8")) | change), "utf-8")
    await place.fetch()

    assert place.asked()[-1] == (None, 200)
    assert place.is_whole()


@pytest.mark.parametrize("content", [b"", b"[]", b"{", b"\xff", b"[" * 60_000])
async def test_a_broken_note_starts_anew(place, content):
    """Whatever is in it."""
    await halved(place)
    place.note.write_bytes(content)
    await place.fetch()

    assert place.asked()[-1] == (None, 200)
    assert place.is_whole()


async def test_a_chunked_body_that_ends_properly_is_whole(place):
    """A cut one is resumed."""
    place.sandbox.cdn_trouble("chunked", times=2)
    place.sandbox.cdn_trouble("cut", after=3_000_000)
    await place.fetch()

    assert [status for _, status in place.asked()] == [200, 206]
    assert place.is_whole()


MP4 = Clip(None).read(0, Clip(None).size)
HALF = len(MP4) // 2
BEGUN = b'HTTP/1.1 200 OK\r\nETag: "a"\r\nContent-Length: %d\r\n\r\n' % len(MP4) + MP4[:HALF]


def rest(start, stop, body, framing):
    """Give a 206 whose body is sent as it is."""
    line = b"bytes %d-%d/%d" % (start, stop - 1, len(MP4))
    return b'HTTP/1.1 206 OK\r\nETag: "a"\r\nContent-Range: %s\r\n%s\r\n\r\n' % (line, framing) + body


def chunk(body):
    return b"%x\r\n%s\r\n" % (len(body), body)


@pytest.mark.parametrize(
    "replies",
    [
        # A part of what was asked for, then the rest.
        [
            BEGUN,
            rest(HALF, HALF + 9, MP4[HALF : HALF + 9], b"Content-Length: 9"),
            rest(HALF + 9, len(MP4), MP4[HALF + 9 :], b"Content-Length: %d" % (len(MP4) - HALF - 9)),
        ],
        # The connection ends the rest, too early.
        [
            BEGUN,
            rest(HALF, len(MP4), MP4[HALF:-9], b"Connection: close"),
            rest(len(MP4) - 9, len(MP4), MP4[-9:], b"Connection: close"),
        ],
        # More than there can be: all of it is thrown away.
        [
            BEGUN,
            rest(HALF, len(MP4), chunk(MP4[HALF:] + b"x") + b"0\r\n\r\n", b"Transfer-Encoding: chunked"),
            BEGUN + MP4[HALF:],
        ],
        # A length that contradicts the range.
        [
            BEGUN,
            rest(HALF, len(MP4), MP4[HALF:] + b"x", b"Content-Length: %d" % (len(MP4) - HALF + 1)),
            BEGUN + MP4[HALF:],
        ],
        # Nothing left to send, says a server that means another file.
        [
            BEGUN,
            b'HTTP/1.1 416 No\r\nETag: "b"\r\nContent-Range: bytes */%d\r\nContent-Length: 0\r\n\r\n' % HALF,
            BEGUN + MP4[HALF:],
        ],
    ],
)
async def test_the_rest_is_counted(place, replies):
    """Whatever a server sends as the rest, the file is whole or thrown away."""
    left = list(replies)

    async def answer(reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        writer.write(left.pop(0))
        await writer.drain()
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/"
        await place.downloader.file(attrs.evolve(place.video, video_url=url), place.target)

    assert left == []
    assert place.target.read_bytes() == MP4
    assert place.names() == ["clip.mp4"]


# --- refused ----------------------------------------------------------------


@pytest.mark.parametrize("status", [400, 401, 403, 404, 410])
async def test_a_url_that_is_still_the_same_is_given_up(place, status):
    """No second request; nor where the record is gone from the list."""
    place.sandbox.cdn_trouble("error", status=status, times=2)
    with pytest.raises(DownloadError, match="same") as caught:
        await place.fetch()
    assert caught.value.status == status

    async def gone(_):
        return None

    with pytest.raises(DownloadError, match="no longer listed"):
        await place.another(fresh=gone).file(place.video, place.target)

    assert len(place.asked()) == 2


# --- the disk ----------------------------------------------------------------


@pytest.mark.parametrize("call", ["pwritev", "fdatasync", "close"])
async def test_a_full_disk_leaves_no_file(place, monkeypatch, call):
    """Whether it is found at a write, at the sync or at the close; later it is fetched after all."""
    real = getattr(os, call)
    failed = []

    def full(number, *rest):
        big = os.fstat(number).st_size >= SIZE
        if call == "pwritev" or (big and not failed):
            failed.append(number)
            if call == "close":
                real(number)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(number, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(os, call, full)
        with pytest.raises(DownloadError, match="No space left"):
            await place.fetch()
    assert failed
    assert place.names() == []

    await place.fetch()

    assert place.is_whole()


async def test_the_last_write_counts(place, monkeypatch):
    """It fails when all has been read: there is no file, and what was written before is resumed."""
    real = system.write_at

    def write_at(descriptor, pieces, at):
        if at + sum(map(len, pieces)) == SIZE:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(descriptor, pieces, at)

    with monkeypatch.context() as patch:
        patch.setattr(system, "write_at", write_at)
        with pytest.raises(DownloadError, match="No space left"):
            await place.fetch()
    kept = place.part.stat().st_size
    assert 0 < kept < SIZE
    await place.fetch()

    assert place.asked()[-1] == (f"bytes={kept}-", 206)
    assert place.is_whole()


async def test_a_name_that_cant_be_given_is_told(place, monkeypatch):
    """By what the system says; the bytes are kept."""

    def fail(*_, **__):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with monkeypatch.context() as patch:
        patch.setattr(os, "link", fail)
        with pytest.raises(DownloadError, match="Input/output"):
            await place.fetch()
    await place.fetch()

    assert place.asked()[-1] == (f"bytes={SIZE}-", 416)
    assert place.is_whole()


async def test_a_part_that_cant_be_opened_is_told(place, monkeypatch):
    """By what the system says, before any request."""
    real = os.open

    def refuse(path, *rest):
        if Path(path) == place.part:
            raise OSError(errno.EACCES, os.strerror(errno.EACCES))
        return real(path, *rest)

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(DownloadError, match="Permission denied"):
        await place.fetch()

    assert place.asked() == []


async def test_a_part_that_cant_be_emptied_is_removed(place, monkeypatch):
    """It is neither mixed with the new bytes nor resumed."""
    await halved(place)
    place.sandbox.cdn_trouble("other_etag")

    def fail(*_):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with monkeypatch.context() as patch:
        patch.setattr(os, "ftruncate", fail)
        with pytest.raises(DownloadError, match="Input/output"):
            await place.fetch()
    assert place.names() == []

    await place.fetch()

    assert place.is_whole()


async def test_a_slow_download_is_written_each_second(place, monkeypatch):
    """So that a kill costs no more of it, and progress is told."""
    monkeypatch.setattr("qamera_async.download.ahead._PATIENCE", 0.0)
    told = []
    await place.fetch(on_progress=lambda done, _: told.append(done))

    assert len(told) > SIZE / 300_000
    assert place.is_whole()


async def test_what_a_sync_on_the_way_reports_counts(place, monkeypatch):
    """The system reports a lost write once: whoever hears of it must tell, and nothing of it is resumed."""
    monkeypatch.setattr("qamera_async.download.ahead._SYNC_EACH", 1)
    calls = []

    def once(descriptor):
        calls.append(descriptor)
        if len(calls) == 1:
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(system, "sync", once)
    with pytest.raises(DownloadError, match="Input/output"):
        await place.fetch()
    assert place.names() == []

    await place.fetch()

    assert len(calls) > 2
    assert place.is_whole()


async def test_nothing_is_written_once_a_sync_has_failed(place, monkeypatch):
    """The file is closed when nobody writes any more, so that no byte gets into somebody else's."""
    monkeypatch.setattr("qamera_async.download.ahead._SYNC_EACH", 1)
    real, real_close, failed, closed, late = system.write_at, os.close, threading.Event(), [], []

    def sync(_):
        failed.set()
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    def write_at(descriptor, pieces, at):
        if at > 0:
            failed.wait(5)
            threading.Event().wait(0.2)  # a slow disk
            late.extend(number for number in closed if number == descriptor)
        return real(descriptor, pieces, at)

    def close(descriptor):
        closed.append(descriptor)
        real_close(descriptor)

    monkeypatch.setattr(system, "sync", sync)
    monkeypatch.setattr(system, "write_at", write_at)
    monkeypatch.setattr(Writer, "close", lambda writer, real=Writer.close: (patched(close), real(writer)))

    def patched(close):
        monkeypatch.setattr(os, "close", close)

    with pytest.raises(DownloadError, match="Input/output"):
        await place.fetch()
    await asyncio.sleep(0.5)

    assert late == []
    assert place.names() == []


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO])
async def test_cancelled_while_a_write_fails_there_is_no_gap(place, monkeypatch, number):
    """What comes after a failed write is not written; what was there before counts if the disk was full."""
    real, writes, go_on = system.write_at, [], threading.Event()

    def write_at(descriptor, pieces, at):
        writes.append(at)
        if len(writes) == 2:
            go_on.wait(5)
            raise OSError(number, os.strerror(number))
        return real(descriptor, pieces, at)

    with monkeypatch.context() as patch:
        patch.setattr(system, "write_at", write_at)
        place.sandbox.cdn_trouble("slow", rate=20_000_000)
        task = asyncio.create_task(place.fetch())
        while len(writes) < 2:
            await asyncio.sleep(0.001)
        await asyncio.sleep(0.05)  # more comes meanwhile
        task.cancel()
        await asyncio.sleep(0.01)
        go_on.set()
        with pytest.raises(asyncio.CancelledError):
            await task
    assert len(writes) == 2
    kept = place.part.read_bytes() if place.part.exists() else b""
    assert CLIP.startswith(kept)
    assert (len(kept) > 0) == (number == errno.ENOSPC)

    await place.fetch()

    assert place.asked()[-1] == ((f"bytes={len(kept)}-", 206) if kept else (None, 200))
    assert place.is_whole()


def test_a_writer_is_closed_when_nobody_uses_it(tmp_path, monkeypatch):
    """Not under a write or a sync; from then on it says no."""
    writer = Writer(os.open(tmp_path / "a", os.O_RDWR | os.O_CREAT))
    order, begun, go_on = [], threading.Barrier(3), threading.Event()

    def slow(name):
        begun.wait(5)
        go_on.wait(5)
        order.append(name)
        return 1

    monkeypatch.setattr(system, "write_at", lambda *_: slow("write"))
    monkeypatch.setattr(system, "sync", lambda _: slow("sync"))
    threads = [threading.Thread(target=writer.write, args=([b"x"],)), threading.Thread(target=writer.sync)]
    for thread in threads:
        thread.start()
    begun.wait(5)
    closing = threading.Thread(target=lambda: (writer.close(), order.append("close")))
    closing.start()
    closing.join(0.05)
    go_on.set()
    for thread in (*threads, closing):
        thread.join(5)
    writer.close()

    assert sorted(order[:2]) == ["sync", "write"]
    assert order[2:] == ["close"]
    for call in (writer.sync, writer.restart, lambda: writer.write([b"x"])):
        with pytest.raises(OSError, match="Bad file"):
            call()


def test_whatever_ends_a_write_is_the_last_of_the_file(tmp_path, monkeypatch):
    """Not only what the system says: a gap is a gap."""
    writer = Writer(os.open(tmp_path / "a", os.O_RDWR | os.O_CREAT))
    writer.write([b"good"])
    with monkeypatch.context() as patch:
        patch.setattr(system, "write_at", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            writer.write([b"lost"])
    for call in (writer.sync, writer.restart, lambda: writer.write([b"x"])):
        with pytest.raises(OSError, match="Input/output"):
            call()
    writer.close()

    assert (writer.size, writer.is_lost) == (4, True)
    assert (tmp_path / "a").read_bytes() == b"good"


async def test_a_short_write_is_continued(place, monkeypatch):
    """The system may take less than it is given."""
    real = os.pwritev
    monkeypatch.setattr(
        os, "pwritev", lambda number, pieces, at: real(number, [bytes(pieces[0][:70_001])], at)
    )
    await place.fetch()

    assert place.is_whole()


# --- cancelled, closed, killed ----------------------------------------------------------------


async def test_a_cancelled_download_can_be_resumed(place):
    """What has come is on the disk, with its note; the lock is free."""
    place.sandbox.cdn_trouble("slow", rate=20_000_000)
    task = asyncio.create_task(place.fetch())
    while not any(isinstance(event, Downloading) for event in place.events):
        await asyncio.sleep(0.001)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    size = place.part.stat().st_size
    assert size >= 1_000_000
    assert place.part.read_bytes() == CLIP[:size]
    assert not place.target.exists()

    await place.fetch()

    assert place.asked()[-1] == (f"bytes={size}-", 206)
    assert place.is_whole()


async def test_cancelled_at_any_turn_no_file_is_wrong(place):
    """After each cancellation what is there is a beginning of the clip, and in the end it is whole."""
    for turns in range(0, 200, 3):
        task = asyncio.create_task(place.fetch())
        for _ in range(turns):
            await asyncio.sleep(0)
        task.cancel()
        try:
            await task
        except asyncio.CancelledError:
            assert not place.target.exists() or place.target.read_bytes() == CLIP
        else:
            assert place.target.read_bytes() == CLIP
        if place.part.exists():
            assert CLIP.startswith(place.part.read_bytes())
        place.target.unlink(missing_ok=True)
    await place.fetch()

    assert place.is_whole()


@pytest.mark.parametrize("last", [False, True])
async def test_a_write_under_way_is_waited_for(place, monkeypatch, last):
    """A cancelled download doesn't close the file under its thread, nor write anything twice."""
    real, under_way, closed_early = Writer.write, [], []

    def slow(part, pieces):
        if last and part.size + sum(map(len, pieces)) < SIZE:
            real(part, pieces)
            return
        under_way.append(1)
        threads_go_on.wait(2)
        real(part, pieces)
        under_way.pop()

    real_close = parts.Part.close
    monkeypatch.setattr(Writer, "write", slow)
    monkeypatch.setattr(parts.Part, "close", lambda part: (closed_early.extend(under_way), real_close(part)))
    threads_go_on = threading.Event()
    task = asyncio.create_task(place.fetch())
    while not under_way:
        await asyncio.sleep(0.001)
    task.cancel()
    await asyncio.sleep(0.01)
    task.cancel()
    await asyncio.sleep(0.01)
    threads_go_on.set()
    with pytest.raises(asyncio.CancelledError):
        await task

    assert closed_early == []
    assert CLIP.startswith(place.part.read_bytes())


async def test_work_that_is_cancelled_itself_ends_who_waits_for_it():
    """As by a thread pool that is shut down; no exception is lost, and none is looked for."""
    work = asyncio.get_running_loop().create_future()
    waiting = asyncio.create_task(awaited(work))
    await asyncio.sleep(0)
    waiting.cancel()
    await asyncio.sleep(0)
    work.cancel()

    with pytest.raises(asyncio.CancelledError):
        await waiting


async def test_cancelled_while_the_file_is_opened_frees_it(place):
    """What a thread has opened for nobody is closed again."""
    for _ in range(20):
        task = asyncio.create_task(place.fetch())
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    await place.fetch()

    assert place.is_whole()


@pytest.mark.parametrize("phase", ["read", "read without length", "connect", "pause"])
async def test_closing_the_session_ends_a_download(place, quick, phase, silent):
    """With SessionClosedError and a .part that can be resumed, whatever it was at."""
    retry = RetryPolicy(attempts=3, base=60.0)
    client = place.new_client(Timeouts(request=60))
    place.sandbox.cdn_trouble("cut" if phase == "pause" else "stall", after=3_000_000)
    if phase == "read without length":
        place.sandbox.cdn_trouble("no_length")
    video = place.video
    if phase == "connect":
        port = silent.getsockname()[1]
        video = attrs.evolve(video, video_url=f"http://127.0.0.1:{port}/")
    downloader = place.another(client=client, retry=retry)
    task = asyncio.create_task(downloader.file(video, place.target))
    while phase != "connect" and not any(
        isinstance(e, Retrying if phase == "pause" else Downloading) for e in place.events
    ):
        await asyncio.sleep(0.001)
    await asyncio.sleep(0.05)
    await client.aclose()
    with pytest.raises(SessionClosedError):
        await asyncio.wait_for(task, 1)
    with pytest.raises(SessionClosedError):
        await downloader.file(video, place.target)

    assert not place.target.exists()
    assert place.part.exists() == (phase != "connect")


KILLED = """
import asyncio, sys
sys.path.insert(0, {tests!r})
from qamera_async import JobState, RetryPolicy, Timeouts, Video
from qamera_async._transport import ConnectionSettings, DownloadClient, Secret
from qamera_async.download import Downloader

async def main():
    client = DownloadClient(ConnectionSettings(api_key=Secret({key!r}), base_url={url!r}), Timeouts())
    downloader = Downloader(client, RetryPolicy(), Timeouts(), lambda event: None, lambda _: asyncio.sleep(0))
    video = Video({id!r}, "DONE", JobState.DONE, video_url={video!r})
    await downloader.file(video, {target!r})
    await client.aclose()

asyncio.run(main())
"""


async def test_killed_in_the_middle_it_is_resumed(place):
    """After kill -9 no file is at the final name; the rest is fetched with Range."""
    place.sandbox.cdn_trouble("slow", rate=10_000_000)
    code = KILLED.format(
        tests=str(Path(__file__).parent),
        key=place.sandbox.api_key,
        url=place.sandbox.url,
        id=ID,
        video=place.video.video_url,
        target=str(place.target),
    )
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", code)
    while not (place.part.exists() and place.part.stat().st_size > 1_000_000):
        assert process.returncode is None
        await asyncio.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    await process.wait()
    assert not place.target.exists()
    size = place.part.stat().st_size

    await place.fetch()

    assert 1_000_000 < size < SIZE
    assert place.asked()[-1] == (f"bytes={size}-", 206)
    assert place.is_whole()


# --- a stream ----------------------------------------------------------------


async def test_a_stream_gives_all_of_it(place):
    """After a busy host and an expired URL."""
    place.sandbox.cdn_trouble("error", status=503)
    place.sandbox.cdn_trouble("expired")
    async with place.downloader.stream(place.video) as pieces:
        assert b"".join([piece async for piece in pieces]) == CLIP

    assert [status for _, status in place.asked()] == [503, 403, 200]
    assert place.events[-1] == Downloading(ID, SIZE, SIZE)


@pytest.mark.parametrize("names", [["cut"], ["cut", "chunked"], ["cut", "no_length"]])
async def test_a_stream_that_ends_early_raises(place, names):
    """In the iteration, whatever should have ended it."""
    for name in names:
        place.sandbox.cdn_trouble(name, **({"after": 3_000_000} if name == "cut" else {}))
    got = b""
    with pytest.raises(DownloadError):
        async with place.downloader.stream(place.video) as pieces:
            async for piece in pieces:
                got += piece

    assert got
    assert CLIP.startswith(got)


async def test_leaving_a_stream_closes_its_connection(place):
    """What is not wanted is not fetched."""
    place.sandbox.cdn_trouble("stall", after=3_000_000)
    async with place.downloader.stream(place.video) as pieces:
        async for _ in pieces:
            break

    async with asyncio.timeout(1):
        while any(c.transport for c in place.sandbox._cdn._runner.server.connections):
            await asyncio.sleep(0.001)


async def test_a_stream_refuses_a_page(place):
    """Before anything is handed out."""
    place.sandbox.cdn_trouble("html")
    with pytest.raises(DownloadError, match="page"):
        async with place.downloader.stream(place.video):
            pass


async def test_errors_tell_the_host_and_no_more(place):
    """A URL may be signed: neither it nor the key is in an error, its repr or its cause."""
    signed = f"{place.video.video_url}?signature=hush"
    place.sandbox.cdn_trouble("cut", times=9, after=0)
    with pytest.raises(QameraError) as caught:
        await place.downloader.file(attrs.evolve(place.video, video_url=signed), place.target)

    shown = f"{caught.value!r} {caught.value} {caught.value.__dict__} {caught.value.__cause__!r}"
    assert "hush" not in shown
    assert "aiohttp" not in str(type(caught.value.__cause__))
    assert caught.value.host == "127.0.0.1"
