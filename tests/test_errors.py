"""What the errors promise: evidence that travels, and a text that says what to do."""

import copy
import inspect
import pickle
from datetime import UTC, datetime

import pytest

from qamera_async import errors
from qamera_async._models import Intent, JobState, Receipt, Video, VideoRequest
from qamera_async.errors import (
    AmbiguityLimitError,
    AmbiguousSubmissionError,
    ApiError,
    AuthenticationError,
    BadRequestError,
    BatchStoppedError,
    ConfigurationError,
    ConnectionFailedError,
    CreditLimitError,
    DownloadError,
    InsufficientCreditsError,
    InvalidRequestError,
    InvalidResponseError,
    JobError,
    JobFailedError,
    JobLostError,
    JobTimeoutError,
    LedgerCorruptError,
    LedgerError,
    LedgerUnavailableError,
    LedgerVersionError,
    NotFoundError,
    PermissionDeniedError,
    QameraError,
    RateLimitError,
    RefConflictError,
    RequestTimeoutError,
    ServerError,
    SessionClosedError,
    TargetExistsError,
    TransportError,
    shown,
)

VIDEO = Video("vid_1", "FAILED", JobState.FAILED)
INTENT = Intent("int_1", VideoRequest("img_1", ref="SKU-1"), datetime(2026, 3, 20, tzinfo=UTC))
API = {"correlation_id": "abc", "retry_after": 2.0, "foreign": True}

ERRORS = [
    QameraError("it broke"),
    ConfigurationError("api_key must be text"),
    InvalidRequestError("image_id is missing"),
    SessionClosedError("the session is closed"),
    TransportError("the connection was lost"),
    ConnectionFailedError("connection refused"),
    ConnectionFailedError("bad certificate", permanent=True),
    RequestTimeoutError("no answer within 60 s", sent=False),
    ApiError("teapot", status=418, **API),
    BadRequestError("bad", status=400, **API),
    AuthenticationError("who", status=401, **API),
    InsufficientCreditsError("Insufficient credits.", status=402, required=5, available=2, **API),
    PermissionDeniedError("scope", status=403, **API),
    NotFoundError("gone", status=404, **API),
    RateLimitError("slow down", status=429, **API),
    ServerError("oops", status=503, **API),
    InvalidResponseError("no JSON", status=200, expected="a list", excerpt="<html>", correlation_id="abc"),
    AmbiguousSubmissionError(
        "the connection was lost",
        intent=INTENT,
        candidates=(VIDEO,),
        cause=ServerError("oops", status=500),
        shared=True,
    ),
    JobError("no video", record_ids=("vid_1",)),
    JobFailedError("vid_1 failed", record_ids=("vid_1",), records=(VIDEO,)),
    JobTimeoutError(
        "vid_1 took too long",
        record_ids=("vid_1",),
        timeout=5.0,
        status="NEW",
        last_error=RequestTimeoutError("no answer"),
        list_age=12.0,
    ),
    JobLostError("vid_1 is missing", record_ids=("vid_1",), record=VIDEO, absent_for=130.0),
    BatchStoppedError("the batch stopped"),
    CreditLimitError("10 more would be too much", max_credits=100, spent=95, price=10),
    AmbiguityLimitError(
        "five in a row", errors=(AmbiguousSubmissionError("it was lost", intent=INTENT, shared=True),)
    ),
    DownloadError("the connection was lost", record_id="vid_1", path="a.mp4", status=206, host="cdn.example"),
    TargetExistsError("there is a file already", record_id="vid_1", path="a.mp4"),
    LedgerError("something is wrong", path="jobs.db"),
    LedgerCorruptError("it is cut short", path="jobs.db"),
    LedgerVersionError("it is too new", path="jobs.db", found=9, supported=1),
    LedgerUnavailableError(
        "the disk is full", path="jobs.db", intent=INTENT, receipt=Receipt(("vid_1", "vid_2"))
    ),
    RefConflictError("SKU-1 is taken", path="jobs.db", request=INTENT.request, earlier=VideoRequest("img_2")),
]


def evidence(value):
    """Give an error as comparable values, the errors in it as well."""
    if isinstance(value, QameraError):
        return (
            type(value),
            value.args,
            str(value),
            {name: evidence(held) for name, held in vars(value).items()},
        )
    if isinstance(value, tuple):
        return tuple(map(evidence, value))
    return value


def test_every_class_of_the_tree_is_tried_here_and_drawn_in_its_docstring():
    """A class that is added without a place in the tree and a try of its pickling is found."""
    classes = {
        name
        for name, value in vars(errors).items()
        if inspect.isclass(value) and issubclass(value, QameraError)
    }

    assert classes == {type(error).__name__ for error in ERRORS}
    assert not {name for name in classes if name not in errors.__doc__}


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize(
    "again",
    [copy.copy, copy.deepcopy]
    + [
        lambda error, protocol=protocol: pickle.loads(pickle.dumps(error, protocol))  # noqa: S301 - own bytes
        for protocol in range(pickle.HIGHEST_PROTOCOL + 1)
    ],
)
def test_every_error_survives_pickling_and_copying_with_all_its_evidence(error, again):
    """A process pool or a copy hands on the same class, text and attributes."""
    twin = again(error)

    assert twin is not error
    assert evidence(twin) == evidence(error)


def test_notes_travel_with_a_pickled_error():
    """What a caller added to an error isn't lost on the way."""
    error = JobFailedError("it failed", record_ids=("vid_1",))
    error.add_note("row 7")

    assert pickle.loads(pickle.dumps(error)).__notes__ == ["row 7"]  # noqa: S301 - own bytes


