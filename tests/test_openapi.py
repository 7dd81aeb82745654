"""The OpenAPI document is held against what the sandbox answers, and what the client sends."""

import io
import json
import re

import aiohttp
import jsonschema
import pytest
from jsonschema import Draft202012Validator
from openapi_spec_validator import validate

from qamera_async import ReelRequest, VideoRequest
from qamera_async.sandbox import Sandbox

LIST = "/api/external/videos"
VIDEO = "/api/external/video-picker/register-videos"
REEL = "/api/external/reel/register-reel"


@pytest.fixture
async def sandbox():
    async with Sandbox(job_seconds=0.05, quota=(6, 60.0), credits=25, retry_after=5) as sandbox:
        yield sandbox


@pytest.fixture
async def http():
    async with aiohttp.ClientSession() as http:
        yield http


@pytest.fixture
async def document(http, sandbox):
    """Give what the sandbox serves to whoever asks."""
    async with http.get(f"{sandbox.url}/openapi.json") as response:
        assert response.status == 200
        assert response.content_type == "application/json"
        return json.loads(await response.read())


def resolved(document, value):
    """Give what a reference stands for."""
    while "$ref" in value:
        found = document
        for part in value["$ref"].removeprefix("#/").split("/"):
            found = found[part]
        value = found
    return value


def check(document, schema, value):
    """Hold a value against a schema of the document, its formats too."""
    whole = {**schema, "components": document["components"]}
    Draft202012Validator(whole, format_checker=Draft202012Validator.FORMAT_CHECKER).validate(value)


def schema_of_request(document, path):
    content = document["paths"][path]["post"]["requestBody"]["content"]
    return content["application/json"]["schema"]


async def ask(http, sandbox, document, method, path, **options):
    """Send a request; its answer has to be one that the document has. Give the status and the body."""
    options.setdefault("headers", {"X-Api-Key": sandbox.api_key})
    async with http.request(method, sandbox.url + path, **options) as response:
        body = json.loads(await response.read())
        status, headers, kind = response.status, response.headers, response.content_type
    responses = document["paths"][path][method.lower()]["responses"]
    stated = resolved(document, responses[str(status)])
    check(document, stated["content"][kind]["schema"], body)
    if method == "POST" and "X-Correlation-Id" in stated.get("headers", {}):
        assert headers["X-Correlation-Id"]
    for name in {"Retry-After"} & headers.keys():
        check(document, resolved(document, stated["headers"][name])["schema"], float(headers[name]))
    return status, body


async def test_it_is_an_openapi_document(document):
    """By the rules of OpenAPI 3.1."""
    validate(document)


async def test_it_costs_nothing(http, sandbox, document):
    """No key, and no place in the quota; nothing but a GET has it."""
    (arrived,) = sandbox.requests
    async with http.post(f"{sandbox.url}/openapi.json") as response:
        refused = response.status

    assert "X-Api-Key" not in arrived.headers
    assert arrived.counted_at is None
    assert refused == 405


async def test_it_has_the_endpoints_of_the_sandbox(http, sandbox, document):
    """Each of its operations is there, and its other methods are not."""
    key = {"X-Api-Key": sandbox.api_key}
    for path, operations in document["paths"].items():
        for method in ("GET", "POST"):
            async with http.request(method, sandbox.url + path, headers=key) as response:
                assert (response.status != 405) is (method.lower() in operations), (path, method)
            assert response.status != 404

    assert {*document["paths"]} == {LIST, VIDEO, REEL}


@pytest.mark.parametrize("seconds", [0.0, 60.0])
async def test_what_is_accepted_is_as_it_says(http, sandbox, document, seconds):
    """The receipts of both endpoints, and the list, of jobs that are done and of those that aren't."""
    sandbox.trouble("no_url", seconds=seconds)
    video = await ask(http, sandbox, document, "POST", VIDEO, json={"imageId": "i"})
    reel = await ask(http, sandbox, document, "POST", REEL, json={"imagesIds": ["a", "b"]})
    if not seconds:
        for record_id in ("vid_001", "reel_001"):
            sandbox.finish(record_id)
    status, listed = await ask(http, sandbox, document, "GET", LIST)

    assert [video[0], reel[0], status] == [200, 200, 200]
    assert [item["id"] for item in listed["videos"]] == ["vid_001", "reel_001"]
    assert [item["videoUrl"] is None for item in listed["videos"]] == [seconds > 0] * 2


