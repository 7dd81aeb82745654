"""A slot that records how it is settled, and requests and limits that the transport tests share."""

from qamera_async import RetryPolicy, Timeouts
from qamera_async._protocol import ApiRequest


class FakeSlot:
    """A slot that records how it was settled."""

    def __init__(self):
        self.settled = []

    def on_response(self):
        self.settled.append("response")

    def on_lost(self, grace):
        self.settled.append(("lost", grace))

    def give_back(self):
        self.settled.append("given back")

    def on_429(self, retry_after, policy):
        self.settled.append(("429", retry_after, policy))


LIMITS = Timeouts(connect=5.0, request=5.0)
RETRY = RetryPolicy()
LOST = ("lost", LIMITS.connect)
GET = ApiRequest("GET", "/api/external/videos")
POST = ApiRequest(
    "POST",
    "/register",
    b'{"imageId":"i"}',
    {"Content-Type": "application/json", "Idempotency-Key": "intent-1"},
)
REQUESTS = {"GET": GET, "POST": POST}
