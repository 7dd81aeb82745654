"""A ledger of any bytes works or is refused with a LedgerError; then it is left as it is."""

import asyncio
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import attrs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import qamera_async as q
from qamera_async import LedgerFile, LedgerState
from qamera_async.ledger import ledger_at
from qamera_async.ledger.rows import Row
from qamera_async.ledger.sqlite import SqliteStorage

FUZZ = settings.get_profile("files")
ORIGIN = "https://api.example"
LONGEST = 30.0  # seconds that one look may take, on a machine that is busy with other things
VIDEO = q.Video("vid_1", "DONE", q.JobState.DONE, name="a", video_url="https://cdn.example/a.mp4")
# By the state in which it is left: whether the same ref may be ordered anew.
ANEW = {
    state: state in (LedgerState.CLAIMED, LedgerState.REFUSED, LedgerState.ABANDONED) for state in LedgerState
}


def request_of(state, number):
    return q.VideoRequest("img_" + "i" * 60, ref=f"{state.value}-{number}", suggestion="slow zoom")


def row_of(state, number):
    there = state in (LedgerState.SUBMITTED, LedgerState.DONE, LedgerState.FAILED, LedgerState.ADOPTED)
    ids = (f"vid_{state.value}_{number}",) if there else ()
    return Row(
        f"int_{state.value}_{number}",
        ORIGIN,
        request_of(state, number),
        sent_at=datetime(2026, 3, 20, 17, tzinfo=UTC),
        record_ids=ids,
        receipt=q.Receipt(ids, "batch", "order", "reservation", 10) if there else None,
        videos=(VIDEO,) if state is LedgerState.DONE else (),
        reason="why",
    )


ROWS = [(state, number) for number in range(4) for state in LedgerState]


def _becomes(row, state, _):
    return attrs.evolve(row, state=state)


async def _filled(path):
    """Make a ledger with all the rows, each first claimed and then what it is; owned by nobody who lives."""
    storage = SqliteStorage.of(str(path))
    rows = [(state, row_of(state, number)) for state, number in ROWS]
    await asyncio.gather(*(storage.claim(row, retry_failed=False) for _, row in rows))
    changes = [(row, partial(_becomes, row, state)) for state, row in rows]
    await asyncio.gather(*(storage.change(row.id, {LedgerState.CLAIMED}, change) for row, change in changes))
    return storage


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    """A ledger that was closed, and one as a killed process leaves it: the bytes of both files."""
    path = tmp_path_factory.mktemp("good") / "jobs.db"

    async def made():
        storage = await _filled(path)
        left = kept(path)
        await storage.aclose()
        return left

    left = asyncio.run(made())
    return Good(closed=(path.read_bytes(), None), left=left)


class Good(dict):
    """The files by how they were left."""

    def __repr__(self):
        return "<a good ledger>"  # what is shown of a failure are the blows, not all the bytes


@st.composite
def _blows(draw):
    """What happens to a file: the place as a part of its length, so that all of it is met."""
    kind = draw(st.sampled_from(["flip", "flip", "zero", "cut", "splice", "put", "turn"]))
    place = draw(st.one_of(st.floats(0, 1), st.integers(0, 99).map(lambda byte: -byte)))
    return kind, place, draw(st.integers(0, 2**16))


blows = st.lists(_blows(), min_size=1, max_size=3)


def struck(content, what):
    """Give the bytes after all of it; a place below zero is one of the header's bytes."""
    data = bytearray(content)
    for kind, place, number in what:
        if not data:
            break
        at = min(-place if place <= 0 and isinstance(place, int) else int(place * len(data)), len(data) - 1)
        match kind:
            case "flip":
                data[at] ^= 1 << number % 8
            case "turn":
                data[at] = number % 256
            case "zero":
                size = (1, 16, 512, 4096)[number % 4]
                data[at : at + size] = bytes(len(data[at : at + size]))
            case "cut":
                del data[at:]
            case "splice":  # a page of the file where another belongs
                page, other = at // 4096 * 4096, number * 4096 % len(data) // 4096 * 4096
                data[page : page + 4096] = data[other : other + 4096]
            case _:
                data[at:at] = number.to_bytes(3, "big")
    return bytes(data)


def put(path, content, wal):
    for name in (path, *(Path(f"{path}{more}") for more in ("-wal", "-shm", "-owners", "-new", "-journal"))):
        name.unlink(missing_ok=True)
    path.write_bytes(content)
    if wal is not None:
        Path(f"{path}-wal").write_bytes(wal)


