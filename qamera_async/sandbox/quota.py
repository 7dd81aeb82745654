"""The quota as the API counts it (section "Every request")."""

from __future__ import annotations

import asyncio
import random
import time
from collections import deque


class Quota:
    """A sliding window over the accepted requests; the rejected don't count.

    Args:
        limit: so many requests in any window.
        window: in seconds.
        count_delay: a request is counted at a random moment up to that many seconds after it arrived.
    """

    def __init__(self, quota: tuple[int, float] | None, count_delay: float) -> None:
        self._quota = quota
        self._count_delay = count_delay
        self._counted: deque[float] = deque()

    async def moment(self) -> None:
        """Wait for the moment at which a request that arrived now is counted."""
        if self._count_delay > 0:
            await asyncio.sleep(random.uniform(0, self._count_delay))  # noqa: S311 - it guards nothing

    def admits(self) -> bool:
        """Count a request now; False, and nothing counted, where it is one too many."""
        if self._quota is None:
            return True
        limit, window = self._quota
        now = time.monotonic()
        while self._counted and self._counted[0] <= now - window:
            self._counted.popleft()
        if len(self._counted) >= limit:
            return False
        self._counted.append(now)
        return True
