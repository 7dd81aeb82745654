"""The clients that are compared, behind one face: register a job and wait, wait for a job, do one GET.

Each speaks the shapes of its own API. Its import is in its class, so that only what is measured is loaded.
"""

import asyncio
import random
from importlib.util import find_spec

KEY = "mk_live_sandbox.secret"
VIDEOS = "/api/external/videos"
REGISTER = "/api/external/video-picker/register-videos"
EVERY = 3.0  # seconds between the polls of a loop as the vendor's examples have it


def record(number):
    """Give the id of the record of that number."""
    return f"vid_{number:06d}"


class Ours:
    """qamera-async."""

    package = module = "qamera-async"
    path = VIDEOS

    def __init__(self, url, retries=None, **options):  # noqa: ARG002 - it has no use for retries
        from qamera_async import QameraSession  # noqa: PLC0415

        self.session = QameraSession(KEY, base_url=url, **options)

    async def __aenter__(self):
        await self.session.__aenter__()
        return self

    async def __aexit__(self, *why):
        await self.session.__aexit__(*why)

    async def run(self, number):
        """Register a job, wait until it is done, and give its id."""
        job = await self.session.register_video(image_id=f"img_{number}")
        return (await job).id

    async def wait(self, number):
        """Wait until a job that is there already is done."""
        await self.session.job(record(number))

    async def get(self):
        """Ask once."""
        await self.session.list_videos()


class Loop:
    """A loop for each job, as the vendor's examples have it, with the vendor's advice on what to do on a 429.

    The advice: wait for 1 s, 2 s, 4 s, 8 s, each with up to 0.5 s of jitter.
    """

    path = VIDEOS

    def __init__(self, url, retries=None):
        self._url = url
        self._retries = 4 if retries is None else retries

    async def run(self, number):
        """Register a job, wait until it is done, and give its id."""
        receipt = await self._politely("POST", REGISTER, {"imageId": f"img_{number}"})
        return await self._done(receipt["createdRecordIds"][0])

    async def wait(self, number):
        """Wait until a job that is there already is done."""
        await self._done(record(number))

    async def get(self):
        """Ask once."""
        await self._politely("GET", VIDEOS)

    async def finish(self):
        """Let the fake server finish all jobs."""
        await self._politely("GET", "/finish")

    async def _done(self, name):
        while True:
            videos = (await self._politely("GET", VIDEOS))["videos"]
            if any(video["id"] == name and video["status"] == "DONE" for video in videos):
                return name
            await asyncio.sleep(EVERY)

    async def _politely(self, method, path, body=None):
        for attempt in range(self._retries + 1):
            status, retry_after, answer = await self._send(method, self._url + path, body)
            if status == 200:
                return answer
            if status != 429:
                raise RuntimeError(f"{status}: {answer}")
            stated = None if retry_after is None else float(retry_after)
            await asyncio.sleep((stated or 2 ** min(attempt, 3)) + random.uniform(0, 0.5))  # noqa: S311
        raise RuntimeError("429, however often it was tried")


class AiohttpLoop(Loop):
    """The loop with aiohttp."""

    package = module = "aiohttp"

    async def __aenter__(self):
        import aiohttp  # noqa: PLC0415

        self._http = aiohttp.ClientSession(headers={"X-Api-Key": KEY})
        return self

    async def __aexit__(self, *_):
        await self._http.close()

    async def _send(self, method, url, body):
        async with self._http.request(method, url, json=body) as response:
            return response.status, response.headers.get("Retry-After"), await response.json()


class HttpxLoop(Loop):
    """The loop with httpx."""

    package = module = "httpx"

    async def __aenter__(self):
        import httpx  # noqa: PLC0415

        self._http = httpx.AsyncClient(headers={"X-Api-Key": KEY})
        return self

    async def __aexit__(self, *_):
        await self._http.aclose()

    async def _send(self, method, url, body):
        response = await self._http.request(method, url, json=body)
        return response.status_code, response.headers.get("Retry-After"), response.json()


