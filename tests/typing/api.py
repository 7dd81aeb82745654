"""Typed usage of the public names: checked by mypy and pyright, never run."""

import math

from qamera_async import (
    AmbiguousSubmissionError,
    Event,
    Intent,
    Job,
    JobFailedError,
    JobState,
    PollPolicy,
    QameraSession,
    Receipt,
    ReelRequest,
    Request,
    RequestBudget,
    RetryPolicy,
    StatusRules,
    Submitted,
    Timeouts,
    Video,
    VideoRequest,
)


def watch(event: Event) -> None:
    """Take an event."""
    if isinstance(event, Submitted):
        receipt: Receipt = event.receipt
        print(receipt.record_ids)


async def use() -> None:
    """Use each public name once."""
    async with QameraSession(
        "mk_live_a.b",
        base_url="https://example.com",
        budget=RequestBudget(60, 60.0),
        polling=PollPolicy(interval=1.0),
        retry=RetryPolicy(attempts=2),
        timeouts=Timeouts(job=math.inf, appear=None),
        statuses=StatusRules(done=["DONE"], failed=["FAILED"]),
        on_event=watch,
    ) as qamera:
        request: Request = VideoRequest(image_id="a", extra={"quality": 3})
        job: Job = await qamera.register(request)
        job = await qamera.register(ReelRequest(["a", "b"]))
        job = await qamera.register_reel(("a", "b"), ref="r")
        video: Video = await job
        video = await job.wait(timeout=3)
        videos: tuple[Video, ...] = await job.all_videos()
        state: JobState = job.state
        async for snapshot in job.updates():
            print(snapshot.status, state, video, videos)
        try:
            await qamera.job("vid_1")
        except JobFailedError as error:
            print(error.videos)
        except AmbiguousSubmissionError as error:
            intent: Intent = error.intent
            print(intent.id)
