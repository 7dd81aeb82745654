"""Encoded requests, and the table of kinds."""

import json

import pytest

import qamera_async as q
from qamera_async import _protocol as protocol
from qamera_async._protocol import KINDS, VIDEOS, Response, encode_request, kind_of, list_request, parse_list

VIDEO = q.VideoRequest(image_id="img_1")
REEL = q.ReelRequest(["img_1", "img_2"])


@pytest.mark.parametrize(
    ("request_", "path", "body"),
    [
        (
            q.VideoRequest(image_id="a", suggestion="s", provider="p", ref="private", extra_body={"x": [1]}),
            "/api/external/video-picker/register-videos",
            {"imageId": "a", "suggestion": "s", "provider": "p", "x": [1]},
        ),
        (
            q.VideoRequest(generated_image_id="g"),
            "/api/external/video-picker/register-videos",
            {"generatedImageId": "g"},
        ),
        (q.ReelRequest(["a", "b"]), "/api/external/reel/register-reel", {"imagesIds": ["a", "b"]}),
    ],
)
def test_request_is_encoded_with_the_field_names_of_the_api(request_, path, body):
    encoded = encode_request(request_, "key-1")

    assert (encoded.method, encoded.path) == ("POST", path)
    assert json.loads(encoded.body) == body


def test_post_has_content_type_and_idempotency_key():
    assert encode_request(VIDEO, "key-1").headers == {
        "Content-Type": "application/json",
        protocol.IDEMPOTENCY_HEADER: "key-1",
    }


@pytest.mark.parametrize(
    ("cls", "fields", "name"),
    [
        (q.VideoRequest, {"image_id": "a"}, "imageId"),
        (q.VideoRequest, {"image_id": "a"}, "provider"),
        (q.ReelRequest, {"image_ids": ["a"]}, "imagesIds"),
    ],
)
def test_extra_body_cannot_set_a_field_of_the_request(cls, fields, name):
    with pytest.raises(q.InvalidRequestError, match=name):
        cls(**fields, extra_body={name: "b"})


@pytest.mark.parametrize(("request_", "name"), [(VIDEO, "video"), (REEL, "reel")])
def test_kind_of_a_request_is_its_entry_in_the_table(request_, name):
    kind = kind_of(request_)

    assert kind is KINDS[name]
    assert (kind.name, kind.request_type, kind.records, kind.single) == (name, type(request_), VIDEOS, True)


@pytest.mark.parametrize("value", [None, "video", {"image_id": "a"}, q.VideoRequest])
def test_kind_of_another_type_is_an_error(value):
    with pytest.raises(q.InvalidRequestError, match="VideoRequest, ReelRequest"):
        kind_of(value)


@pytest.mark.parametrize(
    ("etag", "sent"),
    [
        ('"abc"', True),
        ('W/"abc"', True),
        ('""', True),
        ('W/"a b"', False),
        ("abc", False),
        ('"' + "x" * 201 + '"', False),
        ('"a", "b"', False),
        ('"a\x7f"', False),
        ('"a"\n', False),
        ("*", False),
        ("", False),
    ],
)
def test_list_request_is_conditional_only_with_a_valid_etag(etag, sent):
    known = parse_list(Response(200, {"etag": etag}, b'{"videos":[]}'), VIDEOS, q.StatusRules())

    request = list_request(VIDEOS, known)

    assert (request.method, request.path, request.body) == ("GET", "/api/external/videos", None)
    assert request.headers == ({"If-None-Match": etag} if sent else {})


def test_list_request_without_a_known_list_is_unconditional():
    assert list_request(VIDEOS).headers == {}
