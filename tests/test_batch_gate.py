"""The gate of a batch: how many orders may end in doubt one after the other, whatever ends when."""

import pytest

import qamera_async as q
from qamera_async._batch.gate import MOST_IN_DOUBT, Gate
from qamera_async.sandbox import Sandbox

INTENT = q.Intent("1", q.VideoRequest("i"), None)


@pytest.fixture
def gate():
    return Gate(q.RetryPolicy())


def doubt():
    return q.AmbiguousSubmissionError("lost", intent=INTENT)


def sent(gate, number):
    """Let so many in and send them; give their numbers."""
    for _ in range(number):
        assert gate.is_open
        gate.enter()
    return [gate.send(None) for _ in range(number)]


def test_what_is_inside_may_all_end_in_doubt(gate):
    """Five are inside, sent or not, and no sixth comes in."""
    gate.enter()
    sent(gate, MOST_IN_DOUBT - 1)

    assert not gate.is_open


def test_an_answer_lets_in_as_many_as_have_been_sent_before_it(gate):
    """Those that are looked into for long hold up nobody, once what was sent after them is answered."""
    numbers = sent(gate, MOST_IN_DOUBT)
    assert not gate.is_open
    gate.answered(numbers[-1])
    gate.leave(numbers[-1])

    assert len(sent(gate, MOST_IN_DOUBT)) == MOST_IN_DOUBT
    assert not gate.is_open


def test_what_was_sent_before_an_answer_is_in_no_row(gate):
    """Its doubt may be known later, and doesn't count; those sent after the answer do."""
    early = sent(gate, MOST_IN_DOUBT)
    gate.answered(early[-1])
    late = sent(gate, MOST_IN_DOUBT)

    assert [gate.in_doubt(number, doubt()) for number in (*early[:-1], *late[:-1])] == [None] * 8
    limit = gate.in_doubt(late[-1], doubt())
    assert isinstance(limit, q.AmbiguityLimitError)
    assert len(limit.errors) == MOST_IN_DOUBT


def test_an_early_one_that_is_answered_late_ends_no_later_row(gate):
    """What was sent first says nothing of how the server is now."""
    early, *others, last = sent(gate, MOST_IN_DOUBT)
    gate.answered(others[-1])
    gate.in_doubt(last, doubt())
    gate.answered(early)
    row = sent(gate, MOST_IN_DOUBT - 1)

    assert not gate.is_open
    assert [gate.in_doubt(number, doubt()) for number in row[:-1]] == [None] * 3
    assert isinstance(gate.in_doubt(row[-1], doubt()), q.AmbiguityLimitError)


def test_an_order_that_goes_out_again_has_the_later_place(gate):
    """Its first attempt reached nobody, and is in no row."""
    first, second = sent(gate, 2)
    again = gate.send(first)
    gate.answered(second)

    assert again > second
    assert len(sent(gate, MOST_IN_DOUBT - 1)) == MOST_IN_DOUBT - 1
    assert not gate.is_open


async def test_orders_that_were_held_up_are_in_the_row_of_those_they_go_out_with(quick):
    """Orders of a kind wait for the price of its first; meanwhile others are answered, and then none is."""
    requests = [q.VideoRequest(f"img_{n}", provider="ab"[n % 2]) for n in range(120)]
    async with Sandbox(job_seconds=0.05, quota=None, credits=10**6) as sandbox, sandbox.session(**quick) as s:
        for seconds in (0.0, 0.3, *[0.0] * 3):
            sandbox.trouble("slow", seconds=seconds)
        sandbox.trouble("error", status=500, times=1000)
        result = await s.batch(requests, max_credits=10**6, max_in_flight=200)

    answers = [request.status for request in sandbox.requests if request.method == "POST"]
    assert isinstance(result.stopped, q.AmbiguityLimitError)
    assert answers.count(500) == MOST_IN_DOUBT