@pytest.mark.parametrize(
    ("cls", "builtin"),
    [
        (ConfigurationError, ValueError),
        (InvalidRequestError, ValueError),
        (SessionClosedError, RuntimeError),
        (RequestTimeoutError, TimeoutError),
        (RequestTimeoutError, TransportError),
        (ConnectionFailedError, TransportError),
        (JobTimeoutError, TimeoutError),
        (JobTimeoutError, JobError),
        (InsufficientCreditsError, ApiError),
        (TargetExistsError, FileExistsError),
        (TargetExistsError, DownloadError),
        (LedgerUnavailableError, LedgerError),
        (CreditLimitError, BatchStoppedError),
    ],
)
def test_an_error_can_be_caught_as_what_it_also_is(cls, builtin):
    """Code that knows only Python's own errors catches the right ones."""
    assert issubclass(cls, builtin)
    assert issubclass(cls, QameraError)


@pytest.mark.parametrize(
    "error",
    [error for error in ERRORS if type(error).advice and not isinstance(error, ConnectionFailedError)],
    ids=lambda error: type(error).__name__,
)
def test_the_text_says_what_happened_and_what_to_do(error):
    """A log line alone is enough to act on."""
    assert error.message in str(error)
    assert type(error).advice in str(error)


def test_an_api_error_reads_status_text_correlation_id_advice():
    """The parts stand in this order, whether the server ends its text with a full stop or not."""
    error = InsufficientCreditsError(
        "Insufficient credits. Required: 5, available: 2.", status=402, correlation_id="abc"
    )

    assert str(error) == (
        "HTTP 402: Insufficient credits. Required: 5, available: 2. [correlation id abc] "
        "Buy credits in the Qamera app, then register again: nothing was reserved."
    )
    assert str(ServerError("oops", status=500)).startswith("HTTP 500: oops. Try again later")


def test_a_foreign_answer_is_named_as_perhaps_a_proxys():
    """A 403 of a company proxy doesn't send anybody to look for scopes alone."""
    assert "proxy" in str(PermissionDeniedError("Forbidden", status=403, foreign=True))
    assert "proxy" not in str(PermissionDeniedError("Forbidden", status=403))


def test_a_failed_connection_says_whether_trying_again_can_help():
    """A bad certificate stays bad; a refused connection may pass. Neither sent anything."""
    passing, lasting = ConnectionFailedError("refused"), ConnectionFailedError("bad cert", permanent=True)

    assert "safe to try again" in str(passing)
    assert "cannot help" in str(lasting)
    assert not passing.sent
    assert not lasting.sent
    assert TransportError("lost").sent


def test_an_ambiguous_submission_names_ref_candidates_and_cause():
    """Whoever has to settle it finds in the text where to look."""
    error = ERRORS[17]

    assert error.request is INTENT.request
    assert "(ref 'SKU-1'; candidates: vid_1; other ambiguous submissions may share them; cause: " in str(
        error
    )
    assert "cause: ServerError: HTTP 500: oops" in str(error)
    assert "sent once and not again" in str(error)


def test_an_ambiguous_submission_without_candidates_says_none_was_seen():
    """None seen is said, since it is not the same as none made."""
    intent = Intent("int_1", VideoRequest("img_1"), datetime(2026, 3, 20, tzinfo=UTC))

    assert str(AmbiguousSubmissionError("It was lost.", intent=intent, shared=True)).startswith(
        "It was lost (candidates: none seen). The request was sent once"
    )


def test_a_job_timeout_says_what_was_last_known():
    """Status, age of the list and last error tell a slow job from a dead network."""
    told, silent = (
        str(ERRORS[20]),
        str(JobTimeoutError("vid_1 took too long", record_ids=("vid_1",), timeout=5.0)),
    )

    assert "last status 'NEW'; last list 12 s old; last error: RequestTimeoutError: no answer" in told
    assert "never seen in the list; no list was received" in silent


def test_an_unreadable_answer_shows_what_was_expected_and_what_came():
    """The excerpt is shown as a repr, so that its control characters can't garble a log."""
    error = InvalidResponseError("no JSON", status=200, expected="a list of videos", excerpt="<h\x1b")

    assert "no JSON (HTTP 200; expected a list of videos; got '<h\\x1b')" in str(error)
    assert str(InvalidResponseError("no JSON")).startswith("no JSON. Check")


def test_a_receipt_that_could_not_be_kept_is_in_the_text():
    """The ids are all that is left of what was paid for, so a log line has them."""
    kept = LedgerUnavailableError("the disk is full", intent=INTENT, receipt=Receipt(("vid_1", "vid_2")))

    assert "paid for: records vid_1, vid_2" in str(kept)
    assert "session.adopt(error, *error.receipt.record_ids)" in str(kept)
    assert "Nothing was ordered" in str(LedgerUnavailableError("the disk is full", path="jobs.db"))


class Broken:
    """Its repr fails."""

    def __repr__(self):
        raise RuntimeError


@pytest.mark.parametrize(
    ("value", "text"), [("a", "'a'"), (None, "None"), (Broken(), "a Broken"), ("\ud800", r"'\ud800'")]
)
def test_a_value_is_shown_whatever_its_repr_does(value, text):
    """A message about a mistake can't fail itself."""
    assert shown(value) == text


@pytest.mark.parametrize("value", ["x" * 10_000, b"x" * 10_000, list(range(1000))])
def test_a_long_value_is_cut(value):
    """A file handed in by mistake doesn't fill the log."""
    assert len(shown(value)) == 60
    assert shown(value).endswith("...")
