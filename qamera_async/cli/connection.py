"""A session as the command line asks for it."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from .. import PollPolicy, QameraSession, RateLimiter, Timeouts

if TYPE_CHECKING:
    import os
    from collections.abc import AsyncGenerator, Callable

    from ..events import Event
    from .options import Api
    from .progress import Progress
    from .running import Running


def session_of(
    api: Api,
    *,
    ledger: str | os.PathLike[str] | None = None,
    on_event: Callable[[Event], object] | None = None,
) -> QameraSession:
    """Give a session, not yet entered; where the API is and the key come from the environment.

    Raises:
        ConfigurationError: A key, URL or setting that can't be used.

    """
    limit, window = api.limits
    return QameraSession(
        allow_http=api.allow_http,
        rate_limiter=RateLimiter(limit, window),
        polling=PollPolicy(interval=api.interval),
        timeouts=Timeouts(job=api.timeout, reconcile=min(api.timeout, Timeouts().reconcile)),
        ledger=ledger,
        on_event=on_event,
    )


@contextlib.asynccontextmanager
async def shown(running: Running, progress: Progress, session: QameraSession) -> AsyncGenerator[None]:
    """Show the progress as long as this lasts."""
    budget = session.rate_limiter
    running.screen.live(lambda: progress.snapshot(budget.used, budget.cooldown))
    try:
        yield
    finally:
        running.screen.live(None)