class Runway:
    """runwayml: create a task and wait for its output."""

    package = module = "runwayml"
    path = "/v1/tasks/vid_000000"

    def __init__(self, url, retries=None):
        from runwayml import AsyncRunwayML  # noqa: PLC0415

        extra = {} if retries is None else {"max_retries": retries}
        self._client = AsyncRunwayML(api_key=KEY, base_url=url, **extra)

    async def __aenter__(self):
        return self

    async def __aexit__(self, *_):
        await self._client.close()

    async def run(self, number):
        """Register a job, wait until it is done, and give its id."""
        task = await self._client.image_to_video.create(
            model="gen4_turbo",
            prompt_image=f"https://cdn.example.com/img_{number}.jpg",
            prompt_text="Slow zoom in",
            ratio="1280:720",
            duration=5,
        )
        return (await task.wait_for_task_output()).id

    async def wait(self, number):
        """Wait until a job that is there already is done."""
        task = await self._client.tasks.retrieve(record(number))
        await task.wait_for_task_output()

    async def get(self):
        """Ask once."""
        await self._client.tasks.retrieve("vid_000000")


class OpenAI:
    """openai: create a video and poll."""

    package = module = "openai"
    path = "/v1/videos/vid_000000"

    def __init__(self, url, retries=None):
        from openai import AsyncOpenAI  # noqa: PLC0415

        extra = {} if retries is None else {"max_retries": retries}
        self._client = AsyncOpenAI(api_key=KEY, base_url=url + "/v1", **extra)

    async def __aenter__(self):
        return self

    async def __aexit__(self, *_):
        await self._client.close()

    async def run(self, number):  # noqa: ARG002 - it takes no image
        """Register a job, wait until it is done, and give its id."""
        return (await self._client.videos.create_and_poll(prompt="Slow zoom in")).id

    async def wait(self, number):
        """Wait until a job that is there already is done."""
        await self._client.videos.poll(record(number))

    async def get(self):
        """Ask once."""
        await self._client.videos.retrieve("vid_000000")


class Replicate:
    """replicate: create a prediction and wait. It sends a GET up to 10 times by itself, and a POST once."""

    package = module = "replicate"
    path = "/v1/predictions/vid_000000"

    def __init__(self, url, retries=None):
        import httpx  # noqa: PLC0415
        from replicate.client import Client, RetryTransport  # noqa: PLC0415

        extra = {}
        if retries is not None:
            extra["transport"] = RetryTransport(
                httpx.AsyncHTTPTransport(), max_attempts=retries + 1, retryable_methods=["POST"]
            )
        self._client = Client(api_token=KEY, base_url=url, **extra)

    async def __aenter__(self):
        return self

    async def __aexit__(self, *_):
        await self._client._async_client.aclose()

    async def run(self, number):
        """Register a job, wait until it is done, and give its id."""
        prediction = await self._client.predictions.async_create(
            model="owner/model",
            input={"prompt": "Slow zoom in", "image": f"https://cdn.example.com/{number}"},
        )
        await prediction.async_wait()
        return prediction.id

    async def wait(self, number):
        """Wait until a job that is there already is done."""
        await (await self._client.predictions.async_get(record(number))).async_wait()

    async def get(self):
        """Ask once."""
        await self._client.predictions.async_get("vid_000000")


CLIENTS = {
    "qamera-async": Ours,
    "aiohttp, a loop for each job": AiohttpLoop,
    "httpx, a loop for each job": HttpxLoop,
    "runwayml": Runway,
    "openai": OpenAI,
    "replicate": Replicate,
}


def installed():
    """Give the names of the clients that are installed, and of those that aren't."""
    names = {name: find_spec(client.module.replace("-", "_")) is not None for name, client in CLIENTS.items()}
    return [name for name, there in names.items() if there], [
        name for name, there in names.items() if not there
    ]
