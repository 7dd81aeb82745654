"""Settings: validation, delays and status words."""

import copy
import doctest
import inspect
import itertools
import math
import pickle
import typing

import attrs
import pytest
from cattrs.preconf.json import make_converter
from hypothesis import given
from hypothesis import strategies as st

from qamera_async import _config
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
    (Timeouts, "url", {"zero"}),
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
def test_invalid_duration_is_refused_with_its_name_and_value(cls, name, value):
    with pytest.raises(ConfigurationError, match=rf"^{cls.__name__}\.{name} must be .*seconds.*, not "):
        cls(**{name: value})


@pytest.mark.parametrize(("cls", "name", "value"), ALLOWED)
def test_zero_none_and_infinity_are_allowed_where_documented(cls, name, value):
    assert getattr(cls(**{name: value}), name) == value


@pytest.mark.parametrize("value", [0, -1, 1.5, True, "4", None, math.inf])
def test_attempts_must_be_a_positive_int(value):
    with pytest.raises(ConfigurationError, match=r"^RetryPolicy\.attempts must be a positive int"):
        RetryPolicy(attempts=value)


def test_long_interval_raises_the_other_defaults():
    policy = PollPolicy(interval=90)

    assert (policy.stale_after, policy.max_interval) == (90, 90)
    assert PollPolicy() == PollPolicy(3.0, 15.0, 60.0)


@pytest.mark.parametrize("name", ["stale_after", "max_interval"])
def test_limit_below_the_interval_is_refused(name):
    with pytest.raises(
        ConfigurationError, match=rf"^PollPolicy\.{name} must be at least interval=20, not 19\.9"
    ):
        PollPolicy(20, **{name: 19.9})


def test_retry_delays_double_with_jitter_up_to_the_limit():
    for _ in range(50):
        waits = list(itertools.islice(RetryPolicy(max_delay=10).delays(), 6))

        for wait, least in zip(waits, [1, 2, 4, 8, 10, 10], strict=True):
            assert least <= wait <= min(least + 0.5, 10)


def test_retry_delays_never_end_or_overflow():
    assert next(itertools.islice(RetryPolicy().delays(), 5000, None)) == 60
    assert set(itertools.islice(RetryPolicy(base=0).delays(), 5000)) == {0}


def test_outage_delays_double_from_twice_the_interval():
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
        ("in_progress", JobState.PENDING),
        ("FROBNICATING", None),
    ],
)
def test_state_ignores_letter_case_and_spaces(word, state):
    rules = StatusRules()

    assert [rules.state(word), rules.state(word)] == [state, state]


@given(st.sets(st.text(min_size=1).filter(str.strip), min_size=1, max_size=5), st.text())
def test_custom_words_ignore_letter_case_and_spaces(words, other):
    rules = StatusRules(done=words, failed=())

    for word in words:
        assert rules.state(word) is rules.state(f" {word.upper()} ") is JobState.DONE
    assert (rules.state(other) is JobState.DONE) == (other.strip().upper() in rules.done)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"done": "DONE"}, r"StatusRules\.done must be a set or list"),
        ({"failed": b"FAILED"}, r"StatusRules\.failed must be a set or list"),
        ({"done": None}, r"StatusRules\.done must be a set or list"),
        ({"done": [" "]}, r"StatusRules\.done must be .*non-empty words"),
        ({"failed": [7]}, r"StatusRules\.failed must be .*non-empty words"),
        ({"done": []}, "at least one word"),
        ({"done": ["ok", "error"]}, "no word in common, not ERROR"),
    ],
)
def test_invalid_rules_are_refused(fields, message):
    with pytest.raises(ConfigurationError, match=message):
        StatusRules(**fields)


def test_rules_with_the_same_words_are_equal():
    assert StatusRules(done=["ok"]) == StatusRules(done={"OK"})
    assert hash(StatusRules(done=["ok"])) == hash(StatusRules(done=("Ok ",)))


def test_repr_shows_only_words_that_differ_from_the_default():
    assert repr(StatusRules()) == "StatusRules()"
    assert repr(StatusRules(done=["ok"], failed=["ko"])) == "StatusRules(done={'OK'}, failed={'KO'})"


@pytest.mark.parametrize(
    "value",
    [PollPolicy(), RetryPolicy(), Timeouts(), StatusRules(), StatusRules(["ok"], ["ko"])],
    ids=repr,
)
def test_setting_survives_pickling_and_copying_and_is_hashable(value):
    assert {pickle.loads(pickle.dumps(value)), copy.copy(value), copy.deepcopy(value)} == {value}  # noqa: S301 - own bytes
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        setattr(value, attrs.fields(type(value))[0].name, 1)


@pytest.mark.parametrize("cls", [PollPolicy, RetryPolicy, Timeouts, StatusRules])
def test_annotations_resolve_at_run_time(cls):
    fields = {field.name for field in attrs.fields(attrs.resolve_types(cls)) if field.init}

    assert fields <= typing.get_type_hints(cls).keys()
    assert fields == inspect.signature(cls, eval_str=True).parameters.keys()


@pytest.mark.parametrize(
    "value", [PollPolicy(20), RetryPolicy(2), Timeouts(job=5), StatusRules(["ok"])], ids=repr
)
def test_cattrs_restores_a_setting_from_json(value):
    converter = make_converter()

    assert converter.loads(converter.dumps(value), type(value)) == value


def test_docstring_examples():
    assert doctest.testmod(_config) == (0, 4)
