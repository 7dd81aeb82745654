"""The attributes, the texts and the copies of errors."""

import copy
import inspect
import pickle
import traceback
import typing
from datetime import UTC, datetime, timedelta

import attrs
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
    is_number,
    is_permanent,
    join_ids,
    short_repr,
    without_traceback,
)

SENT_AT = datetime(2026, 3, 20, tzinfo=UTC)
VIDEO = Video("vid_1", "FAILED", JobState.FAILED)
INTENT = Intent("int_1", VideoRequest("img_1", ref="SKU-1"), SENT_AT)
API = {"correlation_id": "abc", "retry_after": 2.0, "foreign": True}
AMBIGUOUS = AmbiguousSubmissionError(
    "The connection was lost.",
    intent=INTENT,
    candidates=(VIDEO,),
    cause=ServerError("oops", status=500),
    may_share_candidates=True,
)

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
    AMBIGUOUS,
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
    JobLostError("vid_1 is missing", record_ids=("vid_0", "vid_1"), record=VIDEO, absent_for=130.0),
    BatchStoppedError("the batch stopped"),
    CreditLimitError("10 more would be too much", max_credits=100, spent=95, price=10),
    CreditLimitError("the price is unknown", max_credits=100, spent=0, cause=AMBIGUOUS),
    AmbiguityLimitError("five in a row", errors=(AMBIGUOUS,)),
    DownloadError("the connection was lost", record_id="vid_1", path="a.mp4", status=206, host="cdn.example"),
    TargetExistsError("the file exists", record_id="vid_1", path="a.mp4"),
    LedgerError("something is wrong", path="jobs.db"),
    LedgerCorruptError("it is truncated", path="jobs.db"),
    LedgerVersionError("it is too new", path="jobs.db", found=9, supported=1),
    LedgerUnavailableError(
        "the disk is full",
        path="jobs.db",
        intent=INTENT,
        receipt=Receipt(("vid_1", "vid_2")),
        fix="Free space",
    ),
    RefConflictError("SKU-1 is taken", path="jobs.db", request=INTENT.request, earlier=VideoRequest("img_2")),
]


def comparable(value):
    """Return an error, and the errors in it, as comparable values."""
    if isinstance(value, QameraError):
        return (
            type(value),
            value.args,
            str(value),
            {name: comparable(inner) for name, inner in vars(value).items()},
        )
    if isinstance(value, tuple):
        return tuple(map(comparable, value))
    return value


def test_every_error_class_is_tested_and_documented():
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
def test_error_survives_pickling_and_copying(error, again):
    twin = again(error)

    assert twin is not error
    assert comparable(twin) == comparable(error)


def test_notes_survive_pickling():
    error = JobFailedError("it failed", record_ids=("vid_1",))
    error.add_note("row 7")

    assert pickle.loads(pickle.dumps(error)).__notes__ == ["row 7"]  # noqa: S301 - own bytes


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_annotations_resolve_at_run_time(error):
    hints = typing.get_type_hints(type(error))

    assert {field.name for field in attrs.fields(attrs.resolve_types(type(error)))} <= hints.keys()
    assert "str" not in {type(hint).__name__ for hint in hints.values()}
    assert typing.get_type_hints(type(error).__init__)
    assert inspect.signature(type(error), eval_str=True)


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_repr_and_args_hold_only_the_message(error):
    assert error.args == (error.message,)
    assert repr(error) == f"{type(error).__name__}({error.message!r})"


def test_errors_compare_by_identity():
    error = JobFailedError("it failed", record_ids=("vid_1",))

    assert error != copy.copy(error)
    assert {error: 1}[error] == 1


