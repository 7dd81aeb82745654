"""A ledger of any bytes works or is refused with a LedgerError; then it is left as it is."""

import asyncio
from bisect import bisect_right
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import attrs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import qamera_async as q
from qamera_async.ledger import LedgerFile, LedgerState
from qamera_async.ledger.places import ledger_at
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
FRAME, WAL_HEADER = 24 + 4096, 32  # bytes of a -wal


def _becomes(row, state, _):
    return attrs.evolve(row, state=state)


def told(row):
    """Give what is shown of a row or an entry."""
    return row.id, row.origin, row.request, row.state, row.record_ids, row.receipt, row.videos


def told_later(row):
    """Give what is shown of a row that was written: what a dead owner was sending is ambiguous."""
    return told(_becomes(row, LedgerState.AMBIGUOUS, row) if row.state is LedgerState.SENDING else row)


async def _filled(path):
    """Make a ledger with all the rows, each first claimed and then what it is; owned by nobody who lives.

    Gives with it what the ledger said after each of the commits, by the refs.
    """
    storage = SqliteStorage.of(str(path))
    rows = [(state, row_of(state, number)) for state, number in ROWS]
    await storage.open()
    written = [{}]
    for _, row in rows:
        await storage.claim(row, retry_failed=False)
        written.append(written[-1] | {row.request.ref: row})
    for state, row in rows:
        await storage.change(row.id, {LedgerState.CLAIMED}, partial(_becomes, row, state))
        written.append(written[-1] | {row.request.ref: attrs.evolve(row, state=state)})
    return storage, written


def commits(wal):
    """Give where each commit ends in a -wal: its last frame says how large the file is then."""
    salts = wal[16:24]
    ends = []
    for at in range(WAL_HEADER, len(wal) - FRAME + 1, FRAME):
        if wal[at + 8 : at + 16] != salts:
            break  # of an earlier round
        if any(wal[at + 4 : at + 8]):
            ends.append(at + FRAME)
    return ends


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    """A ledger that was closed, and one as a killed process leaves it: the bytes of both files."""
    path = tmp_path_factory.mktemp("good") / "jobs.db"

    async def made():
        storage, written = await _filled(path)
        left = kept(path)
        await storage.aclose()
        return left, written

    left, written = asyncio.run(made())
    return Good({"closed": (path.read_bytes(), None), "left": left}, written)


class Good(dict):
    """The files by how they were left, and what was written to the ledger, commit by commit."""

    def __init__(self, files, written):
        super().__init__(files)
        self.written = [{ref: told_later(row) for ref, row in rows.items()} for rows in written]
        self.ends = commits(files["left"][1])

    def before(self, wal):
        """Give what the commits say that are in a -wal whole, before the first byte that isn't as it was."""
        pairs = enumerate(zip(self["left"][1], wal, strict=False))
        same = next((at for at, (one, other) in pairs if one != other), len(wal))
        return self.written[bisect_right(self.ends, same)]

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
    """Read all there is; give the entries, and the error that ended it before it was all."""
    entries = []
    try:
        async with LedgerFile(path) as ledger:
            async for entry in ledger.entries():
                entries.append(entry)  # noqa: PERF401 - what came before an error is wanted
    except q.LedgerError as error:
        return entries, error
    return entries, None


async def ordered_anew(path, orders=ROWS):
    """Order all again; give the refs that would be sent, which are those that could be claimed."""
    ledger = ledger_at(str(path), ORIGIN)
    sent = []
    try:
        for state, number in orders:
            intent = q.Intent(f"new_{state.value}_{number}", request_of(state, number), datetime.now(UTC))
            try:
                if await ledger.claim(intent, retry_failed=False) is None:
                    sent.append(intent.request.ref)
                    ledger.let_go(intent)
            except (q.LedgerError, q.AmbiguousSubmissionError) as error:
                checked(error)
    finally:
        await ledger.aclose()
    return sent


def checked(error):
    assert "unexpectedly" not in str(error), error


@attrs.frozen
class Found:
    """What came of a damaged ledger.

    ``refused``: it could not be opened. ``shown``: its rows by their refs; ``whole``: no error ended them.
    ``sent``: the refs that were ordered from it.
    """

    refused: bool
    shown: dict
    whole: bool
    sent: list


async def tried(path):
    """Open it, read it, order from it."""
    before = kept(path)
    try:
        async with LedgerFile(path):
            pass
    except q.LedgerError as error:
        checked(error)
        sent = await ordered_anew(path, ROWS[:1])
        assert kept(path) == before, "a file that is refused is left as it is"
        return Found(refused=True, shown={}, whole=False, sent=sent)
    entries, error = await looked_into(path)
    if error is not None:
        checked(error)
    shown = {entry.request.ref: told(entry) for entry in entries}
    assert len(shown) == len(entries)
    return Found(refused=False, shown=shown, whole=error is None, sent=await ordered_anew(path))


def run(path):
    return asyncio.run(asyncio.wait_for(tried(path), LONGEST))


def may_be_sent(rows):
    """Give the refs that are ordered anew where these are the rows: those without, or whose row allows it."""
    refs = [request_of(state, number).ref for state, number in ROWS]
    return [ref for ref in refs if ref not in rows or ANEW[rows[ref][3]]]


