"""Receipts that differ from the documentation: each readable record id is kept."""

import json
import pickle

import pytest
from faults import GOOD, FaultServer, ambiguous_error, answers, assert_nothing_left, by_method, http

import qamera_async as q

pytestmark = [pytest.mark.case(104), pytest.mark.every_loop, pytest.mark.usefixtures("no_lost_exceptions")]

REST = {"batchId": "batch_1", "orderId": "order_1", "reservationId": "res_1", "creditsReserved": 10}
WITHOUT_IDS = {
    "no ids": {},
    "ids of null": {"createdRecordIds": None},
    "an empty list": {"createdRecordIds": []},
    "an empty id": {"createdRecordIds": [""]},
    "a blank id": {"createdRecordIds": [" "]},
    "a number": {"createdRecordIds": [5]},
    "null for an id": {"createdRecordIds": [None]},
    "a list for an id": {"createdRecordIds": [["vid_1"]]},
}


@pytest.mark.case(45)
@pytest.mark.parametrize("ids", WITHOUT_IDS.values(), ids=WITHOUT_IDS)
async def test_receipt_without_an_id_is_ambiguous(ids, quick):
    """The error has an excerpt of the response."""
    async with FaultServer(answers(http(REST | ids)), GOOD) as server:
        error = await ambiguous_error(server, quick)

    assert type(error.cause) is q.InvalidResponseError
    assert error.cause.status == 200
    assert "order_1" in error.cause.excerpt
    assert error.record_ids == ()


@pytest.mark.case(45)
@pytest.mark.parametrize("odd", [5, None, "", [], {"id": "vid_2"}, True])
async def test_readable_ids_of_a_broken_receipt_are_in_the_error(odd, quick):
    """The text and the pickle of the error have the ids too."""
    body = REST | {"createdRecordIds": ["vid_1", odd, "vid_3"]}
    async with FaultServer(answers(http(body)), GOOD) as server:
        error = await ambiguous_error(server, quick)

    assert error.record_ids == ("vid_1", "vid_3")
    assert "vid_1, vid_3" in str(error)
    assert pickle.loads(pickle.dumps(error)).record_ids == ("vid_1", "vid_3")  # noqa: S301 - own bytes


@pytest.mark.case(45)
@pytest.mark.parametrize("field", REST)
@pytest.mark.parametrize("value", ["absent", None, [], {}, True], ids=str)
async def test_receipt_that_lacks_another_field_is_accepted(field, value, quick):
    """A field that is missing or has another type is None."""
    body = REST | {"createdRecordIds": ["vid_1"], field: value}
    if value == "absent":
        del body[field]
    async with FaultServer(by_method(json.dumps(body).encode())) as server:
        async with server.session(**quick) as session:
            job = await session.register_video(image_id="i")
            video = await job
    assert_nothing_left(session)

    receipt = job.receipt
    fields = [receipt.batch_id, receipt.order_id, receipt.reservation_id, receipt.credits_reserved]
    assert fields == [None if name == field else expected for name, expected in REST.items()]
    assert job.record_ids == ("vid_1",)
    assert video.status == "DONE"
    assert server.methods.count("POST") == 1


@pytest.mark.case(46)
async def test_job_has_all_records_of_a_receipt_with_several_ids(quick):
    """The job has all of them although the request was for one video."""
    ids = ["vid_1", "vid_2", "vid_3"]
    records = [{"id": i, "status": "DONE", "videoUrl": f"https://cdn.example.com/{i}.mp4"} for i in ids]
    receipt = json.dumps(REST | {"createdRecordIds": ids}).encode()
    lists = [json.dumps({"videos": records[:n], "count": n}).encode() for n in (1, 2, 3)]
    async with FaultServer(by_method(receipt, *lists)) as server:
        async with server.session(**quick) as session:
            job = await session.register_video(image_id="i")
            await job
    assert_nothing_left(session)

    assert job.record_ids == job.receipt.record_ids == tuple(ids)
    assert [record.id for record in job.records] == ids
    assert server.methods == ["POST", "GET", "GET", "GET"]
