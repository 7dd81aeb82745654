"""What the settings promise: a bad one fails where it is made, a good one gives the waits it says."""

import copy
import itertools
import math
import pickle

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qamera_async._config import (
    PollPolicy,
    RetryPolicy,
    StatusRules,
    Timeouts,
)
from qamera_async._models import JobState
from qamera_async.errors import ConfigurationError

NEVER = [True, False, "3", b"3", math.nan, -1, -0.5, -math.inf, [], 1j, 10**400]
SECONDS = [
    (PollPolicy, "interval", set()),
    (PollPolicy, "stale_after", set()),
    (PollPolicy, "max_interval", set()),
    (RetryPolicy, "base", {"zero"}),
    (RetryPolicy, "max_delay", set()),
    (Timeouts, "connect", set()),
    (Timeouts, "request", set()),
    (Timeouts, "job", {"infinite"}),
    (Timeouts, "appear", {"zero", "none"}),
    (Timeouts, "missing", {"zero"}),
    (Timeouts, "reconcile", {"zero"}),
    (Timeouts, "close", {"zero"}),
]
SPECIAL = {"zero": 0, "infinite": math.inf, "none": None}
REFUSED = [
    (cls, name, value)
    for cls, name, allowed in SECONDS
    for value in NEVER + [value for kind, value in SPECIAL.items() if kind not in allowed]
]
ALLOWED = [(cls, name, SPECIAL[kind]) for cls, name, allowed in SECONDS for kind in sorted(allowed)]


@pytest.mark.parametrize(("cls", "name", "value"), REFUSED)
def test_a_bad_duration_is_refused_by_name_with_what_came_and_what_is_allowed(cls, name, value):
    """No bad setting waits to be found by the first request."""
    with pytest.raises(ConfigurationError, match=rf"^{cls.__name__}\.{name} must be .*seconds.*, not "):
        cls(**{name: value})


@pytest.mark.parametrize(("cls", "name", "value"), ALLOWED)
def test_zero_none_and_infinity_are_allowed_where_they_mean_something(cls, name, value):
    """What the docstring gives a meaning to can be said."""
    assert getattr(cls(**{name: value}), name) == value


@pytest.mark.parametrize("value", [0, -1, 1.5, True, "4", None, math.inf])
def test_attempts_are_a_whole_number_from_one(value):
    """Fractions of an attempt, and none at all, are mistakes."""
    with pytest.raises(ConfigurationError, match=r"^RetryPolicy\.attempts must be a whole number"):
        RetryPolicy(attempts=value)


def test_a_long_interval_alone_raises_the_defaults_beside_it():
    """One setting changed is one setting to think about."""
    policy = PollPolicy(interval=90)

    assert (policy.stale_after, policy.max_interval) == (90, 90)
    assert PollPolicy() == PollPolicy(3.0, 15.0, 60.0)


@pytest.mark.parametrize("name", ["stale_after", "max_interval"])
def test_a_limit_below_the_interval_is_refused_where_it_was_given(name):
    """What was said explicitly is never overruled in silence."""
    with pytest.raises(
        ConfigurationError, match=rf"^PollPolicy\.{name} must be at least the interval \(20\)"
    ):
        PollPolicy(20, **{name: 19.9})


def test_retry_waits_double_with_jitter_up_to_the_limit():
    """The API's advice on 429: 1, 2, 4, 8 s, each with up to half a second more."""
    for _ in range(50):
        waits = list(itertools.islice(RetryPolicy(max_delay=10).delays(), 6))

        for wait, least in zip(waits, [1, 2, 4, 8, 10, 10], strict=True):
            assert least <= wait <= min(least + 0.5, 10)


def test_retry_waits_never_end_and_never_overflow():
    """Whoever waits out an outage of days asks for the next wait all the same."""
    assert next(itertools.islice(RetryPolicy().delays(), 5000, None)) == 60
    assert set(itertools.islice(RetryPolicy(base=0).delays(), 5000)) == {0}


