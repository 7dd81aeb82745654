"""What ``async for`` goes through."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from typing import Self

    from .outcome import Outcome
    from .run import Run


class Outcomes:
    """The outcomes of one run, as they come; forgotten, it reads nothing more at once.

    A generator that was ended early, by a time that ran out around ``anext()`` say, ends at the next one as
    if all had been given. This one says what happened.

    Args:
        run: Not begun.

    """

    def __init__(self, run: Run) -> None:
        self._run = run
        self._outcomes = run.outcomes(raising=True)
        run.given_to(self)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Outcome:
        """Give the next one.

        Raises:
            StopAsyncIteration: All were given.
            RuntimeError: It was left early.
            BaseException: After the last outcome, why the batch stopped.

        """
        try:
            return await anext(self._outcomes)
        except StopAsyncIteration:
            if self._run.ended:
                raise
        raise RuntimeError(
            "The batch was left early, before its last outcome: this is not its end. Run it again."
        )

    async def aclose(self) -> None:
        """Leave it: read and submit nothing more; idempotent."""
        await self._outcomes.aclose()