BAD = [
    (VIDEO, {}),
    (VIDEO, {"imageId": "i", "generatedImageId": "g"}),
    (VIDEO, {"imageId": " "}),
    (VIDEO, {"imageId": 1}),
    (VIDEO, {"imageId": "i", "suggestion": 1}),
    (VIDEO, {"imageId": "i", "provider": None}),
    (VIDEO, []),
    (REEL, {}),
    (REEL, {"imagesIds": []}),
    (REEL, {"imagesIds": ["a"] * 11}),
    (REEL, {"imagesIds": ["a", ""]}),
    (REEL, {"imagesIds": "a"}),
]
GOOD = [
    (VIDEO, {"imageId": "i"}),
    (VIDEO, {"generatedImageId": "g", "suggestion": "Slow zoom in", "provider": "pollo"}),
    (VIDEO, {"imageId": "i", "a field to come": 1}),
    (REEL, {"imagesIds": ["a"]}),
    (REEL, {"imagesIds": ["a"] * 10}),
]


@pytest.mark.parametrize(("path", "body"), BAD)
async def test_what_the_document_forbids_is_a_400(http, sandbox, document, path, body):
    """The schema refuses what the sandbox refuses."""
    with pytest.raises(jsonschema.ValidationError):
        check(document, schema_of_request(document, path), body)

    assert (await ask(http, sandbox, document, "POST", path, json=body))[0] == 400


@pytest.mark.parametrize(("path", "body"), GOOD)
async def test_what_the_document_allows_is_accepted(http, sandbox, document, path, body):
    """The schema allows what the sandbox takes."""
    check(document, schema_of_request(document, path), body)

    assert (await ask(http, sandbox, document, "POST", path, json=body))[0] == 200


@pytest.mark.parametrize("headers", [{}, {"X-Api-Key": "another"}, {"Authorization": "Bearer another"}])
async def test_a_bad_key_is_as_it_says(http, sandbox, document, headers):
    """401 on each operation."""
    seen = {
        (await ask(http, sandbox, document, method.upper(), path, headers=headers))[0]
        for path, operations in document["paths"].items()
        for method in operations
    }

    assert seen == {401}


async def test_the_key_goes_where_the_document_says(http, sandbox, document):
    """By the header that it names, or as a bearer token."""
    schemes = document["components"]["securitySchemes"]
    for headers in (
        {schemes["ApiKey"]["name"]: sandbox.api_key},
        {"Authorization": f"{schemes['Bearer']['scheme'].title()} {sandbox.api_key}"},
    ):
        assert (await ask(http, sandbox, document, "GET", LIST, headers=headers))[0] == 200


async def test_each_refusal_is_as_it_says(http, sandbox, document):
    """402, 413 and 429 as they come; 403, 404 and 500 as they are scripted."""
    seen = [
        (await ask(http, sandbox, document, "POST", REEL, json={"imagesIds": ["a"]}))[0],
        (await ask(http, sandbox, document, "POST", REEL, json={"imagesIds": ["a"]}))[0],
        (await ask(http, sandbox, document, "POST", VIDEO, data=io.BytesIO(b" " * 2_000_000)))[0],
    ]
    for status in (403, 404, 500):
        sandbox.trouble("error", status=status)
        seen.append((await ask(http, sandbox, document, "POST", VIDEO, json={"imageId": "i"}))[0])
    seen.append((await ask(http, sandbox, document, "GET", LIST))[0])
    seen.append((await ask(http, sandbox, document, "GET", LIST))[0])

    assert seen == [200, 402, 413, 403, 404, 500, 200, 429]


async def test_every_answer_that_it_has_is_looked_at(document):
    """It states no status but those that the tests above have met."""
    stated = {
        status
        for operations in document["paths"].values()
        for operation in operations.values()
        for status in operation["responses"]
    }

    assert stated == {"200", "400", "401", "402", "403", "404", "413", "429", "500"}


@pytest.mark.parametrize(
    "request_",
    [
        VideoRequest(image_id="i", suggestion="Slow zoom in", provider="pollo", extra_body={"more": 1}),
        VideoRequest(generated_image_id="g"),
        ReelRequest(["a", "b"]),
    ],
)
async def test_the_client_sends_what_it_says(sandbox, document, request_):
    """Its registrations are what the document allows, and are addressed as it says."""
    async with sandbox.session() as qamera:
        await qamera.register(request_)
    arrived = sandbox.requests[-1]

    check(document, schema_of_request(document, arrived.path), json.loads(arrived.body))
    parameters = [
        resolved(document, each)["name"] for each in document["paths"][arrived.path]["post"]["parameters"]
    ]
    assert re.fullmatch(r"[0-9a-f-]{36}", arrived.headers[parameters[0]])