def test_pauses_in_an_outage_double_from_twice_the_interval():
    """The first failure already makes the next poll later."""
    assert list(itertools.islice(PollPolicy().outage_delays(), 6)) == [6, 12, 24, 48, 60, 60]
    assert next(PollPolicy(interval=60).outage_delays()) == 60


@pytest.mark.parametrize(
    ("word", "state"),
    [
        ("DONE", JobState.DONE),
        ("done", JobState.DONE),
        (" Completed ", JobState.DONE),
        ("timed_out", JobState.FAILED),
        ("CANCELED", JobState.FAILED),
        ("PENDING", JobState.PENDING),
        ("", JobState.PENDING),
        ("FROBNICATING", JobState.PENDING),
    ],
)
def test_a_status_means_what_the_rules_say_letter_case_aside(word, state):
    """A word nobody knows is pending; asking twice gives the same."""
    rules = StatusRules()

    assert [rules.state(word), rules.state(word)] == [state, state]


@pytest.mark.parametrize(
    ("word", "known"), [("done", True), ("Failed", True), ("in_progress", True), ("", True), ("ODD", False)]
)
def test_only_truly_odd_words_are_unknown(word, known):
    """A usual word for a pending job is nothing to warn of."""
    assert StatusRules().knows(word) is known


@given(st.sets(st.text(min_size=1).filter(str.strip), min_size=1, max_size=5), st.text())
def test_own_words_count_in_any_letter_case_that_python_folds_together(words, other):
    """Each word given is done, however it is padded or raised; no word is two things."""
    rules = StatusRules(done=words, failed=())

    for word in words:
        assert rules.state(word) is rules.state(f" {word.upper()} ") is JobState.DONE
        assert rules.knows(word)
    assert (rules.state(other) is JobState.DONE) == (other.strip().upper() in rules.done)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"done": "DONE"}, r"StatusRules\.done must be a set or list"),
        ({"failed": b"FAILED"}, r"StatusRules\.failed must be a set or list"),
        ({"done": None}, r"StatusRules\.done must be a set or list"),
        ({"done": [" "]}, r"StatusRules\.done must hold non-empty words"),
        ({"failed": [7]}, r"StatusRules\.failed must hold non-empty words"),
        ({"done": []}, "at least one word"),
        ({"done": ["ok", "error"]}, "no word in common, not ERROR"),
    ],
)
def test_rules_that_can_not_be_meant_are_refused(fields, message):
    """A bare word is a set of letters only by mistake, and no word is two things."""
    with pytest.raises(ConfigurationError, match=message):
        StatusRules(**fields)


def test_a_server_that_invents_words_does_not_fill_the_memory():
    """Meanings are remembered for a bounded number of words, and right beyond it."""
    rules = StatusRules()

    assert {rules.state(f"odd {number}") for number in range(10_000)} == {JobState.PENDING}
    assert len(rules._seen) <= 256
    assert rules.state("DONE") is JobState.DONE


def test_rules_that_were_asked_equal_rules_that_were_not():
    """What is remembered is no part of the value."""
    asked = StatusRules(done=["ok"])
    asked.state("ok")

    assert asked == StatusRules(done={"OK"})
    assert hash(asked) == hash(StatusRules(done=("Ok ",)))


def test_rules_show_only_what_is_not_the_default():
    """A repr is for reading."""
    assert repr(StatusRules()) == "StatusRules()"
    assert repr(StatusRules(done=["ok"], failed=["ko"])) == "StatusRules(done={'OK'}, failed={'KO'})"


@pytest.mark.parametrize(
    "value",
    [PollPolicy(), RetryPolicy(), Timeouts(), StatusRules(), StatusRules(["ok"], ["ko"])],
    ids=repr,
)
def test_a_setting_survives_pickling_and_copying_and_can_be_hashed(value):
    """Settings go to worker processes, and are frozen."""
    assert {pickle.loads(pickle.dumps(value)), copy.copy(value), copy.deepcopy(value)} == {value}  # noqa: S301 - own bytes
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        setattr(value, attrs.fields(type(value))[0].name, 1)
