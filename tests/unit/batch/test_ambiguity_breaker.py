"""How many submissions of a batch may end ambiguous in a row, in whatever order the answers come."""

import pytest
from fake_access import ambiguous

import qamera_async as q
from qamera_async._batch.limits import MAX_AMBIGUOUS, AmbiguityBreaker


@pytest.fixture
def breaker():
    return AmbiguityBreaker()


def error():
    return ambiguous().error


def send(breaker, number):
    """Send so many submissions; return their numbers."""
    assert breaker.permits(number)
    return [breaker.sent() for _ in range(number)]


def test_permits_five_unanswered_submissions(breaker):
    send(breaker, MAX_AMBIGUOUS)

    assert not breaker.permits()


def test_permits_only_as_many_as_may_all_end_ambiguous(breaker):
    first, *_ = send(breaker, 3)
    breaker.ambiguous(first, error())

    assert breaker.permits(2)
    assert not breaker.permits(3)


def test_an_answer_frees_the_places_of_all_that_were_sent_before(breaker):
    numbers = send(breaker, MAX_AMBIGUOUS)
    breaker.answered(numbers[-1])

    send(breaker, MAX_AMBIGUOUS)
    assert not breaker.permits()
    assert breaker.unanswered == 2 * MAX_AMBIGUOUS - 1


def test_submissions_sent_before_an_answer_are_in_no_row(breaker):
    early = send(breaker, MAX_AMBIGUOUS)
    breaker.answered(early[-1])
    late = send(breaker, MAX_AMBIGUOUS)

    assert [breaker.ambiguous(number, error()) for number in (*early[:-1], *late[:-1])] == [None] * 8
    limit = breaker.ambiguous(late[-1], error())
    assert isinstance(limit, q.AmbiguityLimitError)
    assert len(limit.errors) == MAX_AMBIGUOUS


def test_a_late_answer_to_an_early_submission_ends_no_later_row(breaker):
    early, *others, last = send(breaker, MAX_AMBIGUOUS)
    breaker.answered(others[-1])
    breaker.ambiguous(last, error())
    breaker.answered(early)
    row = send(breaker, MAX_AMBIGUOUS - 1)

    assert not breaker.permits()
    assert [breaker.ambiguous(number, error()) for number in row[:-1]] == [None] * 3
    assert isinstance(breaker.ambiguous(row[-1], error()), q.AmbiguityLimitError)


def test_a_retried_submission_gets_the_later_place(breaker):
    first, second = send(breaker, 2)
    breaker.not_sent(first)
    again = breaker.sent()
    breaker.answered(second)

    assert again > second
    send(breaker, MAX_AMBIGUOUS - 1)
    assert not breaker.permits()