def kept(path):
    return [name.read_bytes() if name.exists() else None for name in (path, Path(f"{path}-wal"))]


async def looked_into(path):
    """Read all there is; give the entries by their refs."""
    async with LedgerFile(path) as ledger:
        return {entry.request.ref: entry async for entry in ledger.entries()}


async def ordered_anew(path):
    """Order all again, each in a session of its own words; give the refs that would be sent."""
    ledger = ledger_at(str(path), ORIGIN)
    sent = []
    try:
        for state, number in ROWS:
            intent = q.Intent(f"new_{state.value}_{number}", request_of(state, number), datetime.now(UTC))
            try:
                if await ledger.claim(intent, retry_failed=False) is None:
                    sent.append((state, number))
                    ledger.let_go(intent)
            except (q.LedgerError, q.AmbiguousSubmissionError) as error:
                checked(error)
    finally:
        await ledger.aclose()
    return sent


def checked(error):
    assert "unexpectedly" not in str(error), error


async def tried(path):
    """Open it, read it, order from it; whether it was refused, and which refs would be sent."""
    before = kept(path)
    try:
        async with LedgerFile(path):
            pass
    except q.LedgerError as error:
        checked(error)
        assert kept(path) == before, "a file that is refused is left as it is"
        return True, []
    try:
        await looked_into(path)
    except q.LedgerError as error:
        checked(error)
    return False, await ordered_anew(path)


def run(path):
    return asyncio.run(asyncio.wait_for(tried(path), LONGEST))


@FUZZ
@given(what=blows)
def test_a_file_of_any_bytes_works_or_is_refused_untouched(good, tmp_path, what):
    """Case 64: and where it works, nothing that was paid for is ordered anew."""
    path = tmp_path / "jobs.db"
    put(path, struck(good["closed"][0], what), None)

    _, sent = run(path)

    assert [one for one in sent if not ANEW[one[0]]] == []


@FUZZ
@given(what=blows)
def test_a_wal_of_any_bytes_works_or_is_refused_untouched(good, tmp_path, what):
    """Cases 64 and 65: what a crash left, and then something happened to."""
    path = tmp_path / "jobs.db"
    content, wal = good["left"]
    put(path, content, struck(wal, what))

    run(path)


@FUZZ
@given(what=blows, more=blows)
def test_both_files_of_any_bytes_work_or_are_refused_untouched(good, tmp_path, what, more):
    """Case 64: never anything but a LedgerError."""
    path = tmp_path / "jobs.db"
    content, wal = good["left"]
    put(path, struck(content, what), struck(wal, more))

    run(path)


def test_what_is_struck_is_good_otherwise(good, tmp_path):
    """What the tests above begin with works: all rows, and just those anew that may be."""
    path = tmp_path / "jobs.db"
    for content, wal in good.values():
        put(path, content, wal)
        assert len(asyncio.run(looked_into(path))) == len(ROWS)
        put(path, content, wal)

        refused, sent = run(path)

        assert not refused
        assert sent == [one for one in ROWS if ANEW[one[0]]]


def places(content, text, *, but_after=b"\0"):
    """Where a text stands, apart from where another one is before it."""
    found, at = [], content.find(text)
    while at >= 0:
        if not content[:at].endswith(but_after):
            found.append(at)
        at = content.find(text, at + 1)
    return found


@pytest.mark.parametrize("state", [state for state in LedgerState if not ANEW[state]])
def test_what_is_damaged_in_an_index_alone_is_found(good, tmp_path, state):
    """Case 64: each row is whole, and a ref that isn't found by its index would be ordered anew."""
    path = tmp_path / "jobs.db"
    content = good["closed"][0]
    row = row_of(state, 1)
    key = f"{row.origin}{row.request.ref}".encode()
    (at,) = places(content, key, but_after=row.id.encode())
    put(path, struck(content, [("turn", -(at + len(key) - 1), ord("7"))]), None)

    refused, sent = run(path)

    assert (refused, sent) == (True, [])


def test_a_text_of_the_database_that_is_none_is_damage(good, tmp_path):
    """Case 64: also where it is in the tables' own description."""
    path = tmp_path / "jobs.db"
    content = good["closed"][0]
    (at,) = places(content, b"1 AND ref IS NOT NULL")
    put(path, struck(content, [("turn", -at, 0xB1)]), None)

    refused, sent = run(path)

    assert (refused, sent) == (True, [])
