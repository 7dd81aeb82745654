"""What the values promise: checked when made, frozen, comparable, at home in sets and pickles."""

import copy
import enum
import itertools
import json
import pickle
from datetime import UTC, datetime

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qamera_async._models import (
    FrozenMapping,
    Intent,
    JobState,
    Receipt,
    ReelRequest,
    Video,
    VideoRequest,
    frozen,
)
from qamera_async.errors import InvalidRequestError

WHEN = datetime(2026, 3, 20, 17, tzinfo=UTC)
VALUES = [
    VideoRequest("img_1", None, "Slow zoom", "pollo", "SKU-1", {"seed": 7, "tags": ["a", {"b": None}]}),
    ReelRequest(["img_1", "img_2"], "SKU-2", {"music": True}),
    Receipt(("vid_1",), "batch", "order", "res", 10, "corr"),
    Video("vid_1", "DONE", JobState.DONE, "T-shirt", "https://c/t", "https://c/v", "APPROVED", WHEN),
    Intent("int_1", VideoRequest(generated_image_id="gen_1"), WHEN, (Video("v", "NEW", JobState.PENDING),)),
    FrozenMapping({"a": [1, {"b": 2.5}]}),
    JobState.FAILED,
]

texts = st.text(st.characters(exclude_categories=["Cs"]))
json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**64) + 1, 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=10,
)


@pytest.mark.parametrize("value", VALUES, ids=lambda value: type(value).__name__)
def test_a_value_survives_pickling_and_copying_and_can_be_hashed(value):
    """Values go through process pools, sets and dicts."""
    twins = {pickle.loads(pickle.dumps(value)), copy.copy(value), copy.deepcopy(value)}  # noqa: S301 - own bytes

    assert twins == {value}


@pytest.mark.parametrize("value", VALUES[:5], ids=lambda value: type(value).__name__)
def test_a_value_can_not_be_changed(value):
    """What came over the wire, or was checked, stays as it is."""
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        setattr(value, attrs.fields(type(value))[0].name, "other")
    assert not hasattr(value, "__dict__")


BAD_TEXTS = ["", "  \t", 7, b"img", ["img"], True, "\ud800"]


@pytest.mark.parametrize("value", BAD_TEXTS, ids=ascii)
@pytest.mark.parametrize("field", ["image_id", "generated_image_id", "suggestion", "provider", "ref"])
def test_a_video_request_names_the_field_that_is_wrong_and_what_came(field, value):
    """The message is enough to find the row of a catalogue that is broken."""
    fields = {"image_id": "img_1", field: value}
    if field == "generated_image_id":
        fields["image_id"] = None

    with pytest.raises(InvalidRequestError, match=rf"^{field} must be ") as caught:
        VideoRequest(**fields)
    assert ascii(value)[:60] in str(caught.value)


def test_a_video_request_without_an_image_says_that_one_is_missing():
    """Neither id and both ids are different mistakes, with different texts."""
    with pytest.raises(InvalidRequestError, match="is missing"):
        VideoRequest(suggestion="Slow zoom")


def test_a_video_request_with_two_images_says_that_both_were_given():
    """Both values are shown, so that the wrong one can be told."""
    with pytest.raises(InvalidRequestError, match=r"'img_1'.*'gen_1' were both given"):
        VideoRequest("img_1", "gen_1")


@pytest.mark.parametrize(
    "ids",
    ["img_1", b"img_1", bytearray(b"img_1"), None, 7, [], [f"img_{n}" for n in range(11)]],
    ids=lambda ids: type(ids).__name__,
)
def test_a_reel_takes_one_to_ten_ids_and_never_a_bare_string(ids):
    """A string is ten ids of one letter only by mistake."""
    with pytest.raises(InvalidRequestError, match=r"^image_ids must .* 1 to 10 image ids"):
        ReelRequest(ids)


@pytest.mark.parametrize("value", [*BAD_TEXTS, None], ids=ascii)
def test_a_reel_names_the_position_of_a_bad_id(value):
    """Which of the ten it was is in the message."""
    with pytest.raises(InvalidRequestError, match=r"^image_ids\[1\] must be "):
        ReelRequest(["img_1", value])


def test_a_reel_reads_an_endless_iterable_no_further_than_needed():
    """A generator without end is refused, not read for ever."""
    with pytest.raises(InvalidRequestError, match="not more"):
        ReelRequest(f"img_{n}" for n in itertools.count())


