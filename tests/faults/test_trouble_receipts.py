"""Receipts that are not as documented: what is paid for is kept as far as it can be read."""

import json
import pickle

import pytest
from faults import GOOD, FaultServer, ambiguous, answers, by_method, http, nothing_left

import qamera_async as q

pytestmark = pytest.mark.usefixtures("no_lost_exceptions")

REST = {"batchId": "batch_1", "orderId": "order_1", "reservationId": "res_1", "creditsReserved": 10}
NO_IDS = {
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
@pytest.mark.parametrize("stated", NO_IDS.values(), ids=NO_IDS)
async def test_a_receipt_with_no_id_is_ambiguous(stated, quick):
    """P3: the order was taken, and nobody can say which; what came is on the error."""
    async with FaultServer(answers(http(REST | stated)), GOOD) as server:
        error = await ambiguous(server, quick)

    assert type(error.cause) is q.InvalidResponseError
    assert error.cause.status == 200
    assert "order_1" in error.cause.excerpt
    assert error.record_ids == ()


@pytest.mark.case(45)
@pytest.mark.parametrize("odd", [5, None, "", [], {"id": "vid_2"}, True])
async def test_the_ids_of_a_half_readable_receipt_are_kept(odd, quick):
    """An id that is no string makes it ambiguous; the others are on the error, in its text and its pickle."""
    body = REST | {"createdRecordIds": ["vid_1", odd, "vid_3"]}
    async with FaultServer(answers(http(body)), GOOD) as server:
        error = await ambiguous(server, quick)

    assert error.record_ids == ("vid_1", "vid_3")
    assert "vid_1, vid_3" in str(error)
    assert pickle.loads(pickle.dumps(error)).record_ids == ("vid_1", "vid_3")  # noqa: S301 - our own


@pytest.mark.case(45)
@pytest.mark.parametrize("field", REST)
@pytest.mark.parametrize("value", ["absent", None, [], {}, True], ids=str)
async def test_a_receipt_that_lacks_anything_else_is_accepted(field, value, quick):
    """What is absent or of a wrong type is None; the rest is kept, and the job is awaited."""
    body = REST | {"createdRecordIds": ["vid_1"], field: value}
    if value == "absent":
        del body[field]
    async with FaultServer(by_method(json.dumps(body).encode())) as server:
        async with server.session(**quick) as session:
            job = await session.register_video(image_id="i")
            video = await job
    nothing_left(session)

    receipt = job.receipt
    kept = [receipt.batch_id, receipt.order_id, receipt.reservation_id, receipt.credits_reserved]
    assert kept == [None if name == field else stated for name, stated in REST.items()]
    assert job.record_ids == ("vid_1",)
    assert video.status == "DONE"
    assert server.methods.count("POST") == 1


@pytest.mark.case(46)
async def test_a_receipt_with_more_ids_than_asked_keeps_them_all(quick):
    """One image was sent and three records came: the job is all of them."""
    ids = ["vid_1", "vid_2", "vid_3"]
    records = [{"id": i, "status": "DONE", "videoUrl": f"https://cdn.example.com/{i}.mp4"} for i in ids]
    receipt = json.dumps(REST | {"createdRecordIds": ids}).encode()
    lists = [json.dumps({"videos": records[:n], "count": n}).encode() for n in (1, 2, 3)]
    async with FaultServer(by_method(receipt, *lists)) as server:
        async with server.session(**quick) as session:
            job = await session.register_video(image_id="i")
            await job
    nothing_left(session)

    assert job.record_ids == job.receipt.record_ids == tuple(ids)
    assert [record.id for record in job.records] == ids
    assert server.methods == ["POST", "GET", "GET", "GET"]