@pytest.mark.parametrize(
    ("cls", "base"),
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
def test_error_has_the_documented_bases(cls, base):
    assert issubclass(cls, base)
    assert issubclass(cls, QameraError)


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_text_is_summary_and_hint(error):
    assert error.message.removesuffix(".") in error.summary
    assert str(error).startswith(error.summary)
    assert str(error).endswith(error.hint)


def test_errors_without_hint():
    assert {type(error) for error in ERRORS if not error.hint} == {
        QameraError,
        ConfigurationError,
        InvalidRequestError,
        JobError,
        BatchStoppedError,
        LedgerError,
    }


def test_api_error_shows_status_text_correlation_id_and_hint_in_this_order():
    text = str(InsufficientCreditsError("Required: 5, available: 2.", status=402, correlation_id="abc"))

    assert text.startswith("HTTP 402: Required: 5, available: 2. [correlation id abc] ")
    assert "buy credits" in text


def test_text_of_the_server_without_full_stop_gets_one():
    assert str(ServerError("oops", status=500)).startswith("HTTP 500: oops. Try")


def test_hint_of_a_foreign_response_mentions_the_proxy():
    assert "proxy" in PermissionDeniedError("Forbidden", status=403, foreign=True).hint
    assert "proxy" not in PermissionDeniedError("Forbidden", status=403).hint


def test_hint_of_a_failed_connection_says_whether_a_retry_can_help():
    assert "safe to try again" in ConnectionFailedError("refused").hint
    assert "certificate" in ConnectionFailedError("bad cert", permanent=True).hint


def test_sent_and_permanent_of_transport_errors():
    lost, refused = TransportError("lost"), ConnectionFailedError("bad cert", permanent=True)

    assert (lost.sent, lost.permanent) == (True, False)
    assert (refused.sent, refused.permanent) == (False, True)


def test_ambiguous_submission_shows_ref_candidates_and_cause():
    assert AMBIGUOUS.request is INTENT.request
    for part in ("'SKU-1'", "candidates: vid_1", "other ambiguous", "ServerError: HTTP 500: oops"):
        assert part in AMBIGUOUS.summary


def test_ambiguous_submission_without_candidates_states_that_a_record_may_exist():
    error = AmbiguousSubmissionError("It was lost.", intent=INTENT, may_share_candidates=True)

    assert "may still have been created" in error.summary
    assert "other ambiguous" not in error.summary


def test_ambiguous_submission_says_when_candidates_were_not_looked_up():
    error = AmbiguousSubmissionError("It was lost.", intent=INTENT, looked_up=False)

    assert "not looked up yet" in error.summary
    assert "no candidates found" not in error.summary


def test_hint_of_an_ambiguous_submission_does_not_suggest_a_second_submission():
    for word in ("register", "submit again", "try again", "retry"):
        assert word not in AMBIGUOUS.hint
    for name in ("Qamera app", "session.job(id)", "session.adopt", "session.abandon"):
        assert name in AMBIGUOUS.hint


def candidates(count, created_at):
    return tuple(
        Video(f"vid_{number}", "NEW", JobState.PENDING, created_at=created_at(number))
        for number in range(count)
    )


def test_text_of_100_000_candidates_shows_the_newest_100_and_their_number():
    found = candidates(100_000, lambda number: SENT_AT + timedelta(seconds=number))
    text = str(AmbiguousSubmissionError("It was lost.", intent=INTENT, candidates=found))

    assert len(text) < 3_000
    assert "100000 candidates" in text
    assert "vid_99999, vid_99998, " in text
    assert "vid_99900" in text
    assert "vid_99899" not in text


def test_candidates_without_time_come_last_in_the_order_of_the_list():
    found = candidates(150, lambda number: SENT_AT if number == 149 else None)
    text = AmbiguousSubmissionError("It was lost.", intent=INTENT, candidates=found).summary

    assert "vid_149, vid_0, vid_1, " in text
    assert "vid_98" in text
    assert "vid_99" not in text


@pytest.mark.parametrize(
    "error",
    [
        AmbiguousSubmissionError("lost", intent=INTENT, record_ids=("vid_1" * 10,) * 10_000),
        LedgerUnavailableError("disk full", receipt=Receipt(("vid_1" * 10,) * 10_000)),
        AmbiguousSubmissionError("lost", intent=INTENT, record_ids=("v" * 1_000_000,)),
        JobTimeoutError("late", record_ids=("v",), timeout=1.0, status="S" * 1_000_000),
    ],
    ids=["ambiguous", "receipt", "long id", "long status"],
)
def test_text_of_an_error_is_bounded(error):
    assert len(str(error)) < 10_000


def test_join_ids_names_the_first_100_and_counts_the_others():
    assert join_ids(["a", "b"]) == "a, b"
    assert join_ids(map(str, range(100))).endswith("98, 99")
    assert join_ids(map(str, range(103))).endswith("99 and 3 more")


def test_job_timeout_shows_the_last_status_and_error():
    error = next(error for error in ERRORS if isinstance(error, JobTimeoutError))

    for part in ("'NEW'", "12 s old", "RequestTimeoutError: no answer"):
        assert part in error.summary


def test_job_timeout_of_a_record_that_was_never_listed():
    error = JobTimeoutError("vid_1 took too long", record_ids=("vid_1",), timeout=5.0)

    assert "never listed" in error.summary
    assert "no list" in error.summary


def test_invalid_response_shows_the_excerpt_without_control_characters():
    error = InvalidResponseError("no JSON", status=200, expected="a list of videos", excerpt="<h\x1b")

    for part in ("HTTP 200", "a list of videos", r"'<h\x1b'"):
        assert part in error.summary


def test_credit_limit_suggests_a_higher_limit():
    error = CreditLimitError("10 more would be too much", max_credits=100, spent=95, price=10)

    assert "higher max_credits" in error.hint
    assert "does not help" not in error.hint


def test_credit_limit_with_an_ambiguous_cause_says_that_a_rerun_continues():
    error = CreditLimitError("the price is unknown", max_credits=100, spent=0, cause=AMBIGUOUS)

    assert error.cause is AMBIGUOUS
    assert "does not help" in error.hint
    assert "rerun" in error.hint
    assert "SKU-1" in error.summary


def test_receipt_that_could_not_be_stored_is_in_the_text():
    error = LedgerUnavailableError(
        "the disk is full", intent=INTENT, receipt=Receipt(("vid_1", "vid_2")), fix="Free some space"
    )

    assert "vid_1, vid_2" in error.summary
    assert "session.adopt(error, *error.receipt.record_ids)" in error.hint
    assert "Free some space" in error.hint
    assert "Nothing was submitted" not in error.hint


def test_ledger_that_is_unavailable_before_a_submission_says_that_nothing_was_submitted():
    error = LedgerUnavailableError("read-only", path="jobs.db", fix="Make the file writable")

    assert "Nothing was submitted. Make the file writable" in error.hint
    assert "Nothing was submitted" in LedgerUnavailableError("read-only").hint


def test_ref_conflict_names_the_fields_that_differ():
    error = RefConflictError(
        "taken", request=VideoRequest("img_1", suggestion="x"), earlier=VideoRequest("img_2", suggestion="x")
    )

    assert "image_id: 'img_1' now, 'img_2' in the ledger" in error.summary
    assert "suggestion" not in error.summary


@pytest.mark.parametrize(
    ("error", "permanent"),
    [
        (ConnectionFailedError("bad cert", permanent=True), True),
        (ConnectionFailedError("refused"), False),
        (RequestTimeoutError("late"), False),
        (SessionClosedError("closed"), True),
        (AuthenticationError("who", status=401), True),
        (AuthenticationError("who", status=401, foreign=True), False),
        (NotFoundError("where", status=404), True),
        (ApiError("proxy", status=407, foreign=True), True),
        (RateLimitError("slow", status=429), False),
        (ServerError("oops", status=500), False),
        (InvalidResponseError("moved", status=307), True),
        (InvalidResponseError("no JSON", status=200), False),
        (InvalidResponseError("no JSON"), False),
        (LedgerError("broken"), False),
    ],
    ids=str,
)
def test_is_permanent(error, permanent):
    assert is_permanent(error) is permanent


def test_without_traceback_drops_frames_cause_and_context():
    try:
        try:
            api_key = "secret"
            int(api_key)
        except ValueError as cause:
            raise TransportError("lost") from cause
    except TransportError as caught:
        error = without_traceback(caught)

    assert (error.__traceback__, error.__cause__, error.__context__) == (None, None, None)
    assert "secret" not in "".join(traceback.format_exception(error))


class BrokenRepr:
    """An object whose repr raises."""

    def __repr__(self):
        raise RuntimeError


@pytest.mark.parametrize(
    ("value", "text"), [("a", "'a'"), (None, "None"), (BrokenRepr(), "a BrokenRepr"), ("\ud800", r"'\ud800'")]
)
def test_short_repr_never_raises(value, text):
    assert short_repr(value) == text


@pytest.mark.parametrize("value", ["x" * 10_000, b"x" * 10_000, list(range(1000))])
def test_short_repr_cuts_long_values(value):
    assert len(short_repr(value)) == 60
    assert short_repr(value).endswith("...")


@pytest.mark.parametrize(
    ("value", "expected"),
    [(1, True), (0.5, True), (float("inf"), True), (True, False), (float("nan"), False), (10**400, False)],
    ids=ascii,
)
def test_is_number_accepts_values_that_compare_with_floats(value, expected):
    assert is_number(value) is expected
    assert not is_number("1")