def test_a_reel_keeps_the_order_of_any_iterable_as_a_tuple():
    """Ten ids of a generator are ten ids, in its order."""
    assert ReelRequest(f"img_{n}" for n in range(10)).image_ids == tuple(f"img_{n}" for n in range(10))


def test_a_request_does_not_see_later_changes_of_what_it_was_made_from():
    """The caller's list and mapping stay the caller's."""
    extra_body, ids = {"tags": ["a"]}, ["img_1"]
    request = ReelRequest(ids, extra_body=extra_body)

    extra_body["tags"].append("b")
    ids.append("img_2")

    assert request == ReelRequest(["img_1"], extra_body={"tags": ["a"]})


def cyclic():
    """Give a mapping that contains itself."""
    mapping = {}
    mapping["self"] = [mapping]
    return mapping


@pytest.mark.parametrize(
    ("extra_body", "named"),
    [
        ([("a", 1)], "extra_body must be a mapping"),
        ("a", "extra_body must be a mapping"),
        ([], "extra_body must be a mapping"),
        ({1: "a"}, "extra_body must have names that are str, not 1"),
        ({"a": {None: 1}}, r"extra_body\['a'\] must have names that are str"),
        ({"a": float("nan")}, r"extra_body\['a'\] must be a JSON value"),
        ({"a": [0, float("inf")]}, r"extra_body\['a'\]\[1\] must be a JSON value"),
        ({"a": 10**5000}, "int of at most 64 bits"),
        ({"a": WHEN}, r"extra_body\['a'\] must be a JSON value"),
        ({"a": {1, 2}}, r"extra_body\['a'\] must be a JSON value"),
        ({"a": b"x"}, r"extra_body\['a'\] must be a JSON value"),
        ({"a": "\ud800"}, "without lone surrogates"),
        ({"\ud800": 1}, "a name in extra_body"),
        (cyclic(), "nested at most"),
    ],
)
def test_extra_takes_json_values_only_and_says_where_another_is(extra_body, named):
    """What can't be sent is found when the request is made, not when it is paid for."""
    with pytest.raises(InvalidRequestError, match=named):
        VideoRequest("img_1", extra_body=extra_body)


@given(st.dictionaries(texts, json_values, max_size=4))
def test_a_frozen_mapping_holds_what_it_was_made_from(data):
    """Any JSON object goes in and comes out the same; twins are equal, with equal hashes."""
    mapping = frozen(data)

    assert json.loads(json.dumps(mapping, default=dict)) == data
    assert list(mapping) == list(data)
    assert mapping == frozen(data)
    assert hash(mapping) == hash(frozen(data))
    assert pickle.loads(pickle.dumps(mapping)) == mapping  # noqa: S301 - own bytes


def test_a_frozen_mapping_can_not_be_changed():
    """Neither through its attributes nor by taking them away."""
    mapping = FrozenMapping({"a": 1})

    with pytest.raises(AttributeError):
        mapping._data = {}
    with pytest.raises(AttributeError):
        del mapping._data
    with pytest.raises(TypeError):
        mapping["a"] = 2
    assert repr(mapping) == "{'a': 1}"


def test_what_is_frozen_already_is_taken_as_it_is():
    """A mapping that many requests share is kept once."""
    mapping = frozen({"a": 1})

    assert VideoRequest("img_1", extra_body=mapping).extra_body is mapping
    assert frozen({"b": mapping})["b"] is mapping


def test_all_requests_without_extra_share_one_empty_mapping():
    """Ten thousand requests don't keep ten thousand empty mappings, unpickled ones neither."""
    request = VideoRequest("img_1")
    twin = pickle.loads(pickle.dumps(request))  # noqa: S301 - own bytes

    empties = [
        twin.extra_body,
        VideoRequest("a", extra_body={}).extra_body,
        VideoRequest("a", extra_body=None).extra_body,
        frozen(FrozenMapping()),
    ]
    assert all(empty is request.extra_body for empty in empties)


class Seed(enum.StrEnum):
    """A str that is spelled by rules of its own."""

    ONE = "one"


def test_subclasses_in_extra_become_plain_values():
    """An encoder meets only the types it knows."""
    held = frozen({"a": Seed.ONE, "b": enum.IntEnum("N", "X").X})

    assert [type(value) for value in held.values()] == [str, int]
    assert held == {"a": "one", "b": 1}