def checked_for_money(found, rows):
    """No row is shown that isn't one of these, and no order goes out that they don't allow.

    Where the ledger is refused, none goes out at all.
    """
    if found.refused:
        assert found.sent == []
    elif found.whole:
        assert found.shown == rows
        assert set(found.sent) <= set(may_be_sent(rows))
    else:
        assert found.shown.items() <= rows.items()
        assert set(found.sent) <= set(may_be_sent(rows))


@FUZZ
@given(what=blows)
def test_a_file_of_any_bytes_works_or_is_refused_untouched(good, tmp_path, what):
    """Case 64: where it works, it shows what was written, and nothing that was paid for is ordered anew."""
    path = tmp_path / "jobs.db"
    put(path, struck(good["closed"][0], what), None)

    found = run(path)

    checked_for_money(found, good.written[-1])


@FUZZ
@given(what=blows)
def test_a_wal_of_any_bytes_works_or_is_refused_untouched(good, tmp_path, what):
    """Cases 64 and 65: what a crash left, and then something happened to.

    What is before the damage counts, to the last commit. What comes after it is forgotten, and nobody can see
    that it was there: a cut -wal is what a crash leaves, too. So the last of what was paid for can be ordered
    anew, and nothing else.
    """
    path = tmp_path / "jobs.db"
    content, wal = good["left"]
    damaged = struck(wal, what)
    put(path, content, damaged)

    found = run(path)

    checked_for_money(found, good.before(damaged))
    assert found.refused or found.whole
    assert found.refused or found.sent == may_be_sent(good.before(damaged))
    assert found.refused == (len(damaged) <= WAL_HEADER)


@FUZZ
@given(what=blows, more=blows)
def test_both_files_of_any_bytes_work_or_are_refused_untouched(good, tmp_path, what, more):
    """Case 64: never anything but a LedgerError; and what is in the -wal before its damage still counts."""
    path = tmp_path / "jobs.db"
    content, wal = good["left"]
    damaged = struck(wal, more)
    put(path, struck(content, what), damaged)

    found = run(path)

    checked_for_money(found, good.before(damaged))


@pytest.mark.parametrize("lost", [1, 2, 10, 30, 60])
def test_of_a_wal_that_was_cut_the_last_commits_are_forgotten_and_no_others(good, tmp_path, lost):
    """Cases 64 and 65, to the commit: the refs that were paid for in what is lost would be paid for twice."""
    path = tmp_path / "jobs.db"
    content, wal = good["left"]
    put(path, content, wal[: good.ends[-lost - 1] + FRAME - 1])

    found = run(path)

    assert not found.refused
    assert found.shown == good.written[-lost - 1]
    assert found.sent == may_be_sent(good.written[-lost - 1])


def test_what_is_struck_is_good_otherwise(good, tmp_path):
    """What the tests above begin with works: all rows, and just those anew that may be."""
    path = tmp_path / "jobs.db"
    for content, wal in good.values():
        put(path, content, wal)

        found = run(path)

        assert (found.refused, found.whole) == (False, True)
        assert found.shown == good.written[-1]
        assert len(found.shown) == len(ROWS)
        assert found.sent == [request_of(*one).ref for one in ROWS if ANEW[one[0]]]
    assert len(good.ends) == len(good.written) - 1


@pytest.mark.parametrize("length", [1, 2, 15, 99])
def test_a_file_of_a_few_bytes_is_refused_and_its_wal_is_left(good, tmp_path, length):
    """Case 64: SQLite takes a single byte for an empty file, and would remove what is paid for beside it."""
    path = tmp_path / "jobs.db"
    content, wal = good["left"]
    put(path, content[:length], wal)

    found = run(path)

    assert (found.refused, found.sent) == (True, [])


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

    found = run(path)

    assert (found.refused, found.sent) == (True, [])


@pytest.mark.parametrize("state", [state for state in LedgerState if not ANEW[state]])
@pytest.mark.parametrize("text", ['"id":"int_', '"image_id":"img_', '"suggestion":"slow', '"kind":"Video'])
def test_what_is_damaged_in_a_row_alone_is_not_shown_and_not_ordered_anew(good, tmp_path, state, text):
    """Case 64: where the database is sound, and the row still reads as one."""
    path = tmp_path / "jobs.db"
    content = good["closed"][0]
    row = row_of(state, 1)
    at = content.index(text.encode(), content.rindex(f'{{"id":"{row.id}"'.encode())) + len(text) - 1
    put(path, struck(content, [("turn", -at, ord("7"))]), None)

    found = run(path)

    assert (found.refused, found.whole) == (False, False)
    assert row.request.ref not in found.shown
    assert row.request.ref not in found.sent


def test_a_text_of_the_database_that_is_none_is_damage(good, tmp_path):
    """Case 64: also where it is in the tables' own description."""
    path = tmp_path / "jobs.db"
    content = good["closed"][0]
    (at,) = places(content, b"1 AND ref IS NOT NULL")
    put(path, struck(content, [("turn", -at, 0xB1)]), None)

    found = run(path)

    assert (found.refused, found.sent) == (True, [])
