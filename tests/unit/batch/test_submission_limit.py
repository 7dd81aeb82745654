"""The limit of undecided submissions of a batch, for every order of the answers, and outages."""

import pytest
from fake_registrar import ambiguous, refused, unreachable

import qamera_async as q
from qamera_async._batch.limits import MAX_UNDECIDED, SubmissionLimit


@pytest.fixture
def limit():
    return SubmissionLimit(q.RetryPolicy(base=1e-9, max_delay=1e-9))


RECEIPT = q.Receipt(("vid_1",))


def error():
    return ambiguous().error


def send(limit, number):
    """Send some submissions; return their numbers."""
    assert limit.permits(number)
    return [limit.sent() for _ in range(number)]


def test_permits_five_undecided_submissions(limit):
    send(limit, MAX_UNDECIDED)

    assert not limit.permits()


def test_ambiguous_submissions_count_as_undecided(limit):
    first, *_ = send(limit, 3)
    limit.ended(first, error())

    assert limit.permits(2)
    assert not limit.permits(3)


@pytest.mark.parametrize("answer", [RECEIPT, refused().error])
def test_answer_permits_one_more_submission(limit, answer):
    numbers = send(limit, MAX_UNDECIDED)
    limit.ended(numbers[-1], answer)

    assert limit.permits()
    assert not limit.permits(2)


@pytest.mark.parametrize("answer", [RECEIPT, refused().error])
def test_answer_discards_ambiguous_submissions_that_were_sent_before(limit, answer):
    early = send(limit, MAX_UNDECIDED)
    limit.ended(early[0], error())
    limit.ended(early[-1], answer)
    for number in early[1:-1]:
        limit.ended(number, error())

    late = send(limit, MAX_UNDECIDED)
    assert [limit.ended(number, error()) for number in late[:-1]] == [None] * 4
    reason = limit.ended(late[-1], error())
    assert isinstance(reason, q.AmbiguityLimitError)
    assert len(reason.errors) == MAX_UNDECIDED


def test_answer_to_an_early_submission_keeps_later_ambiguous_submissions(limit):
    early, *others, last = send(limit, MAX_UNDECIDED)
    limit.ended(last, error())
    limit.ended(early, RECEIPT)
    for number in others:
        limit.ended(number, RECEIPT)

    assert limit.permits(MAX_UNDECIDED - 1)
    assert not limit.permits(MAX_UNDECIDED)


@pytest.mark.parametrize("end", [unreachable().error, q.SessionClosedError("closed")])
def test_submission_without_an_answer_keeps_the_ambiguous_submissions(limit, end):
    first, second = send(limit, 2)
    limit.ended(first, error())
    limit.ended(second, end)

    assert limit.permits(MAX_UNDECIDED - 1)
    for number in send(limit, 1):
        assert limit.ended(number, error()) is None
    assert not limit.permits(MAX_UNDECIDED - 1)


@pytest.mark.parametrize("answer", [RECEIPT, refused().error, error()])
def test_outage_permits_one_probe_and_ends_with_its_answer(limit, answer):
    numbers = send(limit, 2)
    limit.ended(numbers[0], unreachable().error)
    limit.ended(numbers[1], RECEIPT)
    assert limit.outage

    (probe,) = send(limit, 1)
    assert not limit.permits()
    limit.ended(probe, unreachable().error)
    (probe,) = send(limit, 1)
    limit.ended(probe, answer)
    assert not limit.outage
