"""Requests, receipts, records and intents: validation, copies and annotations."""

import copy
import doctest
import enum
import inspect
import itertools
import json
import pickle
import typing
import unicodedata
from datetime import UTC, datetime

import attrs
import pytest
from cattrs.preconf.json import make_converter
from hypothesis import given
from hypothesis import strategies as st

from qamera_async import _models
from qamera_async._models import (
    Intent,
    JobState,
    Receipt,
    Record,
    ReelRequest,
    Request,
    Video,
    VideoRequest,
    check_record_ids,
)
from qamera_async.errors import InvalidRequestError

CREATED_AT = datetime(2026, 3, 20, 17, tzinfo=UTC)
VALUES = [
    VideoRequest("img_1", None, "Slow zoom", "pollo", "SKU-1", {"seed": 7, "tags": ["a", {"b": None}]}),
    ReelRequest(["img_1", "img_2"], "SKU-2", {"music": True}),
    Receipt(("vid_1",), "batch", "order", "res", 10, "corr"),
    Video("vid_1", "DONE", JobState.DONE, "T-shirt", "https://c/t", "https://c/v", "APPROVED", CREATED_AT),
    Intent(
        "int_1", VideoRequest(generated_image_id="gen_1"), CREATED_AT, (Video("v", "NEW", JobState.PENDING),)
    ),
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


def by_type(value):
    return type(value).__name__


WIRE_NAMES = set(VideoRequest.wire_names.values())


@pytest.mark.parametrize("value", VALUES, ids=by_type)
def test_value_survives_pickling_and_copying_and_is_hashable(value):
    twins = {pickle.loads(pickle.dumps(value)), copy.copy(value), copy.deepcopy(value)}  # noqa: S301 - own bytes

    assert twins == {value}


@pytest.mark.parametrize("value", VALUES, ids=by_type)
def test_value_is_frozen_and_slotted(value):
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        setattr(value, attrs.fields(type(value))[0].name, "other")
    assert not hasattr(value, "__dict__")


@pytest.mark.parametrize("value", VALUES, ids=by_type)
def test_annotations_resolve_at_run_time(value):
    fields = {field.name for field in attrs.fields(attrs.resolve_types(type(value)))}

    assert fields == typing.get_type_hints(type(value)).keys() - {"wire_names"}
    assert fields == inspect.signature(type(value), eval_str=True).parameters.keys()


@pytest.mark.parametrize("value", VALUES, ids=by_type)
def test_cattrs_restores_a_value_from_json(value):
    converter = make_converter()

    assert converter.loads(converter.dumps(value), type(value)) == value


def test_unions_of_requests_and_records():
    assert set(typing.get_args(Request)) == {VideoRequest, ReelRequest}
    assert Record is Video


INVALID_TEXTS = ["", "  \t", 7, b"img", ["img"], True, "\ud800"]


@pytest.mark.parametrize("value", INVALID_TEXTS, ids=ascii)
@pytest.mark.parametrize("field", ["image_id", "generated_image_id", "suggestion", "provider", "ref"])
def test_invalid_text_is_refused_with_its_field_and_value(field, value):
    fields = {"image_id": "img_1", field: value}
    if field == "generated_image_id":
        fields["image_id"] = None

    with pytest.raises(InvalidRequestError, match=rf"^{field} must be ") as caught:
        VideoRequest(**fields)
    assert ascii(value)[:60] in str(caught.value)


@pytest.mark.parametrize(
    "ids", [{}, {"image_id": "img_1", "generated_image_id": "gen_1"}], ids=["none", "both"]
)
def test_video_request_needs_exactly_one_image(ids):
    with pytest.raises(InvalidRequestError, match="exactly one") as caught:
        VideoRequest(**ids)
    assert all(repr(value) in str(caught.value) for value in ids.values())


@pytest.mark.parametrize(
    "ids",
    [
        "img_1",
        b"img_1",
        bytearray(b"img_1"),
        {"img_1"},
        {"img_1": 1},
        None,
        7,
        [],
        [f"img_{n}" for n in range(11)],
    ],
    ids=by_type,
)
def test_reel_needs_a_list_of_one_to_ten_image_ids(ids):
    with pytest.raises(InvalidRequestError, match=r"^image_ids must .* 1 to 10 image ids"):
        ReelRequest(ids)


@pytest.mark.parametrize("value", [*INVALID_TEXTS, None], ids=ascii)
def test_invalid_image_id_is_refused_with_its_position(value):
    with pytest.raises(InvalidRequestError, match=r"^image_ids\[1\] must be "):
        ReelRequest(["img_1", value])


def test_endless_image_ids_are_refused():
    with pytest.raises(InvalidRequestError, match="1 to 10"):
        ReelRequest(f"img_{n}" for n in itertools.count())


def test_reel_keeps_the_order_of_any_iterable():
    assert ReelRequest(f"img_{n}" for n in range(10)).image_ids == tuple(f"img_{n}" for n in range(10))


def test_record_ids_are_checked_and_deduplicated():
    assert check_record_ids(("b", "a", "b")) == ("b", "a")
    with pytest.raises(InvalidRequestError, match="at least one"):
        check_record_ids(())
    with pytest.raises(InvalidRequestError, match=r"record_ids\[1\]"):
        check_record_ids(("a", ""))


@pytest.mark.parametrize(
    "written",
    [
        "sku-7",
        " sku-7\t\n",
        "sku-7\u00a0",
        "\ufeffsku-7",
        "sku-7\u200b",
        "\u2060sku-7\u200d",
        "sku\u00ad-7",
        "sku-7\x00",
        "\u3000sku-7",
        "\u200b \u200bsku-7",
    ],
    ids=ascii,
)
def test_ref_loses_invisible_characters(written):
    assert VideoRequest("img_1", ref=written).ref == "sku-7"
    assert ReelRequest(["img_1"], ref=written).ref == "sku-7"


def test_ref_keeps_spaces_inside():
    assert VideoRequest("img_1", ref=" red shirt ").ref == "red shirt"


def test_ref_is_normalised_to_nfc():
    assert VideoRequest("img_1", ref="cafe\u0301") == VideoRequest("img_1", ref="caf\u00e9")


@pytest.mark.parametrize("ref", ["\u200b", "\ufeff\u00a0", "\x00", "\u00ad\u2060"], ids=ascii)
def test_ref_without_visible_characters_is_refused(ref):
    with pytest.raises(InvalidRequestError, match=r"^ref must be"):
        VideoRequest("img_1", ref=ref)


@pytest.mark.parametrize(("char", "count"), [("a", 512), ("é", 256), ("☃", 170)])
def test_ref_has_at_most_512_bytes(char, count):
    assert VideoRequest("img_1", ref=char * count).ref == char * count
    with pytest.raises(InvalidRequestError, match=r"^ref must be .*512"):
        VideoRequest("img_1", ref=char * (count + 1))


@given(texts)
def test_normalising_a_ref_again_changes_nothing(text):
    try:
        ref = VideoRequest("img_1", ref=text).ref
    except InvalidRequestError:
        return

    assert VideoRequest("img_1", ref=ref).ref == ref
    assert unicodedata.is_normalized("NFC", ref)
    assert ref == ref.strip()


def test_request_does_not_see_later_changes_of_its_arguments():
    extra_body, ids = {"tags": ["a"]}, ["img_1"]
    request = ReelRequest(ids, extra_body=extra_body)

    extra_body["tags"].append("b")
    ids.append("img_2")

    assert request == ReelRequest(["img_1"], extra_body={"tags": ["a"]})


def test_requests_with_different_extra_bodies_are_not_equal():
    assert VideoRequest("img_1", extra_body={"a": 1}) != VideoRequest("img_1", extra_body={"a": 2})
    assert VideoRequest("img_1", extra_body=None) == VideoRequest("img_1", extra_body={})


def test_evolved_request_keeps_its_extra_body():
    request = VideoRequest("img_1", extra_body={"tags": ["a"]})

    assert attrs.evolve(request, ref="SKU-1").extra_body == {"tags": ["a"]}


def cyclic():
    mapping = {}
    mapping["self"] = [mapping]
    return mapping


def nested(depth):
    value = 1
    for _ in range(depth):
        value = [value]
    return value


@pytest.mark.parametrize(
    ("extra_body", "named"),
    [
        ([("a", 1)], "extra_body must be a mapping"),
        ("a", "extra_body must be a mapping"),
        ([], "extra_body must be a mapping"),
        (0, "extra_body must be a mapping"),
        ({1: "a"}, "extra_body must have str names, not 1"),
        ({"a": {None: 1}}, r"extra_body\['a'\] must have str names"),
        ({"a": float("nan")}, r"extra_body\['a'\] must be a JSON value"),
        ({"a": [0, float("inf")]}, r"extra_body\['a'\]\[1\] must be a JSON value"),
        ({"a": 2**64}, "int of at most 64 bits"),
        ({"a": 10**5000}, "int of at most 64 bits"),
        ({"a": CREATED_AT}, r"extra_body\['a'\] must be a JSON value"),
        ({"a": {1, 2}}, r"extra_body\['a'\] must be a JSON value"),
        ({"a": b"x"}, r"extra_body\['a'\] must be a JSON value"),
        ({"a": "\ud800"}, "without lone surrogates"),
        ({"\ud800": 1}, "a name in extra_body"),
        (cyclic(), "nested at most 50"),
        ({"a": nested(50)}, "nested at most 50"),
    ],
)
def test_extra_body_that_is_not_json_is_refused_with_its_path(extra_body, named):
    with pytest.raises(InvalidRequestError, match=named):
        VideoRequest("img_1", extra_body=extra_body)


def test_extra_body_may_be_nested_50_deep():
    assert VideoRequest("img_1", extra_body={"a": nested(49)}).extra_body == {"a": nested(49)}


@given(st.dictionaries(texts.filter(lambda name: name not in WIRE_NAMES), json_values, max_size=4))
def test_extra_body_is_an_equal_copy(data):
    request = VideoRequest("img_1", extra_body=data)

    assert request.extra_body == data
    assert list(request.extra_body) == list(data)
    assert json.loads(json.dumps(request.extra_body)) == data
    assert pickle.loads(pickle.dumps(request)) == request  # noqa: S301 - own bytes


class Word(enum.StrEnum):
    """A str with its own formatting."""

    ONE = "one"


def test_subclasses_become_plain_values():
    request = VideoRequest(
        Word.ONE,
        ref=Word.ONE,
        extra_body={"a": Word.ONE, "b": enum.IntEnum("N", "X").X, "c": (1,), Word.ONE: 1},
    )

    assert type(request.image_id) is type(request.ref) is str
    assert [type(value) for value in request.extra_body.values()] == [str, int, list, int]
    assert {type(name) for name in request.extra_body} == {str}


def test_docstring_examples():
    assert doctest.testmod(_models) == (0, 2)
